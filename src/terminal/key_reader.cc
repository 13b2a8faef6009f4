#include "terminal/key_reader.h"

#include <array>
#include <utility>

#include "base/unicode.h"

namespace saaz {
namespace {

constexpr char kEscape = '\x1b';
constexpr size_t kLongestSequence = 16;

/// Sequences without their escape.
constexpr auto kSequences = std::to_array<std::pair<std::string_view, Key>>({
    {"[A", Key::up},           {"OA", Key::up},
    {"[B", Key::down},         {"OB", Key::down},
    {"[C", Key::right},        {"OC", Key::right},
    {"[D", Key::left},         {"OD", Key::left},
    {"[H", Key::home},         {"OH", Key::home},
    {"[1~", Key::home},        {"[7~", Key::home},
    {"[F", Key::end},          {"OF", Key::end},
    {"[4~", Key::end},         {"[8~", Key::end},
    {"[3~", Key::erase},       {"[1;5C", Key::word_right},
    {"[1;5D", Key::word_left}, {"[1;3C", Key::word_right},
    {"[1;3D", Key::word_left}, {"b", Key::word_left},
    {"f", Key::word_right},    {"\r", Key::new_line},
    {"\n", Key::new_line},     {"\x7f", Key::erase_word_before},
});

/// How many bytes the code point that starts with `byte` has.
size_t length_of(char byte) {
  const auto c = static_cast<unsigned char>(byte);
  return c < 0xC0 ? 1 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
}

bool is_complete(std::string_view sequence) {
  if (sequence.size() < 2) return false;
  if (sequence[1] != '[' && sequence[1] != 'O') return true;
  return sequence.size() > 2 && sequence.back() >= '@' && sequence.back() <= '~';
}

}  // namespace

std::optional<Press> KeyReader::push_control(char byte) {
  switch (byte) {
    case '\r':
      return Press{Key::enter};
    case '\n':
      return Press{Key::new_line};
    case '\t':
      return Press{Key::text, " "};
    case '\x7f':
    case '\b':
      return Press{Key::backspace};
    case 'A' - '@':
      return Press{Key::home};
    case 'B' - '@':
      return Press{Key::left};
    case 'C' - '@':
      return Press{Key::interrupt};
    case 'D' - '@':
      return Press{Key::end_of_file};
    case 'E' - '@':
      return Press{Key::end};
    case 'F' - '@':
      return Press{Key::right};
    case 'K' - '@':
      return Press{Key::erase_line_after};
    case 'L' - '@':
      return Press{Key::redraw};
    case 'N' - '@':
      return Press{Key::down};
    case 'P' - '@':
      return Press{Key::up};
    case 'U' - '@':
      return Press{Key::erase_line_before};
    case 'W' - '@':
      return Press{Key::erase_word_before};
    default:
      return std::nullopt;
  }
}

std::optional<Press> KeyReader::push_sequence(char byte) {
  pending_ += byte;
  if (!is_complete(pending_)) {
    if (pending_.size() > kLongestSequence) pending_.clear();
    return std::nullopt;
  }
  const std::string sequence = std::exchange(pending_, {}).substr(1);
  if (sequence == "[200~") is_pasting_ = true;
  if (sequence == "[201~") is_pasting_ = false;
  if (is_pasting_) return std::nullopt;
  for (const auto& [text, key] : kSequences)
    if (sequence == text) return Press{key};
  return std::nullopt;
}

std::optional<Press> KeyReader::push(char byte) {
  if (!pending_.empty() && pending_[0] == kEscape) return push_sequence(byte);
  if (byte == kEscape) {
    pending_ = byte;
    return std::nullopt;
  }
  const bool is_control = static_cast<unsigned char>(byte) < 0x20 || byte == '\x7f';
  if (is_control) {
    pending_.clear();
    if (is_pasting_ && (byte == '\r' || byte == '\n')) return Press{Key::text, "\n"};
    return is_pasting_ && byte != '\t' ? std::nullopt : push_control(byte);
  }
  pending_ += byte;
  if (pending_.size() < length_of(pending_[0])) return std::nullopt;
  const std::string text = std::exchange(pending_, {});
  const CodePoint point = decode_utf8(text);
  if (!point.valid || static_cast<size_t>(point.length) != text.size() || (point.value >= 0x7f && point.value < 0xa0))
    return std::nullopt;
  return Press{Key::text, text};
}

}  // namespace saaz
