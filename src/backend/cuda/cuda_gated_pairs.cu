// CudaBackend: the gated activation of a LoRA MLP, dense rows, bf16. The products of gate, up and down leave their
// pairs' parts out; they are added here, in registers, where gate and up are read anyway.
#include <algorithm>

#include "backend/cuda/cuda_gelu.cuh"
#include "backend/cuda/cuda_lora.cuh"

namespace saaz::cuda {

namespace {

constexpr int kGatedGroups = 2;
constexpr int64_t kGatedColumns = kWarps * kGatedGroups * kGroup;  // of a block

/// scale * h b^T; h [M, R], b [N, R].
struct PairArgs {
  const bf16 *h = nullptr, *b = nullptr;
  float scale = 1;
};
struct GatedArgs {
  bf16* y = nullptr;  // forward
  const bf16 *gate = nullptr, *up = nullptr, *dy = nullptr;
  bf16 *dgate = nullptr, *dup = nullptr;  // may be gate and up
  PairArgs of_gate, of_up, of_dy;
  int64_t rows = 0, dim = 0;
  int part_rows = 0;
};

/// Eight columns of a lane's row `half` with what the pair adds.
__device__ inline Item<8> with_pair(const RawItem<bf16, 8>& raw, const float (&sums)[4][4], int half, float scale) {
  Item<8> out = unpack<bf16, 8>(raw);
#pragma unroll
  for (int i = 0; i < 8; ++i) out.v[i] += scale * sums[i / 2][2 * half + i % 2];
  return out;
}

template <int R, bool kBackward>
__global__ void __launch_bounds__(kThreads) gated_kernel(const GatedArgs args) {
  if constexpr (!kHasMma) return;
  constexpr int kInputs = kBackward ? 3 : 2;
  const int lane = threadIdx.x % 32, group = lane / 4, column = lane % 4;
  const int64_t first = blockIdx.x * kGatedColumns + threadIdx.x / 32 * kGatedGroups * kGroup;
  const int64_t begin = static_cast<int64_t>(blockIdx.y) * args.part_rows;
  const int64_t end = begin + args.part_rows < args.rows ? begin + args.part_rows : args.rows;
  if (first >= args.dim) return;
  const PairArgs pairs[3] = {args.of_gate, args.of_up, args.of_dy};
  const bf16* inputs[3] = {args.gate, args.up, args.dy};
  PairColumns<R, kGatedGroups> right[kInputs];
  PairRows<R> left[kInputs];
#pragma unroll
  for (int p = 0; p < kInputs; ++p) right[p].load(pairs[p].b, first, args.dim, lane);
  for (int64_t row = begin; row < end; row += kBlockRows) {
    RawItem<bf16, 8> raw[kInputs][kGatedGroups][2];
#pragma unroll
    for (int p = 0; p < kInputs; ++p) {
      left[p].load(pairs[p].h, row, end, lane);
#pragma unroll
      for (int j = 0; j < kGatedGroups; ++j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int64_t at_row = row + group + 8 * half;
          if (at_row < end && first + j * kGroup < args.dim)
            raw[p][j][half] = load_raw<bf16, 8>(inputs[p] + at_row * args.dim + first + j * kGroup + 8 * column);
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kGatedGroups; ++j) {
      float sums[kInputs][4][4] = {};
#pragma unroll
      for (int p = 0; p < kInputs; ++p) {
#pragma unroll
        for (int i = 0; i < 4; ++i) multiply<R>(sums[p][i], left[p].h, right[p].b[j][i]);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t at_row = row + group + 8 * half, at = at_row * args.dim + first + j * kGroup + 8 * column;
        if (at_row >= end || first + j * kGroup >= args.dim) continue;
        const Item<8> gate = with_pair(raw[0][j][half], sums[0], half, pairs[0].scale),
                      up = with_pair(raw[1][j][half], sums[1], half, pairs[1].scale);
        if constexpr (kBackward) {
          const Item<8> dy = with_pair(raw[kInputs - 1][j][half], sums[kInputs - 1], half, pairs[2].scale);
          Item<8> dgate, dup;
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            const Gelu g = gelu_with_derivative<bf16>(gate.v[i]);
            dup.v[i] = dy.v[i] * g.value;
            dgate.v[i] = dy.v[i] * up.v[i] * g.derivative;
          }
          store_item<8>(args.dup + at, dup);
          store_item<8>(args.dgate + at, dgate);
        } else {
          Item<8> y;
#pragma unroll
          for (int i = 0; i < 8; ++i) y.v[i] = gelu<bf16>(gate.v[i]) * up.v[i];
          store_item<8>(args.y + at, y);
        }
      }
    }
  }
}

template <int R, bool kBackward>
void launch_gated(GatedArgs args, int n_multiprocessors, cudaStream_t stream) {
  const int64_t n_blocks = ceil_div(args.dim, kGatedColumns);
  const int64_t wanted = std::max<int64_t>(1, 4 * n_multiprocessors / n_blocks);
  args.part_rows = static_cast<int>(
      std::min<int64_t>(8 * kBlockRows, ceil_div(ceil_div(args.rows, wanted), kBlockRows) * kBlockRows));
  const dim3 grid(static_cast<unsigned>(n_blocks), static_cast<unsigned>(ceil_div(args.rows, args.part_rows)));
  gated_kernel<R, kBackward><<<grid, kThreads, 0, stream>>>(args);
  check_launch("gated pairs");
}
template <bool kBackward>
void launch_gated(int64_t rank, const GatedArgs& args, int n_multiprocessors, cudaStream_t stream) {
  if (rank == 8) return launch_gated<8, kBackward>(args, n_multiprocessors, stream);
  launch_gated<16, kBackward>(args, n_multiprocessors, stream);
}

}  // namespace

bool CudaBackend::joins_pairs(int64_t rank, int64_t n_in, int64_t n_out) const {
  return (rank == 8 || rank == 16) && activations_ == DType::bf16 && compute_capability_ >= 80 && n_in % kGroup == 0 &&
         n_out % kGroup == 0;
}

/// b of gate and up, and with `down` its a transposed, as [N, R] in bf16, one after the other.
bf16* CudaBackend::gated_factors(const PairPart& gate, const PairPart& up, const Tensor& down) {
  const int64_t dim = gate.b.dim(0), rank = gate.b.dim(1), size = dim * rank;
  auto* to = static_cast<bf16*>(scratch(kGatedScratch, 3 * size * 2));
  const auto round = [&](auto r) {
    constexpr int R = decltype(r)::value;
    round_pair<R, false>
        <<<blocks_for(2 * size), kThreads, 0, stream_>>>(to, gate.b.f32(), dim, to + size, up.b.f32(), dim);
    if (!down.empty())
      round_pair<R, true>
          <<<blocks_for(size), kThreads, 0, stream_>>>(to + 2 * size, down.f32(), dim, nullptr, nullptr, 0);
  };
  if (rank == 8)
    round(std::integral_constant<int, 8>{});
  else
    round(std::integral_constant<int, 16>{});
  check_launch("gated factors");
  return to;
}

void CudaBackend::geglu_pairs(const Tensor& y, const Tensor& gate, const Tensor& up, const PairPart& of_gate,
                              const PairPart& of_up) {
  const int64_t dim = y.dim(-1);
  if (y.rows() == 0) return;
  const bf16* factors = gated_factors(of_gate, of_up, {});
  GatedArgs args{.y = y.as<bf16>(), .gate = gate.as<bf16>(), .up = up.as<bf16>(), .rows = y.rows(), .dim = dim};
  args.of_gate = {of_gate.h.as<bf16>(), factors, of_gate.scaling};
  args.of_up = {of_up.h.as<bf16>(), factors + of_gate.b.size(), of_up.scaling};
  launch_gated<false>(of_gate.b.dim(1), args, n_multiprocessors_, stream_);
}

void CudaBackend::geglu_pairs_backward(const Tensor& dgate, const Tensor& dup, const Tensor& dy, const Tensor& gate,
                                       const Tensor& up, const PairPart& of_gate, const PairPart& of_up,
                                       const Tensor& dh, const Tensor& a) {
  if (dy.rows() == 0) return;
  const bf16* factors = gated_factors(of_gate, of_up, a);
  GatedArgs args{.gate = gate.as<bf16>(),
                 .up = up.as<bf16>(),
                 .dy = dy.as<bf16>(),
                 .dgate = dgate.as<bf16>(),
                 .dup = dup.as<bf16>(),
                 .rows = dy.rows(),
                 .dim = dy.dim(-1)};
  args.of_gate = {of_gate.h.as<bf16>(), factors, of_gate.scaling};
  args.of_up = {of_up.h.as<bf16>(), factors + of_gate.b.size(), of_up.scaling};
  args.of_dy = {dh.as<bf16>(), factors + 2 * of_gate.b.size(), 1};
  launch_gated<true>(of_gate.b.dim(1), args, n_multiprocessors_, stream_);
}

}  // namespace saaz::cuda
