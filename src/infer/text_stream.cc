#include "infer/text_stream.h"

#include <algorithm>

namespace saaz {

namespace {

constexpr size_t kUnknown = std::string::npos;

struct Found {
  size_t at = std::string::npos;
  const std::string* stop = nullptr;
};

/// The stop text that is complete first in `text`, as if it came byte by byte; of two, the longer one.
Found find_stop(const std::string& text, const std::vector<std::string>& stop) {
  Found found;
  size_t first_end = std::string::npos;
  for (const std::string& candidate : stop) {
    const size_t at = text.find(candidate);
    if (at == std::string::npos) continue;
    const size_t end = at + candidate.size();
    if (end < first_end || (end == first_end && at < found.at)) found = {at, &candidate}, first_end = end;
  }
  return found;
}

/// Length of the longest end of `text` that a stop text may go on from.
size_t open_tail(const std::string& text, const std::vector<std::string>& stop) {
  size_t longest = 0;
  for (const std::string& candidate : stop)
    for (size_t n = std::min(candidate.size() - 1, text.size()); n > longest; --n)
      if (text.ends_with(std::string_view(candidate).substr(0, n))) longest = n;
  return longest;
}

}  // namespace

std::string token_bytes(const Tokenizer& tokenizer, int32_t id) {
  const Piece& piece = tokenizer.vocabulary().pieces[static_cast<size_t>(id)];
  if (piece.type == PieceType::byte) return {static_cast<char>(byte_of_piece(piece.text).value())};
  return StreamDecoder(tokenizer, SkipSpecial::yes).push(id);
}

TextStream::TextStream(const Tokenizer* tokenizer, const std::vector<std::string>& stop) : stop_(stop) {
  if (tokenizer != nullptr) decoder_.emplace(*tokenizer, SkipSpecial::yes);
}

bool TextStream::push(TokenLogprob token, Delta& delta) {
  if (!decoder_) {
    held_.push_back({std::move(token), 0, 0});
    release(0, delta);
    return false;
  }
  const size_t begin = n_released_ + held_text_.size();
  const std::string text = decoder_->push(token.id);
  held_.push_back({std::move(token), begin, kUnknown});
  return take(text, delta);
}

bool TextStream::finish(Delta& delta) {
  if (!decoder_) return false;
  if (take(decoder_->finish(), delta)) return true;
  delta.text += held_text_;
  n_released_ += held_text_.size();
  held_text_.clear();
  release(n_released_, delta);
  return false;
}

/// `text` goes on the answer: gives out what no stop text can begin in any more.
bool TextStream::take(const std::string& text, Delta& delta) {
  held_text_ += text;
  if (!decoder_->holds_bytes())
    for (Held& held : held_)
      if (held.end == kUnknown) held.end = n_released_ + held_text_.size();
  if (const Found found = find_stop(held_text_, stop_); found.stop != nullptr) {
    delta.text += held_text_.substr(0, found.at);
    delta.stop = *found.stop;
    const size_t cut = n_released_ + found.at;
    while (!held_.empty() && held_.front().begin < cut) {
      held_.front().end = std::min(held_.front().end, cut);
      release(held_.front().end, delta);
    }
    return true;
  }
  const size_t n = held_text_.size() - open_tail(held_text_, stop_);
  delta.text += held_text_.substr(0, n);
  held_text_.erase(0, n);
  n_released_ += n;
  release(n_released_, delta);
  return false;
}

/// Gives out the tokens whose text ends at or before `end`.
void TextStream::release(size_t end, Delta& delta) {
  for (; !held_.empty() && held_.front().end <= end; held_.pop_front()) {
    delta.ids.push_back(held_.front().token.id);
    delta.logprobs.push_back(std::move(held_.front().token));
  }
}

}  // namespace saaz
