#include "publish/merge.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "backend/plan.h"
#include "base/check.h"
#include "base/stop.h"
#include "checkpoint/shard_writer.h"
#include "checkpoint/tensor_set.h"
#include "model/pass.h"
#include "publish/probes.h"
#include "report/model_card.h"

namespace saaz {

namespace {

constexpr uint64_t kNoiseSeed = 3407;
constexpr const char* kCertificateFile = "merge_certificate.json";

/// A source whose named matrices are replaced by buffers it owns.
class OverlaySource final : public WeightSource {
 public:
  explicit OverlaySource(std::unique_ptr<WeightSource> below) : below_(std::move(below)) {}
  void replace(const std::string& canonical, StoredDType dtype, std::vector<std::byte> bytes) {
    replaced_[canonical] = {dtype, std::move(bytes)};
  }

  std::string path() const override { return below_->path(); }
  bool has(const std::string& name) const override { return below_->has(name); }
  Weight matrix(const std::string& name, int64_t n_out, int64_t n_in) const override {
    const auto found = replaced_.find(name);
    if (found == replaced_.end()) return below_->matrix(name, n_out, n_in);
    return dense_weight(
        Tensor(const_cast<std::byte*>(found->second.bytes.data()), *dense_dtype(found->second.dtype), {n_out, n_in}));
  }
  std::vector<float> vector(const std::string& name, int64_t n) const override { return below_->vector(name, n); }
  void check_values(const std::string& name) const override { below_->check_values(name); }
  void release_pages() const override { below_->release_pages(); }
  std::string module_prefix() const override { return below_->module_prefix(); }
  DType base_dtype() const override { return below_->base_dtype(); }
  std::vector<SourceTensor> tensors() const override { return below_->tensors(); }
  void read(const SourceTensor& tensor, int64_t begin, int64_t n, float* out) const override {
    below_->read(tensor, begin, n, out);
  }
  Bytes raw(const SourceTensor& tensor) const override { return below_->raw(tensor); }

