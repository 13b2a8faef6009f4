// Reading: the state tensor is JSON with known keys only; its sizes are checked against every part's bytes before a
// view is made. Maps that equal NF4's own and the dynamic one are left out of the Weight, so that backends see the
// common case.
#include "checkpoint/bitsandbytes.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "base/value.h"

namespace saaz {

namespace {

constexpr std::string_view kNf4State = ".quant_state.bitsandbytes__nf4", kFp4State = ".quant_state.bitsandbytes__fp4";
constexpr std::string_view kScales = ".SCB", kWeight = ".weight", kWeightFormat = ".weight_format";

std::string where_of(const TensorEntry& entry) {
  return fmt::format("{}: tensor '{}'", entry.file, printable(entry.name));
}

const TensorEntry& needed(const std::unordered_map<std::string_view, const TensorEntry*>& tensors,
                          const TensorEntry& owner, const std::string& name) {
  const auto found = tensors.find(name);
  check(found != tensors.end(), ExitCode::bad_input, "{} asks for tensor '{}', which is missing", where_of(owner),
        printable(name));
  return *found->second;
}

/// Scales: finite, not negative.
const float* scales_of(const TensorEntry& entry) {
  const auto* values = reinterpret_cast<const float*>(entry.data.data());
  const auto n = static_cast<int64_t>(entry.data.size() / sizeof(float));
  for (int64_t i = 0; i < n; ++i)
    check(std::isfinite(values[i]) && values[i] >= 0, ExitCode::bad_input, "{}: scale {} is {}: the file is damaged",
          where_of(entry), i, values[i]);
  return values;
}

/// A map of codes to finite values, or nullptr when it is `usual`.
const float* map_of(const TensorEntry& entry, std::span<const float> usual) {
  const auto* values = reinterpret_cast<const float*>(entry.data.data());
  check(std::all_of(values, values + usual.size(), [](float v) { return std::isfinite(v); }), ExitCode::bad_input,
        "{} holds a non-finite value: the file is damaged", where_of(entry));
  return std::memcmp(values, usual.data(), usual.size_bytes()) == 0 ? nullptr : values;
}

/// What the JSON of a state says.
struct State {
  StoredDType dtype = StoredDType::bf16;
  int64_t n_out = 0, n_in = 0;
  bool nested = false;
  float nested_offset = 0;
};

void check_integer(const Value& state, const char* key, int64_t expected, const std::string& where) {
  const Value* value = state.find(key);
  check(value != nullptr && value->is_integer() && value->as_integer() == expected, ExitCode::bad_input,
        "{}: '{}' is {}, only {} is read", where, key,
        value == nullptr      ? "absent"
        : value->is_integer() ? std::to_string(value->as_integer())
                              : value->kind_name(),
        expected);
}

const std::string& text_of(const Value& state, const char* key, const std::string& where) {
  const Value* value = state.find(key);
  check(value != nullptr && value->is_string(), ExitCode::bad_input, "{}: no text '{}'", where, key);
  return value->as_string();
}

StoredDType torch_dtype(const std::string& name, const std::string& where) {
  if (name == "bfloat16") return StoredDType::bf16;
  if (name == "float16") return StoredDType::f16;
  check(name == "float32", ExitCode::bad_input, "{}: dtype '{}' is not bfloat16, float16 or float32", where,
        printable(name));
  return StoredDType::f32;
}

State read_state(const TensorEntry& entry, std::string_view quant_type) {
  constexpr std::array kKeys = {"quant_type",       "blocksize",    "dtype",        "shape",
                                "nested_blocksize", "nested_dtype", "nested_offset"};
  const std::string where = where_of(entry);
  check(entry.dtype == StoredDType::u8 && entry.shape.size() == 1, ExitCode::bad_input,
        "{} is {} {}, expected U8 of one dimension", where, name_of(entry.dtype), shape_text(entry.shape));
  const Value json = parse_json({reinterpret_cast<const char*>(entry.data.data()), entry.data.size()}, where);
  check(json.is_object(), ExitCode::bad_input, "{} is {}, expected a JSON object", where, json.kind_name());
  for (const auto& [key, unused] : json.members())
    check(std::find(kKeys.begin(), kKeys.end(), key) != kKeys.end(), ExitCode::bad_input, "{}: unknown key '{}'", where,
          printable(key));
  check(text_of(json, "quant_type", where) == quant_type, ExitCode::bad_input,
        "{}: quant_type is '{}', its name says {}", where, printable(text_of(json, "quant_type", where)), quant_type);
  check_integer(json, "blocksize", kNf4Block, where);
  State out{.dtype = torch_dtype(text_of(json, "dtype", where), where)};
  const Value* shape = json.find("shape");
  const bool is_matrix = shape != nullptr && shape->is_array() && shape->items().size() == 2 &&
                         std::all_of(shape->items().begin(), shape->items().end(),
                                     [](const Value& d) { return d.is_integer() && d.as_integer() > 0; });
  check(is_matrix, ExitCode::bad_input, "{}: 'shape' is not two positive integers", where);
  out.n_out = shape->items()[0].as_integer();
  out.n_in = shape->items()[1].as_integer();
  out.nested = json.find("nested_offset") != nullptr || json.find("nested_blocksize") != nullptr;
  if (!out.nested) return out;
  check_integer(json, "nested_blocksize", kNestedBlock, where);
  check(text_of(json, "nested_dtype", where) == "float32", ExitCode::bad_input, "{}: nested_dtype is '{}', not float32",
        where, printable(text_of(json, "nested_dtype", where)));
  const Value* offset = json.find("nested_offset");
  check(offset != nullptr && offset->is_number() && std::isfinite(static_cast<float>(offset->as_double())),
        ExitCode::bad_input, "{}: 'nested_offset' is not a finite number", where);
  out.nested_offset = static_cast<float>(offset->as_double());
  return out;
}

template <class T>
std::vector<std::byte> bytes_of(std::span<const T> values) {
  const auto bytes = std::as_bytes(values);
  return {bytes.begin(), bytes.end()};
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

const char* torch_name(StoredDType dtype) {
  return dtype == StoredDType::f32 ? "float32" : dtype == StoredDType::f16 ? "float16" : "bfloat16";
}

/// As Python's json.dumps writes it, so that a file equals bitsandbytes' own.
std::string state_text(const Nf4Matrix& matrix, StoredDType dtype) {
  std::string out = fmt::format(R"({{"quant_type": "nf4", "blocksize": {}, "dtype": "{}", "shape": [{}, {}])",
                                kNf4Block, torch_name(dtype), matrix.n_out, matrix.n_in);
  if (!matrix.absmax_codes.empty())
    out += fmt::format(R"(, "nested_blocksize": {}, "nested_dtype": "float32", "nested_offset": {})", kNestedBlock,
                       to_json(Value(static_cast<double>(matrix.nested_offset))));
  return out + "}";
}

}  // namespace

BitsandbytesMatrices::BitsandbytesMatrices(std::span<const TensorEntry* const> tensors) {
  ByName by_name;
  for (const TensorEntry* entry : tensors) by_name.emplace(entry->name, entry);
  for (const TensorEntry* entry : tensors) {
    if (entry->name.ends_with(kNf4State)) add_4bit(by_name, *entry, kNf4State);
    if (entry->name.ends_with(kFp4State)) add_4bit(by_name, *entry, kFp4State);
    if (entry->name.ends_with(kScales)) add_8bit(by_name, *entry);
  }
  for (const TensorEntry* entry : tensors) {
    constexpr std::array kSuffixes = {".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".weight_format"};
    const bool looks_like_part = std::any_of(kSuffixes.begin(), kSuffixes.end(),
                                             [&](const char* suffix) { return entry->name.ends_with(suffix); });
    check(!looks_like_part || is_part(entry->name), ExitCode::bad_input,
          "{} belongs to no quantised matrix: its quant_state or SCB is missing", where_of(*entry));
  }
}

const BitsandbytesMatrices::Matrix* BitsandbytesMatrices::find(std::string_view weight_name) const {
  const auto found = matrices_.find(weight_name);
  return found == matrices_.end() ? nullptr : &found->second;
}

const TensorEntry& BitsandbytesMatrices::part(const ByName& tensors, const TensorEntry& owner, const std::string& name,
                                              StoredDType dtype, int64_t n) {
  const TensorEntry& entry = needed(tensors, owner, name);
  check(entry.dtype == dtype && static_cast<int64_t>(entry.data.size()) == n * bits_of(dtype) / 8, ExitCode::bad_input,
        "{} is {} {}, expected {} values of {}", where_of(entry), name_of(entry.dtype), shape_text(entry.shape), n,
        name_of(dtype));
  parts_.insert(name);
  return entry;
}

void BitsandbytesMatrices::add_4bit(const ByName& tensors, const TensorEntry& state_entry, std::string_view suffix) {
  const std::string name = state_entry.name.substr(0, state_entry.name.size() - suffix.size());
  const State state = read_state(state_entry, suffix.substr(suffix.size() - 3));
  parts_.insert(state_entry.name);
  const auto n = static_cast<int64_t>(checked_mul(static_cast<uint64_t>(state.n_out), static_cast<uint64_t>(state.n_in),
                                                  "elements of " + where_of(state_entry)));
  const TensorEntry& codes = needed(tensors, state_entry, name);
  check(n > 0 && n / 2 + n % 2 == static_cast<int64_t>(codes.data.size()), ExitCode::bad_input,
        "{} holds {} bytes of codes, shape [{}, {}] needs one for each two elements", where_of(codes),
        codes.data.size(), state.n_out, state.n_in);
  const int64_t n_blocks = ceil_div(n, kNf4Block);
  Weight w{.format = WeightFormat::nf4, .n_out = state.n_out, .n_in = state.n_in, .data = codes.data.data()};
  w.dequantised_dtype = *dense_dtype(state.dtype);
  w.quant_map = map_of(part(tensors, state_entry, name + ".quant_map", StoredDType::f32, 16), kNf4Values);
  if (state.nested) {
    const TensorEntry& absmax = part(tensors, state_entry, name + ".absmax", StoredDType::u8, n_blocks);
    w.absmax_codes = reinterpret_cast<const uint8_t*>(absmax.data.data());
    w.nested_absmax = scales_of(
        part(tensors, state_entry, name + ".nested_absmax", StoredDType::f32, ceil_div(n_blocks, kNestedBlock)));
    w.nested_map =
        map_of(part(tensors, state_entry, name + ".nested_quant_map", StoredDType::f32, 256), dynamic_map_signed());
    w.nested_offset = state.nested_offset;
  } else {
    w.absmax = scales_of(part(tensors, state_entry, name + ".absmax", StoredDType::f32, n_blocks));
  }
  const bool is_new = matrices_.emplace(name, Matrix{w, state.dtype}).second;
  check(is_new, ExitCode::bad_input, "{}: '{}' has two states", where_of(state_entry), printable(name));
}

void BitsandbytesMatrices::add_8bit(const ByName& tensors, const TensorEntry& scales) {
  const std::string module = scales.name.substr(0, scales.name.size() - kScales.size());
  const std::string name = module + std::string(kWeight);
  const TensorEntry& codes = needed(tensors, scales, name);
  check(codes.dtype == StoredDType::i8 && codes.shape.size() == 2 && !codes.data.empty(), ExitCode::bad_input,
        "{} is {} {}, but '{}' asks for a matrix of I8", where_of(codes), name_of(codes.dtype), shape_text(codes.shape),
        printable(scales.name));
  Weight w{.format = WeightFormat::int8, .n_out = codes.shape[0], .n_in = codes.shape[1], .data = codes.data.data()};
  w.row_absmax = scales_of(part(tensors, scales, scales.name, StoredDType::f32, w.n_out));
  if (const std::string format = module + std::string(kWeightFormat); tensors.contains(format)) {
    const TensorEntry& entry = part(tensors, scales, format, StoredDType::u8, 1);
    check(entry.data[0] == std::byte{0}, ExitCode::bad_input,
          "{} is {}: only row-major matrices (0) are read; save the model again with a current bitsandbytes",
          where_of(entry), static_cast<int>(entry.data[0]));
  }
  matrices_.emplace(name, Matrix{w, StoredDType::f16});
}

TensorSpec bitsandbytes_codes(const std::string& weight_name, const Nf4Matrix& matrix) {
  return {weight_name, StoredDType::u8, {ceil_div(matrix.n_out * matrix.n_in, 2), 1}};
}

std::vector<BitsandbytesPart> bitsandbytes_parts(const std::string& weight_name, const Nf4Matrix& matrix,
                                                 StoredDType dtype) {
  std::vector<BitsandbytesPart> out;
  const auto add = [&](const char* suffix, StoredDType type, std::vector<std::byte> bytes) {
    const auto n = static_cast<int64_t>(bytes.size()) * 8 / bits_of(type);
    out.push_back({{weight_name + suffix, type, {n}}, std::move(bytes)});
  };
  const auto floats = [](std::span<const float> values) { return bytes_of(values); };
  if (matrix.absmax_codes.empty()) {
    add(".absmax", StoredDType::f32, floats(matrix.absmax));
  } else {
    add(".absmax", StoredDType::u8, bytes_of(std::span<const uint8_t>(matrix.absmax_codes)));
    add(".nested_absmax", StoredDType::f32, floats(matrix.nested_absmax));
    add(".nested_quant_map", StoredDType::f32, floats(dynamic_map_signed()));
  }
  add(".quant_map", StoredDType::f32, floats(kNf4Values));
  const std::string state = state_text(matrix, dtype);
  add(std::string(kNf4State).c_str(), StoredDType::u8, bytes_of(std::span<const char>(state)));
  return out;
}

TensorSpec bitsandbytes_codes(const std::string& weight_name, const Int8Matrix& matrix) {
  return {weight_name, StoredDType::i8, {matrix.n_out, matrix.n_in}};
}

std::vector<BitsandbytesPart> bitsandbytes_parts(const std::string& weight_name, const Int8Matrix& matrix) {
  const std::string module = weight_name.substr(0, weight_name.size() - kWeight.size());
  return {{{module + std::string(kScales), StoredDType::f32, {matrix.n_out}},
           bytes_of(std::span<const float>(matrix.row_absmax))},
          {{module + std::string(kWeightFormat), StoredDType::u8, {}}, {std::byte{0}}}};
}

}  // namespace saaz
