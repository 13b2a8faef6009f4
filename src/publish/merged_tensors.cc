#include "publish/merged_tensors.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/check.h"

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

constexpr int64_t kBlockElements = 1 << 20;  // elements held at once; a multiple of every format's block

/// SplitMix64 (Steele, Lea and Flood 2014): a hash of the counter, so that element i draws the same whatever came
/// before.
double uniform(uint64_t seed, uint64_t i) {
  uint64_t z = seed + (i + 1) * 0x9e3779b97f4a7c15ull;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ z >> 27) * 0x94d049bb133111ebull;
  return static_cast<double>((z ^ z >> 31) >> 11) * 0x1p-53;
}

}  // namespace

bool is_quantised_module(const std::string& canonical) {
  for (const char* name : {".q_proj.weight", ".k_proj.weight", ".v_proj.weight", ".o_proj.weight", ".gate_proj.weight",
                           ".up_proj.weight", ".down_proj.weight"})
    if (canonical.ends_with(name)) return true;
  return false;
}

void round_to(StoredDType dtype, std::span<const float> values, std::vector<std::byte>& out) {
  out.resize(values.size() * static_cast<size_t>(bytes_of(dtype)));
  if (dtype == StoredDType::f32) {
    std::memcpy(out.data(), values.data(), out.size());
    return;
  }
  auto* halves = reinterpret_cast<uint16_t*>(out.data());
  for (size_t i = 0; i < values.size(); ++i)
    halves[i] = dtype == StoredDType::bf16 ? f32_to_bf16(values[i]) : f32_to_f16(values[i]);
}

MergedTensors::MergedTensors(Backend& backend, const WeightSource& base, const Adapter& adapter,
                             const MergeOptions& options)
    : base_(base), options_(options), tensors_(base.tensors()) {
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

void MergedTensors::for_row_blocks(const SourceTensor& tensor,
                                   const std::function<void(int64_t, const Rows&)>& each) const {
  const auto found = modules_.find(tensor.canonical);
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
  // Whole rows, so many that a block starts at a multiple of 256 elements whatever the row length.
  const int64_t rows_at_once = std::max<int64_t>(256, kBlockElements / std::max<int64_t>(1, n_in) / 256 * 256);
  Rows rows;
  for (int64_t first = 0; first < n_out; first += rows_at_once) {
    const int64_t count = std::min(rows_at_once, n_out - first);
    rows.weight.resize(static_cast<size_t>(count * n_in));
    if (nf4) {
      dequantise(nf4->view(), first * n_in, count * n_in, rows.weight.data());
    } else {
      base_.read(tensor, first * n_in, count * n_in, rows.weight.data());
    }
    rows.sum = rows.weight;
    if (found != modules_.end()) {
      const Delta& delta = found->second;
      std::vector<float> product(static_cast<size_t>(n_in));
      for (int64_t o = 0; o < count; ++o) {
        std::fill(product.begin(), product.end(), 0.0f);
        for (int64_t j = 0; j < delta.r; ++j) {
          const float b = delta.b[static_cast<size_t>((first + o) * delta.r + j)];
          const float* a = &delta.a[static_cast<size_t>(j * n_in)];
          for (int64_t i = 0; i < n_in; ++i) product[static_cast<size_t>(i)] += b * a[i];
        }
        float* sum = &rows.sum[static_cast<size_t>(o * n_in)];
        for (int64_t i = 0; i < n_in; ++i) sum[i] += delta.scaling * product[static_cast<size_t>(i)];
      }
    }
    each(first, rows);
  }
}

void MergedTensors::produce(const SourceTensor& tensor, const ByteSink& sink, ModuleReport* report) const {
  if (passes_through(tensor)) return sink(base_.raw(tensor));
  const StoredDType dtype = tensor.spec.dtype;
  check(is_float(dtype), ExitCode::bad_input, "{}: tensor '{}' is {}, which cannot be merged or converted",
        base_.path(), tensor.spec.name, name_of(dtype));
  std::vector<std::byte> merged, unmerged;
  double weight = 0, delta = 0, product = 0, error = 0;
  for_row_blocks(tensor, [&](int64_t, const Rows& rows) {
    round_to(dtype, rows.sum, merged);
    const auto step = static_cast<size_t>(bytes_of(dtype));
    if (report != nullptr) round_to(dtype, rows.weight, unmerged);
    for (size_t i = 0; i < rows.sum.size(); ++i) {
      const float written = value_of(dtype, &merged[i * step]);
      check(std::isfinite(written), ExitCode::verification,
            "merge: tensor '{}' has a value ({}) that {} cannot hold; choose another dtype", tensor.spec.name,
            rows.sum[i], name_of(dtype));
      if (report == nullptr) continue;
      const double before = value_of(dtype, &unmerged[i * step]), d = static_cast<double>(rows.sum[i]) - rows.weight[i],
                   kept = written - before;
      weight += static_cast<double>(rows.weight[i]) * rows.weight[i];
      delta += d * d;
      product += kept * d;
      error += (kept - d) * (kept - d);
      report->n_changed += written != static_cast<float>(before);
    }
    sink(merged);
  });
  if (report == nullptr) return;
  report->name = tensor.spec.name;
  report->weight_norm = std::sqrt(weight);
  report->delta_norm = std::sqrt(delta);
  report->survived = delta > 0 ? product / delta : 1;
  report->rounding_error = std::sqrt(error);
}

std::vector<std::byte> MergedTensors::rounded_at_random(const SourceTensor& tensor, uint64_t seed) const {
  const StoredDType dtype = tensor.spec.dtype;
  std::vector<std::byte> out, part;
  std::vector<float> neighbour;
  uint64_t counter = 0;
  for_row_blocks(tensor, [&](int64_t, const Rows& rows) {
    neighbour.resize(rows.sum.size());
    round_to(dtype, rows.sum, part);
    const auto step = static_cast<size_t>(bytes_of(dtype));
    for (size_t i = 0; i < rows.sum.size(); ++i) {
      const float x = rows.sum[i], nearest = value_of(dtype, &part[i * step]);
      // The grid's spacing at x; an f32 sum stands exactly on its grid, so it moves by up to one step either way.
      const int exponent = std::max(std::ilogb(x == 0 ? 1e-30f : x), dtype == StoredDType::f16 ? -14 : -126);
      const int precision = dtype == StoredDType::f32 ? 23 : dtype == StoredDType::bf16 ? 7 : 10;
      const double spacing = std::ldexp(1.0, exponent - precision), u = uniform(seed, counter++);
      if (dtype == StoredDType::f32) {
        neighbour[i] = static_cast<float>(x + (u < 0.5 ? -spacing : spacing));
      } else {
        const double below = std::floor(x / spacing) * spacing;
        neighbour[i] = static_cast<float>(u < (x - below) / spacing ? below + spacing : below);
      }
      if (!std::isfinite(neighbour[i])) neighbour[i] = nearest;
    }
    round_to(dtype, neighbour, part);
    out.insert(out.end(), part.begin(), part.end());
  });
  return out;
}

}  // namespace saaz
