// Merging a full-size E4B (random bf16 weights, LoRA r 8 on the MLP) against copying its files: both read the base from
// the disk, write as much, and sync. Takes 28 GB below FOLDER.
//   bench_merge_speed FOLDER
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <map>
#include <random>

#include "backend/plan.h"
#include "base/value.h"
#include "checkpoint/shard_writer.h"
#include "lora/lora.h"
#include "publish/merged_tensors.h"

namespace saaz {
namespace {

constexpr const char* kPrefix = "model.";

/// Learns from the model's own loading which tensors a checkpoint holds; there are no values.
class NameCollector final : public WeightSource {
 public:
  mutable std::vector<TensorSpec> specs;

  std::string path() const override { return "names"; }
  bool has(const std::string&) const override { return true; }
  Weight matrix(const std::string& name, int64_t n_out, int64_t n_in) const override {
    specs.push_back({kPrefix + name, StoredDType::bf16, {n_out, n_in}});
    return {.format = WeightFormat::bf16, .n_out = n_out, .n_in = n_in, .data = &specs};
  }
  std::vector<float> vector(const std::string& name, int64_t n) const override {
    specs.push_back({kPrefix + name, StoredDType::bf16, {n}});
    return std::vector<float>(static_cast<size_t>(n), 1.0f);
  }
  std::string module_prefix() const override { return kPrefix; }
  DType base_dtype() const override { return DType::bf16; }
  std::vector<SourceTensor> tensors() const override { return {}; }
  void read(const SourceTensor&, int64_t, int64_t, float*) const override {}
  Bytes raw(const SourceTensor&) const override { return {}; }
};

std::vector<TensorSpec> checkpoint_specs() {
  BaseModel base;
  base.config = default_config(Family::gemma3n);
  validate(base.config, "E4B");
  auto names = std::make_unique<NameCollector>();
  const NameCollector& collected = *names;
  base.weights = std::move(names);
  PlanBackend plan;
  load_model(plan, base, {.scheme = QuantScheme::none, .max_positions = 16});
  std::map<std::string, TensorSpec> unique;
  for (const TensorSpec& spec : collected.specs) unique.emplace(spec.name, spec);
  std::vector<TensorSpec> out;
  for (auto& [name, spec] : unique) out.push_back(std::move(spec));
  return out;
}

void write_base(const fs::path& folder) {
  fs::create_directories(folder);
  write_file_atomically(folder / "config.json", to_json(to_config_json(default_config(Family::gemma3n))));
  std::vector<uint16_t> pool(32 << 20);
  std::mt19937 draw(1);
  for (uint16_t& value : pool) value = f32_to_bf16((static_cast<float>(draw() & 0xffff) * 0x1p-16f - 0.5f) * 0.08f);
  write_shards(folder, plan_shards(checkpoint_specs(), 5'000'000'000), {{"format", "pt"}},
               [&](const TensorSpec& spec, const ByteSink& sink) {
                 for (uint64_t left = spec.bytes(); left > 0;) {
                   const uint64_t n = std::min<uint64_t>(left, pool.size() * 2);
                   sink(std::as_bytes(std::span(pool)).first(n));
                   left -= n;
                 }
               });
}

/// The shards of a folder; none of their bytes is in memory afterwards.
std::vector<fs::path> cold_shards(const fs::path& folder) {
  std::vector<fs::path> out;
  for (const fs::path& path : list_directory(folder)) {
    if (path.extension() != ".safetensors") continue;
    const int fd = open(path.c_str(), O_RDONLY);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    close(fd);
    out.push_back(path);
  }
  return out;
}

template <class Body>
double seconds_of(Body&& body) {
  const double began = monotonic_seconds();
  body();
  return monotonic_seconds() - began;
}

std::unique_ptr<Adapter> random_adapter(Backend& backend, Model& model) {
  auto adapter = Adapter::create(
      backend, model, {.targets = std::vector<std::string>{"gate_proj", "up_proj", "down_proj"}, .r = 8, .alpha = 16},
      1);
  std::mt19937 draw(2);
  for (const Adapter::Module& module : adapter->modules()) {
    std::vector<float> b(static_cast<size_t>(module.pair.b.size()));
    for (float& value : b) value = static_cast<float>(draw() & 0xffff) * 0x1p-26f;
    backend.upload(module.pair.b, b.data());
  }
  return adapter;
}

int run(const fs::path& folder) {
  if (!fs::exists(folder / "base")) write_base(folder / "base");
  const std::unique_ptr<Backend> backend = make_cpu_backend({});
  const BaseModel base = open_base_model(folder / "base");
  const std::unique_ptr<Model> model = load_model(*backend, base, {.scheme = QuantScheme::none, .max_positions = 16});
  const std::unique_ptr<Adapter> adapter = random_adapter(*backend, *model);
  const MergedTensors merged(*backend, *base.weights, *adapter, {});
  std::map<std::string, const SourceTensor*> by_name;
  std::vector<TensorSpec> specs;
  double bytes = 0;
  for (const SourceTensor& tensor : merged.tensors()) {
    specs.push_back(tensor.spec);
    by_name[tensor.spec.name] = &tensor;
    bytes += static_cast<double>(tensor.spec.bytes());
  }
  const fs::path out = folder / "out";
  for (int round = 0; round < 3; ++round) {
    fs::remove_all(out);
    fs::create_directories(out);
    base.weights->release_pages();
    std::vector<fs::path> shards = cold_shards(folder / "base");
    const double copied = seconds_of([&] {
      for (const fs::path& shard : shards) copy_file_atomically(shard, out / shard.filename());
    });
    fs::remove_all(out);
    fs::create_directories(out);
    cold_shards(folder / "base");
    const double written = seconds_of([&] {
      write_shards(
          out, plan_shards(specs, 5'000'000'000), {{"format", "pt"}},
          [&](const TensorSpec& spec, const ByteSink& sink) { merged.produce(*by_name.at(spec.name), sink, nullptr); });
    });
    fmt::print("{:.1f} GB: copied in {:.1f} s ({:.2f} GB/s), merged in {:.1f} s ({:.2f} GB/s): {:.2f} of the copy\n",
               bytes * 1e-9, copied, bytes * 1e-9 / copied, written, bytes * 1e-9 / written, copied / written);
  }
  fs::remove_all(out);
  return 0;
}

}  // namespace
}  // namespace saaz

int main(int argc, char** argv) {
  if (argc != 2) return fmt::print(stderr, "usage: bench_merge_speed FOLDER\n"), 2;
  try {
    return saaz::run(argv[1]);
  } catch (const std::exception& error) {
    return fmt::print(stderr, "{}\n", error.what()), 1;
  }
}
