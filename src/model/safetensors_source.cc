// A base model in Hugging Face's form: a folder with config.json and safetensors, dense or quantised by bitsandbytes.
#include <algorithm>

#include "base/check.h"
#include "checkpoint/bitsandbytes.h"
#include "checkpoint/tensor_set.h"
#include "model/weight_source.h"

namespace saaz {

namespace {

class SafetensorsSource final : public WeightSource {
 public:
  explicit SafetensorsSource(const fs::path& folder)
      : tensors_(TensorSet::open(folder)), quantised_(tensors_.tensors()) {
    for (const char* prefix : {"model.language_model.", "language_model.model.", "model.", ""})
      if (tensors_.find(std::string(prefix) + "embed_tokens.weight") != nullptr) {
        prefix_ = prefix;
        return;
      }
    fail(ExitCode::bad_input,
         "{}: no tensor 'embed_tokens.weight' under any known prefix: is this a Gemma 3 or Gemma 3n checkpoint?",
         path());
  }

  std::string path() const override { return tensors_.path(); }
  bool has(const std::string& name) const override { return find(name) != nullptr; }

  Weight matrix(const std::string& name, int64_t n_out, int64_t n_in) const override {
    if (const BitsandbytesMatrices::Matrix* matrix = find_quantised(name)) {
      const Weight& w = matrix->weight;
      check(w.n_out == n_out && w.n_in == n_in, ExitCode::bad_input,
            "{}: quantised tensor '{}{}' has shape [{}, {}], config.json asks for [{}, {}]", path(), prefix_, name,
            w.n_out, w.n_in, n_out, n_in);
      return w;
    }
    return to_weight(checked(name, {n_out, n_in}));
  }

  std::vector<float> vector(const std::string& name, int64_t n) const override {
    const Tensor values = to_tensor(checked(name, {n}));
    std::vector<float> out(static_cast<size_t>(n));
    dequantise(dense_weight(Tensor(values.data, values.dtype, {1, n})), 0, n, out.data());
    return out;
  }

  void check_values(const std::string& name) const override {
    // The per-layer embedding table of a full-size model is read by rows; scanning it would read gigabytes.
    constexpr size_t kScanLimit = size_t{4} << 30, kPiece = size_t{16} << 20;
    const TensorEntry* entry = find(name);
    if (entry == nullptr || entry->data.size() > kScanLimit) return;
    TensorEntry piece = *entry;
    int64_t bad = 0;
    for (Bytes rest = piece.data; !rest.empty(); rest = rest.subspan(piece.data.size())) {
      piece.data = rest.first(std::min(kPiece, rest.size()));
      bad += count_non_finite(piece);
      if (rest.size() > kPiece) release_pages();
    }
    check(bad == 0, ExitCode::bad_input, "{}: tensor '{}' holds {} non-finite values: the file is damaged", piece.file,
          piece.name, bad);
  }
  void release_pages() const override { tensors_.release_pages(); }

  DType base_dtype() const override {
    const auto dtype = dense_dtype(find("embed_tokens.weight")->dtype);
    return dtype == DType::f32 ? DType::f32 : DType::bf16;
  }

  /// The legacy prefix is written the way current Hugging Face names the modules.
  std::string module_prefix() const override {
    return prefix_ == "language_model.model." ? "model.language_model." : prefix_.empty() ? "model." : prefix_;
  }

  std::vector<SourceTensor> tensors() const override {
    std::vector<SourceTensor> out;
    for (const TensorEntry* entry : tensors_.tensors()) {
      if (quantised_.is_part(entry->name) || (entry->name.ends_with("lm_head.weight") && !has_untied_head())) continue;
      const bool text = entry->name.starts_with(prefix_) || entry->name.ends_with("lm_head.weight");
      const bool tower = prefix_ == "model." && entry->name.starts_with("model.vision");
      out.push_back({logical_spec(*entry), text && !tower ? canonical(entry->name) : ""});
    }
    return out;
  }

  void read(const SourceTensor& tensor, int64_t begin, int64_t n, float* out) const override {
    if (const BitsandbytesMatrices::Matrix* matrix = quantised_.find(tensor.spec.name))
      return dequantise(matrix->weight, begin, n, out);
    const TensorEntry& entry = tensors_.at(tensor.spec.name);
    const auto dtype = dense_dtype(entry.dtype);
    check(dtype.has_value(), ExitCode::bad_input, "{}: tensor '{}' is {}, a float type was expected", entry.file,
          entry.name, name_of(entry.dtype));
    const int64_t size = static_cast<int64_t>(entry.data.size()) / size_of(*dtype);
    Tensor flat(const_cast<std::byte*>(entry.data.data()), *dtype, {1, size});
    dequantise(dense_weight(flat), begin, n, out);
  }

