// Reading tokenizer.json; the only place that knows simdjson. Enters: untrusted JSON. Leaves: a checked Vocabulary.
// Invariant: a component is either the one Gemma uses, which the tokenizer implements, or an error that names it:
// nothing that would change ids is ignored. Source: the file format of Hugging Face `tokenizers`; gemma3n.md 9.1.
#include "tokenizer/tokenizer_json.h"

#include <simdjson.h>

#include <algorithm>

#include "base/check.h"
#include "base/value.h"

namespace saaz {
namespace {

namespace dom = simdjson::dom;

/// A JSON value with its place ("tokenizer.json: model.vocab"), so that every complaint names one.
class Node {
 public:
  Node(dom::element element, std::string place) : element_(element), place_(std::move(place)) {}

  const std::string& place() const { return place_; }
  bool is_null() const { return element_.is_null(); }
  bool is_string() const { return element_.is_string(); }
  std::string_view text() const { return get<std::string_view>("a string"); }
  bool boolean() const { return get<bool>("true or false"); }
  int64_t integer() const { return get<int64_t>("an integer"); }
  dom::object object() const { return get<dom::object>("an object"); }
  dom::array array() const { return get<dom::array>("an array"); }

  std::optional<Node> find(std::string_view key) const {
    dom::element child;
    if (object().at_key(key).get(child)) return std::nullopt;
    return Node(child, fmt::format("{}.{}", place_, key));
  }
  Node at(std::string_view key) const {
    auto child = find(key);
    check(child.has_value(), ExitCode::bad_input, "{}: '{}' is missing", place_, key);
    return *child;
  }
  /// True for an absent or null member.
  bool lacks(std::string_view key) const {
    const auto child = find(key);
    return !child || child->is_null();
  }
  bool flag(std::string_view key) const { return !lacks(key) && at(key).boolean(); }
  template <class Visit>
  void for_each_item(Visit visit) const {
    size_t i = 0;
    for (const dom::element item : array()) visit(Node(item, fmt::format("{}[{}]", place_, i++)));
  }

 private:
  template <class T>
  T get(std::string_view expected) const {
    T value{};
    const auto error = element_.get(value);
    check(!error, ExitCode::bad_input, "{}: expected {}", place_, expected);
    return value;
  }