 private:
  struct Buffer {
    StoredDType dtype;
    std::vector<std::byte> bytes;
  };
  std::unique_ptr<WeightSource> below_;
  std::map<std::string, Buffer> replaced_;
};

/// The base, the adapter on it, and what a merge of them must be.
struct Inputs {
  BaseModel base;
  std::unique_ptr<Model> model;
  std::unique_ptr<Adapter> adapter;
  std::unique_ptr<MergedTensors> merged;
};

constexpr int64_t kProbePositions = 512;

Inputs open_inputs(Backend& backend, const fs::path& base, const fs::path& adapter, const MergeOptions& options) {
  Inputs in;
  in.base = open_base_model(base);
  const bool deq4 = options.base == MergeBase::deq4;
  const LoadOptions load{.scheme = deq4 ? QuantScheme::nf4 : QuantScheme::none,
                         .double_quant = options.double_quant,
                         .max_positions = kProbePositions,
                         .ends_at_stop = true};
  in.model = load_model(backend, in.base, load);
  in.adapter = with_context("while loading adapter '" + adapter.string() + "'",
                            [&] { return Adapter::load(backend, *in.model, adapter, ForTraining::no); });
  in.merged = std::make_unique<MergedTensors>(backend, *in.base.weights, *in.adapter, options);
  return in;
}

StoredDType output_dtype(const MergedTensors& merged) {
  for (const SourceTensor& tensor : merged.tensors())
    if (merged.is_merged(tensor)) return tensor.spec.dtype;
  fail(ExitCode::bug, "merge: no merged tensor");
}

/// Logits of one probe under a model.
std::vector<float> probe_logits(Backend& backend, const Model& model, const std::vector<int32_t>& ids) {
  check_stop();
  const std::vector<int64_t> starts = {0, static_cast<int64_t>(ids.size())};
  const Batch batch = packed_batch(ids, starts);
  PlanBackend plan(backend);
  PassMemory measured;
  logits_pass(plan, measured, model, batch, nullptr, batch.positions);
  PassMemory memory(backend, measured.work().peak(), measured.store().peak());
  return logits_pass(backend, memory, model, batch, nullptr, batch.positions);
}

struct SumOfSquares {
  double sum = 0, largest = 0;
  int64_t n = 0;
  void add(const std::vector<float>& a, const std::vector<float>& b) {
    for (size_t i = 0; i < a.size(); ++i) {
      const double d = static_cast<double>(a[i]) - b[i];
      sum += d * d;
      largest = std::max(largest, std::isnan(d) ? HUGE_VAL : std::fabs(d));
    }
    n += static_cast<int64_t>(a.size());
  }
  double rms() const {
    return n == 0 ? 0 : std::isfinite(largest) ? std::sqrt(sum / static_cast<double>(n)) : HUGE_VAL;
  }
};

/// How much more than the noise of one random rounding the gap may be. 16-bit: rounding to nearest errs by 1/sqrt(2) of
/// a random rounding's root mean square, so 4 leaves a factor above 5. f32: the weights' rounding is one of the dozens
/// of roundings each token passes in either model, so 64.
double noise_factor(StoredDType dtype) { return dtype == StoredDType::f32 ? 64 : 4; }

LogitGap measure_gap(Backend& backend, Inputs& in, const fs::path& folder, double survived) {
  const BaseModel merged_base = open_base_model(folder);
  const LoadOptions load{.scheme = QuantScheme::none, .max_positions = kProbePositions, .ends_at_stop = true};
  const std::unique_ptr<Model> merged = load_model(backend, merged_base, load);
  BaseModel noisy_base = open_base_model(folder);
  auto overlay = std::make_unique<OverlaySource>(std::move(noisy_base.weights));
  for (const SourceTensor& tensor : in.merged->tensors())
    if (in.merged->is_merged(tensor))
      overlay->replace(tensor.canonical, tensor.spec.dtype, in.merged->rounded_at_random(tensor, kNoiseSeed));
  noisy_base.weights = std::move(overlay);
  const std::unique_ptr<Model> noisy = load_model(backend, noisy_base, load);

  LogitGap gap;
  SumOfSquares merged_gap, adapter_gap, noise;
  int64_t same = 0;
  const auto vocab = static_cast<std::ptrdiff_t>(in.base.config.vocab_size);
  for (const std::vector<int32_t>& ids : probe_ids(in.base)) {
    in.adapter->detach();
    const std::vector<float> base = probe_logits(backend, *in.model, ids);
    in.adapter->attach();
    const std::vector<float> adapted = probe_logits(backend, *in.model, ids),
                             after = probe_logits(backend, *merged, ids);
    noise.add(after, probe_logits(backend, *noisy, ids));
    merged_gap.add(adapted, after);
    adapter_gap.add(base, adapted);
    for (auto a = adapted.begin(), b = after.begin(); a != adapted.end(); a += vocab, b += vocab)
      same += std::max_element(a, a + vocab) - a == std::max_element(b, b + vocab) - b;
    gap.n_tokens += static_cast<int64_t>(ids.size());
  }
  in.adapter->detach();
  gap.merged = merged_gap.rms();
  gap.largest = merged_gap.largest;
  gap.adapter = adapter_gap.rms();
  gap.noise = noise.rms();
  gap.same_top = static_cast<double>(same) / static_cast<double>(gap.n_tokens);
  // Rounding moves the logits at random (noise) and, where the change is below half a unit in the last place, undoes it
  // (1 - survived).
  gap.bound = noise_factor(output_dtype(*in.merged)) * gap.noise + std::fabs(1 - survived) * gap.adapter;
  return gap;
}

/// Share of the whole change that survives rounding, over all modules.
double survived_overall(const std::vector<ModuleReport>& modules) {
  double kept = 0, all = 0;
  for (const ModuleReport& m : modules) {
    kept += m.survived * m.delta_norm * m.delta_norm;
    all += m.delta_norm * m.delta_norm;
  }
  return all > 0 ? kept / all : 1;
}

/// Compares the file's bytes with what they must be and fills in the reports, then the logits.
Certificate prove(Backend& backend, Inputs& in, const fs::path& folder, const MergeOptions& options) {
  Certificate c;
  c.folder = folder.string();
  c.merge_base = options.base;
  c.dtype = name_of(output_dtype(*in.merged));
  c.n_adapter_modules = in.adapter->modules().size();
  const TensorSet written = TensorSet::open(folder);
  int64_t n_changed = 0;
  for (const SourceTensor& tensor : in.merged->tensors()) {
    ++c.n_tensors;
    const TensorEntry& entry = written.at(tensor.spec.name);
    if (entry.shape != tensor.spec.shape || entry.dtype != tensor.spec.dtype) {
      c.failures.push_back(fmt::format("tensor '{}' is {} {}, expected {} {}", entry.name, name_of(entry.dtype),
                                       shape_text(entry.shape), name_of(tensor.spec.dtype),
                                       shape_text(tensor.spec.shape)));
      continue;
    }
    ModuleReport report;
    const bool merged = in.merged->is_merged(tensor);
    size_t at = 0;
    bool equal = true;
    in.merged->produce(
        tensor,
        [&](Bytes bytes) {
          equal = equal && at + bytes.size() <= entry.data.size() &&
                  std::memcmp(entry.data.data() + at, bytes.data(), bytes.size()) == 0;
          at += bytes.size();
        },
        merged ? &report : nullptr);
    if (!equal)
      c.failures.push_back(fmt::format("tensor '{}' in the folder is not the merge of base and adapter", entry.name));
    c.n_passed_through += !merged;
    n_changed += report.n_changed;
    if (merged) c.modules.push_back(report);
  }
  if (written.tensors().size() != in.merged->tensors().size())
    c.failures.push_back(fmt::format("the folder holds {} tensors, the merge {}", written.tensors().size(),
                                     in.merged->tensors().size()));
  if (n_changed == 0)
    c.failures.push_back("the written weights equal the base's: the adapter changes nothing that survives rounding");
  c.gap = measure_gap(backend, in, folder, survived_overall(c.modules));
  if (!(c.gap.merged <= c.gap.bound))
    c.failures.push_back(fmt::format("logit gap {:.3g} exceeds the {:.3g} that rounding to {} explains", c.gap.merged,
                                     c.gap.bound, c.dtype));
  for (const fs::path& file : list_directory(folder)) {
    check_stop();
    if (fs::is_regular_file(file) && file.filename() != kCertificateFile)
      c.file_hashes.emplace_back(file.filename().string(), sha256_of_file(file));
  }
  std::sort(c.file_hashes.begin(), c.file_hashes.end());
  return c;
}

}  // namespace

Certificate merge_adapter(Backend& backend, const fs::path& base, const fs::path& adapter, const fs::path& out,
                          const MergeOptions& options) {
  check(!fs::exists(out) || (fs::is_directory(out) && fs::is_empty(out)), ExitCode::in_use,
        "{} exists and is not empty: choose another output folder", printable(out.string()));
  Inputs in = open_inputs(backend, base, adapter, options);
  AtomicFolder folder(out);
  write_side_files(in.base, output_dtype(*in.merged), folder.partial());
  std::map<std::string, const SourceTensor*> by_name;
  std::vector<TensorSpec> specs;
  for (const SourceTensor& tensor : in.merged->tensors()) {
    specs.push_back(tensor.spec);
    by_name[tensor.spec.name] = &tensor;
  }
  write_shards(
      folder.partial(), plan_shards(specs, options.max_shard_bytes), {{"format", "pt"}},
      [&](const TensorSpec& spec, const ByteSink& sink) { in.merged->produce(*by_name.at(spec.name), sink, nullptr); });
  Certificate certificate = prove(backend, in, folder.partial(), options);
  certificate.base = fs::absolute(base).lexically_normal().string();
  certificate.adapter = fs::absolute(adapter).lexically_normal().string();
  certificate.folder = out.string();
  if (!certificate.passed()) return certificate;
  check_stop();
  write_merged_card(adapter, certificate.to_value(), folder.partial());
  write_file_atomically(folder.partial() / kCertificateFile, to_json(certificate.to_value(), 2) + "\n");
  folder.commit();
  return certificate;
}

Certificate verify_merge(Backend& backend, const fs::path& folder, const fs::path& base, const fs::path& adapter,
                         const MergeOptions& options) {
  Inputs in = open_inputs(backend, base, adapter, options);
  Certificate certificate = prove(backend, in, folder, options);
  certificate.base = base.string();
  certificate.adapter = adapter.string();
  const Value stored = read_certificate(folder);
  if (stored.is_null()) return certificate;
  const Value* hashes = stored.find("files");
  check(hashes != nullptr && hashes->is_object(), ExitCode::bad_input, "{}: no object 'files'",
        (folder / kCertificateFile).string());
  for (const auto& [name, hash] : hashes->members()) {
    const auto found = std::find_if(certificate.file_hashes.begin(), certificate.file_hashes.end(),
                                    [&](const auto& f) { return f.first == name; });
    if (found == certificate.file_hashes.end()) {
      certificate.failures.push_back(fmt::format("file '{}' is missing", printable(name)));
    } else if (!hash.is_string() || found->second != hash.as_string()) {
      certificate.failures.push_back(fmt::format("file '{}' has changed since the merge", printable(name)));
    }
  }
  return certificate;
}

Value read_certificate(const fs::path& folder) {
  const fs::path path = folder / kCertificateFile;
  if (!fs::exists(path)) return {};
  return parse_json(read_file(path, 64 << 20), path.string());
}

MergeRecord read_merge_record(const fs::path& folder) {
  const fs::path path = folder / kCertificateFile;
  std::error_code error;
  check(fs::exists(path, error), ExitCode::bad_input,
        "'{}' is no merged folder: expected one that 'saaz merge' wrote, with {}; give that, or name --base and "
        "--adapter of a merged model",
        printable(folder.string()), kCertificateFile);
  const Value record = parse_json(read_file(path, 64 << 20), path.string());
  const auto text = [&](const char* key) -> const std::string& {
    const Value* value = record.find(key);
    check(value != nullptr && value->is_string(), ExitCode::bad_input, "{}: no text '{}'", path.string(), key);
    return value->as_string();
  };
  MergeRecord out{text("base"), text("adapter"), {}};
  out.options.base = text("merge_base") == "deq4" ? MergeBase::deq4 : MergeBase::w16;
  out.options.dtype = find_stored_dtype(text("dtype"));
  check(out.options.dtype.has_value(), ExitCode::bad_input, "{}: unknown dtype '{}'", path.string(),
        printable(text("dtype")));
  return out;
}

}  // namespace saaz
