#include "publish/merged_tensors.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>

#include "base/check.h"
#include "base/stop.h"

namespace saaz {

namespace {

bool is_float(StoredDType dtype) {
  return dtype == StoredDType::f32 || dtype == StoredDType::bf16 || dtype == StoredDType::f16;
}

float value_of(StoredDType dtype, const std::byte* at) {
  if (dtype == StoredDType::f32) {
    float v;
    std::memcpy(&v, at, sizeof v);
    return v;
  }
  uint16_t half;
  std::memcpy(&half, at, sizeof half);
  return dtype == StoredDType::bf16 ? bf16_to_f32(half) : f16_to_f32(half);
}

int64_t bytes_of(StoredDType dtype) { return bits_of(dtype) / 8; }

constexpr int64_t kFormatBlock = 256;                           // a multiple of every format's block, in elements
constexpr int64_t kTaskElements = 1 << 16, kTasksOfBlock = 16;  // held at once: a block, as merged bytes

/// SplitMix64 (Steele, Lea and Flood 2014): a hash of the counter, so that element i draws the same whatever came
/// before.
double uniform(uint64_t seed, uint64_t i) {
  uint64_t z = seed + (i + 1) * 0x9e3779b97f4a7c15ull;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ z >> 27) * 0x94d049bb133111ebull;
  return static_cast<double>((z ^ z >> 31) >> 11) * 0x1p-53;
}

}  // namespace

void pass_on(Bytes bytes, const ByteSink& sink) {
  constexpr size_t kPiece = size_t{16} << 20;
  for (; !bytes.empty(); bytes = bytes.subspan(std::min(kPiece, bytes.size()))) {
    check_stop();
    sink(bytes.first(std::min(kPiece, bytes.size())));
  }
}

bool is_quantised_module(const std::string& canonical) {
  for (const char* name : {".q_proj.weight", ".k_proj.weight", ".v_proj.weight", ".o_proj.weight", ".gate_proj.weight",
                           ".up_proj.weight", ".down_proj.weight"})
    if (canonical.ends_with(name)) return true;
  return false;
}

void round_to(StoredDType dtype, std::span<const float> values, std::vector<std::byte>& out) {
  out.resize(values.size() * static_cast<size_t>(bytes_of(dtype)));
  round_to(dtype, values, out.data());
}

void round_to(StoredDType dtype, std::span<const float> values, std::byte* out) {
  if (dtype == StoredDType::f32) {
    std::memcpy(out, values.data(), values.size_bytes());
    return;
  }
  auto* halves = reinterpret_cast<uint16_t*>(out);
  if (dtype == StoredDType::bf16) {
    for (size_t i = 0; i < values.size(); ++i) halves[i] = f32_to_bf16(values[i]);
  } else {
    for (size_t i = 0; i < values.size(); ++i) halves[i] = f32_to_f16(values[i]);
  }
}

MergedTensors::MergedTensors(Backend& backend, const WeightSource& base, const Adapter& adapter,
                             const MergeOptions& options)
    : base_(base), options_(options), tensors_(base.tensors()), threads_(std::make_unique<ThreadPool>(0)) {
  for (SourceTensor& tensor : tensors_)
    if (options.dtype.has_value() && !tensor.canonical.empty() && is_float(tensor.spec.dtype))
      tensor.spec.dtype = *options.dtype;
  for (const Adapter::Module& module : adapter.modules()) {
    Delta delta{.a = std::vector<float>(static_cast<size_t>(module.pair.a.size())),
                .b = std::vector<float>(static_cast<size_t>(module.pair.b.size())),
                .r = module.pair.a.dim(0),
                .n_in = module.pair.a.dim(1),
                .n_out = module.pair.b.dim(0),
                .scaling = module.pair.scaling};
    backend.download(delta.a.data(), module.pair.a);
    backend.download(delta.b.data(), module.pair.b);
    modules_.emplace(module.linear->name + ".weight", std::move(delta));
  }
  size_t found = 0;
  for (const SourceTensor& tensor : tensors_) found += is_merged(tensor);
  check(found == modules_.size(), ExitCode::bug, "merge: the adapter has {} modules, the base holds {} of them",
        modules_.size(), found);
}

bool MergedTensors::passes_through(const SourceTensor& tensor) const {
  if (is_merged(tensor) || base_.raw(tensor).empty()) return false;
  if (options_.base == MergeBase::deq4 && is_quantised_module(tensor.canonical)) return false;
  return base_.raw(tensor).size() == tensor.spec.bytes() && (tensor.canonical.empty() || !options_.dtype.has_value());
}