  dom::element element_;
  std::string place_;
};

[[noreturn]] void unsupported(const Node& node, std::string_view expected) {
  const std::string shown = node.is_null() ? "null" : printable(simdjson::minify(node.object()));
  fail(ExitCode::bad_input, "{}: unsupported: {}; only {} is supported, as in Gemma's tokenizer", node.place(), shown,
       expected);
}

bool is_type(const Node& node, std::string_view type) { return !node.is_null() && node.at("type").text() == type; }

bool is_replace(const Node& node, std::string_view from, std::string_view to) {
  return is_type(node, "Replace") && !node.at("pattern").lacks("String") &&
         node.at("pattern").at("String").text() == from && node.at("content").text() == to;
}

void check_normalizer(const Node& root) {
  const Node node = root.at("normalizer");
  if (!is_replace(node, " ", kSpaceMark)) unsupported(node, "Replace of \" \" by U+2581");
}

void check_pre_tokenizer(const Node& root) {
  if (root.lacks("pre_tokenizer")) return;
  const Node node = root.at("pre_tokenizer");
  // After the normalizer no space is left, so this one never splits anything.
  const bool harmless =
      is_type(node, "Split") && !node.at("pattern").lacks("String") && node.at("pattern").at("String").text() == " ";
  if (!harmless) unsupported(node, "null or Split on \" \"");
}

void check_decoder(const Node& root) {
  const Node node = root.at("decoder");
  std::vector<Node> steps;
  if (is_type(node, "Sequence")) node.at("decoders").for_each_item([&](const Node& step) { steps.push_back(step); });
  const bool known = steps.size() == 3 && is_replace(steps[0], kSpaceMark, " ") && is_type(steps[1], "ByteFallback") &&
                     is_type(steps[2], "Fuse");
  if (!known) unsupported(node, "Sequence of Replace, ByteFallback and Fuse");
}

/// The bos token that the post-processor prepends, if any.
std::optional<int32_t> read_post_processor(const Node& root) {
  if (root.lacks("post_processor")) return std::nullopt;
  const Node node = root.at("post_processor");
  if (!is_type(node, "TemplateProcessing")) unsupported(node, "null or TemplateProcessing");
  std::vector<Node> items;
  node.at("single").for_each_item([&](const Node& item) { items.push_back(item); });
  const bool known = !items.empty() && items.size() <= 2 && !items.back().lacks("Sequence") &&
                     (items.size() == 1 || !items[0].lacks("SpecialToken"));
  if (!known) unsupported(node, "TemplateProcessing of the text, or of one special token and the text,");
  if (items.size() == 1) return std::nullopt;
  const std::string_view token = items[0].at("SpecialToken").at("id").text();
  const Node ids = node.at("special_tokens").at(token).at("ids");
  std::vector<int64_t> values;
  ids.for_each_item([&](const Node& id) { values.push_back(id.integer()); });
  check(values.size() == 1 && values[0] >= 0 && values[0] < static_cast<int64_t>(kMaxPieces), ExitCode::bad_input,
        "{}: expected one id from 0 to {}", ids.place(), kMaxPieces - 1);
  return static_cast<int32_t>(values[0]);
}

void check_model_settings(const Node& model) {
  check(!model.find("type") || model.at("type").text() == "BPE", ExitCode::bad_input,
        "{}.type: unsupported: '{}'; only BPE is supported", model.place(), printable(model.at("type").text()));
  check(model.flag("byte_fallback"), ExitCode::bad_input,
        "{}.byte_fallback: unsupported: false; only true is supported", model.place());
  check(!model.flag("ignore_merges"), ExitCode::bad_input,
        "{}.ignore_merges: unsupported: true; only false is supported", model.place());
  for (const std::string_view key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    check(model.lacks(key) || model.at(key).text().empty(), ExitCode::bad_input,
          "{}.{}: unsupported; only null is supported", model.place(), key);
  }
  check(model.lacks("dropout"), ExitCode::bad_input, "{}.dropout: unsupported; only null is supported", model.place());
}

/// Puts a piece at its id; `place` names where the file says so. Not `check`: its arguments are made for every piece.
void place_piece(Vocabulary& out, int64_t id, std::string_view text, PieceType type, const std::string& place) {
  if (id < 0 || id >= static_cast<int64_t>(kMaxPieces)) {
    fail(ExitCode::bad_input, "{}: id {} of '{}' is out of range; expected 0 to {}", place, id, printable(text),
         kMaxPieces - 1);
  }
  if (static_cast<size_t>(id) >= out.pieces.size()) out.pieces.resize(id + 1);
  Piece& piece = out.pieces[id];
  if (piece.type != PieceType::unused && piece.text != text) {
    fail(ExitCode::bad_input, "{}: '{}' and '{}' both have id {}", place, printable(piece.text), printable(text), id);
  }
  check(!text.empty(), ExitCode::bad_input, "{}: the piece with id {} is empty", place, id);
  piece = {std::string(text), type, 0};
}

void read_vocab(const Node& vocab, Vocabulary& out) {
  for (const auto& [text, id] : vocab.object()) {
    const PieceType type = byte_of_piece(text) ? PieceType::byte : PieceType::normal;
    int64_t value = 0;
    if (id.get(value)) fail(ExitCode::bad_input, "{}: the id of '{}' is no integer", vocab.place(), printable(text));
    place_piece(out, value, text, type, vocab.place());
  }
}

void read_added_token(const Node& token, Vocabulary& out) {
  for (const std::string_view key : {"single_word", "lstrip", "rstrip", "normalized"}) {
    check(!token.flag(key), ExitCode::bad_input, "{}.{}: unsupported: true; only false is supported", token.place(),
          key);
  }
  const PieceType type = token.flag("special") ? PieceType::control : PieceType::user_defined;
  place_piece(out, token.at("id").integer(), token.at("content").text(), type, token.place());
}

/// Gives every id that no piece has a text, so that ids can be positions; too many of them are a damaged file.
void fill_missing_ids(Vocabulary& out) {
  size_t missing = 0;
  for (size_t id = 0; id < out.pieces.size(); ++id) {
    if (out.pieces[id].type != PieceType::unused) continue;
    out.pieces[id].text = missing_piece_text(id);
    ++missing;
    check(missing <= kMaxMissingIds, ExitCode::bad_input,
          "{}: the ids are sparse: of 0 to {} more than {} have no piece (the first without: {})", out.source,
          out.pieces.size() - 1, kMaxMissingIds, id);
  }
}

int32_t id_of_half(const PieceIndex& index, std::string_view text, const std::string& place, size_t rank) {
  const auto id = index.find(text);
  check(id.has_value(), ExitCode::bad_input, "{}[{}]: '{}' is no piece of the vocabulary", place, rank,
        printable(text));
  return *id;
}

/// The halves of one merge: ["a", "b"], or "a b" in older files.
std::pair<std::string_view, std::string_view> halves_of(dom::element merge, const std::string& place, size_t rank) {
  dom::array pair;
  std::string_view left, right, both;
  if (!merge.get(both)) {
    const size_t space = both.find(' ');
    if (space != std::string_view::npos) return {both.substr(0, space), both.substr(space + 1)};
  } else if (!merge.get(pair) && pair.size() == 2 && !pair.at(0).get(left) && !pair.at(1).get(right)) {
    return {left, right};
  }
  fail(ExitCode::bad_input, "{}[{}]: expected two strings", place, rank);
}

void read_merges(const Node& merges, const PieceIndex& index, Vocabulary& out) {
  size_t rank = 0;
  std::string joined;
  int32_t result = 0;  // of the merge before: merges of one piece follow each other, so it often is the next one's
  for (const dom::element item : merges.array()) {
    const auto [left, right] = halves_of(item, merges.place(), rank);
    joined.assign(left).append(right);
    if (out.pieces[result].text != joined) result = id_of_half(index, joined, merges.place(), rank);
    const Merge merge{id_of_half(index, left, merges.place(), rank), id_of_half(index, right, merges.place(), rank),
                      result};
    // Text that spells a control token is cut out before merging where it may be one; elsewhere it must never become
    // one.
    const PieceType type = out.pieces[result].type;
    if (type != PieceType::control && type != PieceType::unknown) out.merges.push_back(merge);
    ++rank;
  }
}

void check_merges_differ(const Vocabulary& vocabulary, const std::string& place) {
  std::vector<uint64_t> pairs;
  pairs.reserve(vocabulary.merges.size());
  for (const Merge& merge : vocabulary.merges)
    pairs.push_back(static_cast<uint64_t>(merge.left) << 32 | static_cast<uint32_t>(merge.right));
  std::sort(pairs.begin(), pairs.end());
  const auto twice = std::adjacent_find(pairs.begin(), pairs.end());
  if (twice == pairs.end()) return;
  fail(ExitCode::bad_input, "{}: '{}' and '{}' are merged twice", place,
       printable(vocabulary.pieces[*twice >> 32].text), printable(vocabulary.pieces[*twice & 0xFFFFFFFF].text));
}

std::optional<int32_t> control_named(const Vocabulary& vocabulary, const PieceIndex& index, std::string_view text) {
  const auto id = index.find(text);
  return id && vocabulary.pieces[*id].type == PieceType::control ? id : std::nullopt;
}

Vocabulary vocabulary_of(const Node& root, const std::string& name) {
  const Node model = root.at("model");
  check_model_settings(model);
  check_normalizer(root);
  check_pre_tokenizer(root);
  check_decoder(root);

  Vocabulary out{.source = name};
  read_vocab(model.at("vocab"), out);
  if (!root.lacks("added_tokens"))
    root.at("added_tokens").for_each_item([&](const Node& token) { read_added_token(token, out); });
  fill_missing_ids(out);
  const PieceIndex index(out.pieces, name);
  if (!model.lacks("unk_token")) {
    out.unk = index.find(model.at("unk_token").text());
    check(out.unk.has_value(), ExitCode::bad_input, "{}.unk_token: '{}' is no piece of the vocabulary", model.place(),
          printable(model.at("unk_token").text()));
    out.pieces[*out.unk].type = PieceType::unknown;
  }
  out.bos = read_post_processor(root);
  out.add_bos = out.bos.has_value();
  if (!out.bos) out.bos = control_named(out, index, "<bos>");
  out.eos = control_named(out, index, "<eos>");
  out.pad = control_named(out, index, "<pad>");
  check_vocabulary(out);
  const Node merges = model.at("merges");
  read_merges(merges, index, out);
  check_merges_differ(out, merges.place());
  scores_from_merges(out);
  return out;
}

}  // namespace

Vocabulary read_tokenizer_json(Bytes text, const std::string& name) {
  dom::parser parser;
  dom::element root;
  const auto error = parser.parse(reinterpret_cast<const uint8_t*>(text.data()), text.size(), true).get(root);
  if (error == simdjson::MEMALLOC) throw std::bad_alloc();
  if (error) {
    // simdjson knows no place; the slower parser, which does, refuses the same text with one.
    parse_json({reinterpret_cast<const char*>(text.data()), text.size()}, name);
    fail(ExitCode::bad_input, "{}: not valid JSON: {}", name, simdjson::error_message(error));
  }
  return vocabulary_of(Node(root, name + ": tokenizer"), name);
}

}  // namespace saaz
