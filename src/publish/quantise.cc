// The header of a safetensors file comes before its data, and a quantised matrix's state is part of it. So each matrix
// is quantised twice: once for its small parts, which are kept, and once when its codes are written.
#include "publish/quantise.h"

#include <cmath>
#include <map>
#include <variant>

#include "base/check.h"
#include "base/stop.h"
#include "checkpoint/bitsandbytes.h"
#include "checkpoint/shard_writer.h"
#include "publish/merge.h"
#include "publish/merged_tensors.h"

namespace saaz {

namespace {

/// The tensors of the folder to be written, in the order of the base, each quantised matrix as its parts.
class QuantisedTensors {
 public:
  QuantisedTensors(const BaseModel& base, const QuantiseOptions& options) : source_(*base.weights), options_(options) {
    for (const SourceTensor& tensor : source_.tensors()) {
      check_stop();
      sources_.emplace(tensor.spec.name, tensor);
      if (is_quantised_module(tensor.canonical)) {
        add_quantised(tensor);
      } else {
        specs_.push_back(tensor.spec);
        ++report_.n_kept;
      }
    }
    report_.relative_error = weight_square_ > 0 ? std::sqrt(error_square_ / weight_square_) : 0;
  }

  const std::vector<TensorSpec>& specs() const { return specs_; }
  const QuantiseReport& report() const { return report_; }

  void produce(const TensorSpec& spec, const ByteSink& sink) const {
    check_stop();
    if (const auto part = parts_.find(spec.name); part != parts_.end()) return sink(part->second);
    const SourceTensor& tensor = sources_.at(spec.name);
    if (is_quantised_module(tensor.canonical)) {
      std::visit([&](const auto& matrix) { sink(std::as_bytes(std::span(matrix.codes))); }, quantised(tensor));
    } else if (const Bytes raw = source_.raw(tensor); !raw.empty()) {
      pass_on(raw, sink);
    } else {
      convert(tensor, sink);
    }
  }

  /// Paths of the modules that stay as they are, complete: names alone would match more than they mean.
  Value skipped_modules() const {
    Value out = Value::array();
    for (const auto& [name, tensor] : sources_) {
      constexpr std::string_view kWeight = ".weight";
      const bool is_matrix =
          tensor.spec.shape.size() == 2 && name.ends_with(kWeight) && name.find("embed_tokens") == std::string::npos;
      if (is_matrix && !is_quantised_module(tensor.canonical))
        out.push_back(name.substr(0, name.size() - kWeight.size()));
    }
    if (!sources_.contains("lm_head.weight")) out.push_back("lm_head");
    return out;
  }

 private:
  using Matrix = std::variant<Nf4Matrix, Int8Matrix>;

  Weight weight_of(const SourceTensor& tensor) const {
    return source_.matrix(tensor.canonical, tensor.spec.shape.at(0), tensor.spec.shape.at(1));
  }

  Matrix quantised(const SourceTensor& tensor) const {
    return with_context(fmt::format("in tensor '{}' of {}", printable(tensor.spec.name), source_.path()),
                        [&]() -> Matrix {
                          if (options_.scheme == QuantScheme::int8) return quantise_int8(weight_of(tensor));
                          return quantise_nf4(weight_of(tensor), {.double_quant = options_.double_quant},
                                              *dense_dtype(tensor.spec.dtype));
                        });
  }

  void add_quantised(const SourceTensor& tensor) {
    const Weight weight = weight_of(tensor);
    check(weight.format != WeightFormat::nf4 && weight.format != WeightFormat::int8, ExitCode::bad_input,
          "{}: tensor '{}' is quantised already: use the 16-bit checkpoint it was made from", source_.path(),
          tensor.spec.name);
    const Matrix matrix = quantised(tensor);
    const std::string& name = tensor.spec.name;
    TensorSpec codes;
    std::vector<BitsandbytesPart> parts;
    if (const auto* nf4 = std::get_if<Nf4Matrix>(&matrix)) {
      codes = bitsandbytes_codes(name, *nf4);
      parts = bitsandbytes_parts(name, *nf4, tensor.spec.dtype);
      measure(weight, nf4->view());
    } else {
      codes = bitsandbytes_codes(name, std::get<Int8Matrix>(matrix));
      parts = bitsandbytes_parts(name, std::get<Int8Matrix>(matrix));
      measure(weight, std::get<Int8Matrix>(matrix).view());
    }
    ++report_.n_quantised;
    report_.bytes_before += static_cast<uint64_t>(weight.size()) * 2;
    report_.bytes_after += codes.bytes();
    specs_.push_back(std::move(codes));
    for (BitsandbytesPart& part : parts) {
      report_.bytes_after += part.spec.bytes();
      parts_.emplace(part.spec.name, std::move(part.bytes));
      specs_.push_back(std::move(part.spec));
    }
  }