namespace {

/// sum = weight + scaling * (b A): one row, each element's products added in the order of the rank.
void add_delta(std::span<const float> weight, const float* b, const float* a, int64_t rank, float scaling,
               std::span<float> product, std::span<float> sum) {
  const size_t n = sum.size();
  std::fill(product.begin(), product.end(), 0.0f);
  for (int64_t j = 0; j < rank; ++j) {
    const float b_j = b[j], *a_j = a + j * static_cast<int64_t>(n);
    for (size_t i = 0; i < n; ++i) product[i] += b_j * a_j[i];
  }
  for (size_t i = 0; i < n; ++i) sum[i] = weight[i] + scaling * product[i];
}

/// What a row adds to a ModuleReport.
struct RowSums {
  double weight = 0, delta = 0, product = 0, error = 0;
  int64_t n_changed = 0;
  void add(const RowSums& other) {
    weight += other.weight, delta += other.delta, product += other.product, error += other.error;
    n_changed += other.n_changed;
  }
};

RowSums compare_row(std::span<const float> weight, std::span<const float> sum, StoredDType dtype,
                    const std::byte* merged) {
  std::vector<std::byte> unmerged(sum.size() * static_cast<size_t>(bytes_of(dtype)));
  round_to(dtype, weight, unmerged.data());
  RowSums out;
  const auto step = static_cast<size_t>(bytes_of(dtype));
  for (size_t i = 0; i < sum.size(); ++i) {
    const double written = value_of(dtype, merged + i * step), before = value_of(dtype, &unmerged[i * step]),
                 d = static_cast<double>(sum[i]) - weight[i], kept = written - before;
    out.weight += static_cast<double>(weight[i]) * weight[i];
    out.delta += d * d;
    out.product += kept * d;
    out.error += (kept - d) * (kept - d);
    out.n_changed += written != before;
  }
  return out;
}

/// Index of the first element that `dtype` cannot hold; -1 without one.
int64_t find_overflow(StoredDType dtype, std::span<const float> values, const std::byte* rounded) {
  const auto step = static_cast<size_t>(bytes_of(dtype));
  for (size_t i = 0; i < values.size(); ++i)
    if (!std::isfinite(value_of(dtype, rounded + i * step))) return static_cast<int64_t>(i);
  return -1;
}

}  // namespace

void MergedTensors::for_rows(const SourceTensor& tensor, const std::function<void(const Block&)>& before,
                             const std::function<void(const Block&, const Row&)>& each,
                             const std::function<void(const Block&)>& after) const {
  const auto found = modules_.find(tensor.canonical);
  const Delta* delta = found == modules_.end() ? nullptr : &found->second;
  int64_t n = 1;
  for (const int64_t d : tensor.spec.shape) n *= d;
  const int64_t n_in = tensor.spec.shape.empty() ? 1 : tensor.spec.shape.back(), n_out = n_in == 0 ? 0 : n / n_in;
  std::optional<Nf4Matrix> nf4;
  if (options_.base == MergeBase::deq4 && is_quantised_module(tensor.canonical)) {
    const Weight stored = base_.matrix(tensor.canonical, n_out, n_in);
    // A base that is NF4 already has these values.
    if (stored.format != WeightFormat::nf4)
      nf4 = quantise_nf4(stored, {.double_quant = options_.double_quant}, base_.base_dtype());
  }
  // Whole rows, so many that a task starts at a multiple of every format's block, whatever the row length.
  const int64_t row = std::max<int64_t>(1, n_in), unit = kFormatBlock / std::gcd(kFormatBlock, row),
                task_rows = unit * std::max<int64_t>(1, kTaskElements / (unit * row)),
                rows_at_once = kTasksOfBlock * task_rows;
  struct Room {
    std::vector<float> weight, product, sum;
  };
  std::vector<Room> rooms(static_cast<size_t>(threads_->size()));
  for (int64_t first = 0; first < n_out; first += rows_at_once) {
    const Block block{first, std::min(rows_at_once, n_out - first), n_in};
    check_stop();
    before(block);
    threads_->run((block.n_rows + task_rows - 1) / task_rows, [&](int64_t task, int thread) {
      Room& room = rooms[static_cast<size_t>(thread)];
      const int64_t begin = first + task * task_rows, count = std::min(task_rows, first + block.n_rows - begin);
      room.weight.resize(static_cast<size_t>(count * n_in));
      room.product.resize(static_cast<size_t>(n_in));
      room.sum.resize(static_cast<size_t>(n_in));
      if (nf4) {
        dequantise(nf4->view(), begin * n_in, count * n_in, room.weight.data());
      } else {
        base_.read(tensor, begin * n_in, count * n_in, room.weight.data());
      }
      for (int64_t o = 0; o < count; ++o) {
        const std::span<const float> weight(room.weight.data() + o * n_in, static_cast<size_t>(n_in));
        if (delta == nullptr) {
          each(block, {begin + o, weight, weight});
          continue;
        }
        add_delta(weight, &delta->b[static_cast<size_t>((begin + o) * delta->r)], delta->a.data(), delta->r,
                  delta->scaling, room.product, room.sum);
        each(block, {begin + o, weight, room.sum});
      }
    });
    after(block);
  }
}

