// A small protobuf wire reader and writer for SentencePiece models. Enters: untrusted bytes through ByteReader. Leaves:
// a checked Vocabulary. Invariant: fields we do not know are skipped, fields that would change the ids must have
// Gemma's value. Source: sentencepiece_model.proto (ModelProto, TrainerSpec, NormalizerSpec), protobuf's wire format.
#include "tokenizer/sentencepiece_model.h"

#include <algorithm>
#include <bit>

#include "base/check.h"
#include "base/unicode.h"

namespace saaz {
namespace {

enum class Wire : uint32_t { varint = 0, fixed64 = 1, length = 2, fixed32 = 5 };

/// One field: its number, and the value in the form its wire type has.
struct Field {
  uint64_t number = 0;
  Wire wire = Wire::varint;
  uint64_t value = 0;  // varint, fixed64, fixed32
  Bytes bytes;         // length
  size_t offset = 0;   // in the reader, of the value
};

uint64_t read_varint(ByteReader& reader) {
  uint64_t value = 0;
  for (int shift = 0; shift < 70; shift += 7) {
    const auto byte = reader.read<uint8_t>("a varint");
    if (shift < 64) value |= static_cast<uint64_t>(byte & 0x7F) << shift;
    if (byte < 0x80) return value;
  }
  fail(ExitCode::bad_input, "{}: byte {}: a varint of more than 10 bytes: this is no SentencePiece model",
       reader.name(), reader.offset());
}

Field read_field(ByteReader& reader) {
  Field field;
  const size_t start = reader.offset();
  const uint64_t key = read_varint(reader);
  field.number = key >> 3;
  field.wire = static_cast<Wire>(key & 7);
  field.offset = reader.offset();
  switch (field.wire) {
    case Wire::varint:
      field.value = read_varint(reader);
      break;
    case Wire::fixed64:
      field.value = reader.read<uint64_t>("a fixed64");
      break;
    case Wire::fixed32:
      field.value = reader.read<uint32_t>("a fixed32");
      break;
    case Wire::length:
      field.bytes = reader.take(read_varint(reader), "a length-delimited field");
      break;
    default:
      fail(ExitCode::bad_input, "{}: byte {}: unknown protobuf wire type {}: this is no SentencePiece model",
           reader.name(), start, key & 7);
  }
  return field;
}

/// Calls `visit(field)` for every field of a message.
template <class Visit>
void for_each_field(Bytes message, const std::string& name, Visit visit) {
  ByteReader reader(message, name);
  while (reader.remaining() > 0) visit(read_field(reader));
}

void expect_wire(const Field& field, Wire wire, const std::string& name) {
  check(field.wire == wire, ExitCode::bad_input, "{}: byte {}: field {} has wire type {}, expected {}", name,
        field.offset, field.number, static_cast<uint32_t>(field.wire), static_cast<uint32_t>(wire));
}

Piece read_piece(Bytes message, const std::string& name) {
  Piece piece{.type = PieceType::normal};
  for_each_field(message, name, [&](const Field& field) {
    if (field.number == 1) {
      expect_wire(field, Wire::length, name);
      piece.text.assign(reinterpret_cast<const char*>(field.bytes.data()), field.bytes.size());
    } else if (field.number == 2) {
      expect_wire(field, Wire::fixed32, name);
      piece.score = std::bit_cast<float>(static_cast<uint32_t>(field.value));
    } else if (field.number == 3) {
      expect_wire(field, Wire::varint, name);
      check(field.value >= 1 && field.value <= 6, ExitCode::bad_input, "{}: unknown piece type {}; expected 1 to 6",
            name, field.value);
      piece.type = static_cast<PieceType>(field.value);
    }
  });
  if (is_gemma_control(piece.text)) piece.type = PieceType::control;
  return piece;
}

struct TrainerSpec {
  uint64_t model_type = 1, byte_fallback = 0, whitespace_as_suffix = 0;
  int64_t unk = 0, bos = 1, eos = 2, pad = -1;
};

TrainerSpec read_trainer_spec(Bytes message, const std::string& name) {
  TrainerSpec spec;
  for_each_field(message, name, [&](const Field& field) {
    const auto id = static_cast<int32_t>(field.value);
    switch (field.number) {
      case 3:
        spec.model_type = field.value;
        break;
      case 24:
        spec.whitespace_as_suffix = field.value;
        break;
      case 35:
        spec.byte_fallback = field.value;
        break;
      case 40:
        spec.unk = id;
        break;
      case 41:
        spec.bos = id;
        break;
      case 42:
        spec.eos = id;
        break;
      case 43:
        spec.pad = id;
        break;
      default:
        break;
    }
  });
  check(spec.model_type == 2, ExitCode::bad_input, "{}: trainer_spec.model_type is {}; only BPE (2) is supported", name,
        spec.model_type);
  check(spec.byte_fallback == 1, ExitCode::bad_input,
        "{}: trainer_spec.byte_fallback is off; only models with it are supported", name);
  check(spec.whitespace_as_suffix == 0, ExitCode::bad_input,
        "{}: trainer_spec.treat_whitespace_as_suffix is on; it is not supported", name);
  return spec;
}

void check_normalizer_spec(Bytes message, const std::string& name) {
  uint64_t dummy_prefix = 1, remove_spaces = 1, escape_spaces = 1;  // the defaults of the format
  size_t charsmap = 0;
  for_each_field(message, name, [&](const Field& field) {
    switch (field.number) {
      case 2:
        charsmap = field.bytes.size();
        break;
      case 3:
        dummy_prefix = field.value;
        break;
      case 4:
        remove_spaces = field.value;
        break;
      case 5:
        escape_spaces = field.value;
        break;
      default:
        break;
    }
  });
  check(charsmap == 0, ExitCode::bad_input, "{}: normalizer_spec has a character map; only identity is supported",
        name);
  check(dummy_prefix == 0, ExitCode::bad_input, "{}: normalizer_spec.add_dummy_prefix is on; it is not supported",
        name);
  check(remove_spaces == 0, ExitCode::bad_input,
        "{}: normalizer_spec.remove_extra_whitespaces is on; it is not supported", name);
  check(escape_spaces == 1, ExitCode::bad_input, "{}: normalizer_spec.escape_whitespaces is off; it is not supported",
        name);
}

std::optional<int32_t> optional_id(int64_t id) {
  return id < 0 ? std::nullopt : std::optional(static_cast<int32_t>(id));
}

}  // namespace

Vocabulary read_sentencepiece_model(Bytes bytes, const std::string& name) {
  Vocabulary out{.source = name};
  Bytes trainer, normalizer;
  for_each_field(bytes, name, [&](const Field& field) {
    if (field.number < 1 || field.number > 3) return;
    expect_wire(field, Wire::length, name);
    if (field.number == 2) trainer = field.bytes;
    if (field.number == 3) normalizer = field.bytes;
    if (field.number != 1) return;
    check(out.pieces.size() < kMaxPieces, ExitCode::bad_input, "{}: more than {} pieces", name, kMaxPieces);
    out.pieces.push_back(
        read_piece(field.bytes, fmt::format("{}: piece {} at byte {}", name, out.pieces.size(), field.offset)));
  });
  const TrainerSpec spec = read_trainer_spec(trainer, name + ": trainer_spec");
  check_normalizer_spec(normalizer, name + ": normalizer_spec");
  out.unk = optional_id(spec.unk);
  out.bos = optional_id(spec.bos);
  out.eos = optional_id(spec.eos);
  out.pad = optional_id(spec.pad);
  out.add_bos = out.bos.has_value();
  check_vocabulary(out);
  const PieceIndex index(out.pieces, name);
  out.merges = merges_from_pieces(out, index);
  return out;
}

namespace {

void put_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  out += static_cast<char>(value);
}
void put_number(std::string& out, uint32_t field, uint64_t value) {
  put_varint(out, field << 3 | static_cast<uint32_t>(Wire::varint));
  put_varint(out, value);
}
void put_bytes(std::string& out, uint32_t field, std::string_view bytes) {
  put_varint(out, field << 3 | static_cast<uint32_t>(Wire::length));
  put_varint(out, bytes.size());
  out += bytes;
}
void put_float(std::string& out, uint32_t field, float value) {
  put_varint(out, field << 3 | static_cast<uint32_t>(Wire::fixed32));
  for (uint32_t bits = std::bit_cast<uint32_t>(value), i = 0; i < 4; ++i) out += static_cast<char>(bits >> 8 * i);
}

/// SentencePiece's end of text, which in a chat model's vocabulary is not the token that ends a turn.
std::optional<int32_t> end_of_text(const Vocabulary& vocabulary) {
  const auto& pieces = vocabulary.pieces;
  const auto found =
      std::find_if(pieces.begin(), pieces.end(), [](const Piece& piece) { return piece.text == "<eos>"; });
  return found == pieces.end() ? vocabulary.eos : std::optional(static_cast<int32_t>(found - pieces.begin()));
}

/// SentencePiece matches user-defined pieces in text, control pieces never: Gemma's file keeps only pad, eos and bos
/// control.
PieceType written_type(const Vocabulary& vocabulary, std::optional<int32_t> eos, int32_t id) {
  const PieceType type = vocabulary.pieces[id].type;
  if (id == vocabulary.unk) return PieceType::unknown;
  const bool hidden = id == vocabulary.bos || id == eos || id == vocabulary.pad;
  return type == PieceType::control && !hidden ? PieceType::user_defined : type;
}

std::string trainer_spec_of(const Vocabulary& vocabulary, std::optional<int32_t> eos) {
  std::string out;
  const auto put_special = [&](uint32_t id_field, uint32_t text_field, std::optional<int32_t> id) {
    put_number(out, id_field, static_cast<uint64_t>(static_cast<int64_t>(id.value_or(-1))));
    if (id) put_bytes(out, text_field, vocabulary.pieces[*id].text);
  };
  put_number(out, 3, 2);  // model_type BPE
  put_number(out, 4, vocabulary.pieces.size());
  put_number(out, 35, 1);  // byte_fallback
  put_special(40, 45, vocabulary.unk);
  put_special(41, 46, vocabulary.bos);
  put_special(42, 47, eos);
  put_special(43, 48, vocabulary.pad);
  return out;
}

std::string normalizer_spec() {
  std::string out;
  put_bytes(out, 1, "identity");
  put_number(out, 3, 0);  // add_dummy_prefix
  put_number(out, 4, 0);  // remove_extra_whitespaces
  put_number(out, 5, 1);  // escape_whitespaces
  return out;
}

}  // namespace

std::string write_sentencepiece_model(const Vocabulary& vocabulary) {
  check(vocabulary.unk.has_value(), ExitCode::bad_input, "{}: no unknown token, which tokenizer.model must have",
        vocabulary.source);
  const std::optional<int32_t> eos = end_of_text(vocabulary);
  std::string out;
  for (size_t id = 0; id < vocabulary.pieces.size(); ++id) {
    const Piece& piece = vocabulary.pieces[id];
    const PieceType type = written_type(vocabulary, eos, static_cast<int32_t>(id));
    std::string message;
    put_bytes(message, 1, piece.text);
    put_float(message, 2, type == PieceType::normal ? piece.score : 0.0f);
    put_number(message, 3, static_cast<uint64_t>(type));
    put_bytes(out, 1, message);
  }
  put_bytes(out, 2, trainer_spec_of(vocabulary, eos));
  put_bytes(out, 3, normalizer_spec());
  return out;
}

}  // namespace saaz