  Bytes raw(const SourceTensor& tensor) const override {
    if (quantised_.find(tensor.spec.name) != nullptr) return {};
    return tensors_.at(tensor.spec.name).data;
  }

 private:
  /// A stored head that equals the embedding is the tied one.
  bool has_untied_head() const {
    const TensorEntry *head = find("lm_head.weight"), *table = find("embed_tokens.weight");
    return head != nullptr && !std::equal(head->data.begin(), head->data.end(), table->data.begin(), table->data.end());
  }
  std::string canonical(const std::string& name) const {
    return name.ends_with("lm_head.weight") ? "lm_head.weight" : name.substr(prefix_.size());
  }

  /// The matrix as it was before it was quantised; any other tensor as it is. int8 does not say its dtype: the base's.
  TensorSpec logical_spec(const TensorEntry& entry) const {
    const BitsandbytesMatrices::Matrix* matrix = quantised_.find(entry.name);
    if (matrix == nullptr) return entry.spec();
    const bool is_int8 = matrix->weight.format == WeightFormat::int8;
    return {entry.name,
            is_int8 ? find("embed_tokens.weight")->dtype : matrix->dtype,
            {matrix->weight.n_out, matrix->weight.n_in}};
  }

  const BitsandbytesMatrices::Matrix* find_quantised(const std::string& name) const {
    const TensorEntry* entry = find(name);
    return entry == nullptr ? nullptr : quantised_.find(entry->name);
  }

  const TensorEntry* find(const std::string& name) const {
    if (name != "lm_head.weight") return tensors_.find(prefix_ + name);
    const TensorEntry* head = tensors_.find(name);
    return head != nullptr ? head : tensors_.find("language_model." + name);
  }

  const TensorEntry& checked(const std::string& name, const std::vector<int64_t>& shape) const {
    const TensorEntry* entry = find(name);
    check(entry != nullptr, ExitCode::bad_input, "{} has no tensor '{}{}': the checkpoint does not fit its config.json",
          path(), prefix_, name);
    check(entry->shape == shape, ExitCode::bad_input, "{}: tensor '{}' has shape {}, config.json asks for {}",
          entry->file, entry->name, shape_text(entry->shape), shape_text(shape));
    return *entry;
  }

  TensorSet tensors_;
  BitsandbytesMatrices quantised_;
  std::string prefix_;
};

}  // namespace

namespace {

/// bitsandbytes' own form is read; which matrices it covers is told by their tensors.
void check_quantization_config(const Value& config, const std::string& source) {
  const Value* quantization = config.find("quantization_config");
  if (quantization == nullptr || quantization->is_null()) return;
  const auto is_true = [&](const char* key) {
    const Value* value = quantization->find(key);
    return value != nullptr && value->is_bool() && value->as_bool();
  };
  const Value* method = quantization->find("quant_method");
  const bool is_bitsandbytes = method != nullptr ? method->is_string() && method->as_string() == "bitsandbytes"
                                                 : is_true("load_in_4bit") || is_true("load_in_8bit");
  check(is_bitsandbytes, ExitCode::bad_input,
        "{}: this checkpoint is stored quantised by '{}', which cannot be read: use the 16-bit checkpoint it was made "
        "from, or one that bitsandbytes quantised",
        source, method != nullptr && method->is_string() ? printable(method->as_string()) : "an unnamed method");
}

}  // namespace

std::unique_ptr<WeightSource> open_safetensors_source(const fs::path& folder) {
  return std::make_unique<SafetensorsSource>(folder);
}

namespace {

void check_is_model_folder(const fs::path& path) {
  std::error_code error;
  const std::string name = printable(path.string());
  constexpr const char* kExpected = "a folder with config.json and safetensors, or a .gguf file";
  check(fs::exists(path, error), ExitCode::bad_input, "model '{}' does not exist: give {}", name, kExpected);
  check(fs::is_directory(path, error), ExitCode::bad_input, "'{}' is a file and no model: give {}", name, kExpected);
  check(fs::exists(path / "config.json", error) || error, ExitCode::bad_input,
        "'{}' is no model: it holds no config.json; give {}", name, kExpected);
}

}  // namespace

BaseModel open_base_model(const fs::path& path) {
  BaseModel base;
  base.path = path;
  if (path.extension() == ".gguf") {
    base.is_gguf = true;
    base.weights = open_gguf_source(path, &base.config);
    return base;
  }
  check_is_model_folder(path);
  const fs::path config_path = path / "config.json";
  const Value json = parse_json(read_file(config_path, 16 << 20), config_path.string());
  check_quantization_config(json, config_path.string());
  base.config = parse_model_config(json, config_path.string());
  base.weights = open_safetensors_source(path);
  return base;
}

}  // namespace saaz