  void measure(const Weight& before, const Weight& after) {
    std::vector<float> a, b;
    for (int64_t begin = 0; begin < before.size(); begin += kPiece) {
      const int64_t n = std::min(kPiece, before.size() - begin);
      a.resize(static_cast<size_t>(n));
      b.resize(static_cast<size_t>(n));
      dequantise(before, begin, n, a.data());
      dequantise(after, begin, n, b.data());
      for (size_t i = 0; i < a.size(); ++i) {
        weight_square_ += static_cast<double>(a[i]) * a[i];
        error_square_ += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
      }
    }
  }

  void convert(const SourceTensor& tensor, const ByteSink& sink) const {
    int64_t n = 1;
    for (const int64_t d : tensor.spec.shape) n *= d;
    std::vector<float> values;
    std::vector<std::byte> bytes;
    for (int64_t begin = 0; begin < n; begin += kPiece) {
      check_stop();
      values.resize(static_cast<size_t>(std::min(kPiece, n - begin)));
      source_.read(tensor, begin, static_cast<int64_t>(values.size()), values.data());
      round_to(tensor.spec.dtype, values, bytes);
      sink(bytes);
    }
  }

  static constexpr int64_t kPiece = 1 << 20;  // elements held as f32 at once; a multiple of every block

  const WeightSource& source_;
  const QuantiseOptions& options_;
  std::map<std::string, SourceTensor> sources_;          // by full name
  std::map<std::string, std::vector<std::byte>> parts_;  // by full name
  std::vector<TensorSpec> specs_;
  QuantiseReport report_;
  double weight_square_ = 0, error_square_ = 0;
};

/// As transformers writes it (formats.md 1.6).
Value quantization_config(const QuantiseOptions& options, const char* compute_dtype, Value skipped) {
  const bool is_4bit = options.scheme == QuantScheme::nf4;
  return Value::object({{"_load_in_4bit", Value(is_4bit)},
                        {"_load_in_8bit", Value(!is_4bit)},
                        {"bnb_4bit_compute_dtype", Value(compute_dtype)},
                        {"bnb_4bit_quant_storage", Value("uint8")},
                        {"bnb_4bit_quant_type", Value(is_4bit ? "nf4" : "fp4")},
                        {"bnb_4bit_use_double_quant", Value(is_4bit && options.double_quant)},
                        {"llm_int8_enable_fp32_cpu_offload", Value(false)},
                        {"llm_int8_has_fp16_weight", Value(false)},
                        {"llm_int8_skip_modules", std::move(skipped)},
                        {"llm_int8_threshold", Value(static_cast<double>(kLlmInt8Threshold))},
                        {"load_in_4bit", Value(is_4bit)},
                        {"load_in_8bit", Value(!is_4bit)},
                        {"quant_method", Value("bitsandbytes")}});
}

}  // namespace

QuantiseReport quantise_model(const BaseModel& base, const QuantiseOptions& options, const fs::path& out) {
  check(options.scheme != QuantScheme::none, ExitCode::usage, "quantise: choose nf4 or int8");
  check(!fs::exists(out) || (fs::is_directory(out) && fs::is_empty(out)), ExitCode::in_use,
        "{} exists and is not empty: choose another output folder", printable(out.string()));
  const QuantisedTensors tensors(base, options);
  AtomicFolder folder(out);
  const bool is_f32 = base.weights->base_dtype() == DType::f32;
  write_side_files(base, is_f32 ? StoredDType::f32 : StoredDType::bf16, folder.partial());
  write_shards(folder.partial(), plan_shards(tensors.specs(), options.max_shard_bytes), {{"format", "pt"}},
               [&](const TensorSpec& spec, const ByteSink& sink) { tensors.produce(spec, sink); });
  const fs::path config_path = folder.partial() / "config.json";
  Value config = parse_json(read_file(config_path), config_path.string());
  config.set("quantization_config",
             quantization_config(options, is_f32 ? "float32" : "bfloat16", tensors.skipped_modules()));
  write_file_atomically(config_path, to_json(config, 2) + "\n");
  folder.commit();
  return tensors.report();
}

}  // namespace saaz