void MergedTensors::produce(const SourceTensor& tensor, const ByteSink& sink, ModuleReport* report) const {
  if (passes_through(tensor)) return pass_on(base_.raw(tensor), sink);
  const StoredDType dtype = tensor.spec.dtype;
  check(is_float(dtype), ExitCode::bad_input, "{}: tensor '{}' is {}, which cannot be merged or converted",
        base_.path(), tensor.spec.name, name_of(dtype));
  std::vector<std::byte> merged;
  std::vector<RowSums> rows;
  RowSums all;
  for_rows(
      tensor,
      [&](const Block& block) {
        merged.resize(static_cast<size_t>(block.n_rows * block.n_in * bytes_of(dtype)));
        rows.assign(static_cast<size_t>(block.n_rows), {});
      },
      [&](const Block& block, const Row& row) {
        const auto at = static_cast<size_t>(row.index - block.first_row);
        std::byte* to = &merged[at * row.sum.size() * static_cast<size_t>(bytes_of(dtype))];
        round_to(dtype, row.sum, to);
        const int64_t bad = find_overflow(dtype, row.sum, to);
        check(bad < 0, ExitCode::verification,
              "merge: tensor '{}' has a value ({}) that {} cannot hold; choose another dtype", tensor.spec.name,
              bad < 0 ? 0 : row.sum[static_cast<size_t>(bad)], name_of(dtype));
        if (report != nullptr) rows[at] = compare_row(row.weight, row.sum, dtype, to);
      },
      [&](const Block&) {
        for (const RowSums& row : rows) all.add(row);
        sink(merged);
      });
  if (report == nullptr) return;
  report->name = tensor.spec.name;
  report->weight_norm = std::sqrt(all.weight);
  report->delta_norm = std::sqrt(all.delta);
  report->survived = all.delta > 0 ? all.product / all.delta : 1;
  report->rounding_error = std::sqrt(all.error);
  report->n_changed = all.n_changed;
}

namespace {

/// `x` moved to a neighbour on the grid of `dtype`, up or down by a draw `u` in [0, 1). An f32 sum stands exactly on
/// its grid, so it moves by up to one step either way.
float round_at_random(StoredDType dtype, float x, double u) {
  const int exponent = std::max(std::ilogb(x == 0 ? 1e-30f : x), dtype == StoredDType::f16 ? -14 : -126);
  const int precision = dtype == StoredDType::f32 ? 23 : dtype == StoredDType::bf16 ? 7 : 10;
  const double spacing = std::ldexp(1.0, exponent - precision);
  if (dtype == StoredDType::f32) return static_cast<float>(x + (u < 0.5 ? -spacing : spacing));
  const double below = std::floor(x / spacing) * spacing;
  return static_cast<float>(u < (x - below) / spacing ? below + spacing : below);
}

}  // namespace

std::vector<std::byte> MergedTensors::rounded_at_random(const SourceTensor& tensor, uint64_t seed) const {
  const StoredDType dtype = tensor.spec.dtype;
  std::vector<std::byte> out(tensor.spec.bytes());
  const auto nothing = [](const Block&) {};
  for_rows(
      tensor, nothing,
      [&](const Block&, const Row& row) {
        const auto n = row.sum.size(), begin = static_cast<size_t>(row.index) * n;
        std::byte* to = &out[begin * static_cast<size_t>(bytes_of(dtype))];
        round_to(dtype, row.sum, to);
        std::vector<float> neighbours(n);
        for (size_t i = 0; i < n; ++i) {
          const float moved = round_at_random(dtype, row.sum[i], uniform(seed, begin + i));
          neighbours[i] = std::isfinite(moved) ? moved : value_of(dtype, to + i * static_cast<size_t>(bytes_of(dtype)));
        }
        round_to(dtype, neighbours, to);
      },
      nothing);
  return out;
}

}  // namespace saaz
