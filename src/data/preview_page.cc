// The page of `data preview --html`. Rows become turns, turns lines, lines tokens. The style sheet is the page's only
// active part; the content security policy names its SHA-256 and allows nothing else.
#include <algorithm>
#include <array>
#include <cmath>

#include "base/check.h"
#include "base/markup.h"
#include "base/system.h"
#include "base/unicode.h"
#include "data/preview.h"
#include "data/protected_spans.h"
#include "data/script.h"

namespace saaz {
namespace {

constexpr std::string_view kStyle = R"(
:root { color-scheme: light dark; }
body { font: 17px/2.2 Vazirmatn, "Noto Sans Arabic", "Noto Sans", Tahoma, sans-serif; max-width: 58rem;
  margin-inline: auto; padding: 1rem; background: Canvas; color: CanvasText; }
h1 { font-size: 1.4rem; margin-block: .2rem; }
h2 { font-size: .95rem; font-weight: 600; margin-block: .2rem; }
.figures, .legend { font-size: .85rem; color: GrayText; margin-block: .2rem; }
.legend span { padding-inline: .45em; border-radius: 3px; }
.legend span:not(.m) { color: CanvasText; }
article { border: 1px solid rgba(127, 127, 127, .4); border-radius: 8px; margin-block: 1rem; padding: .6rem 1rem; }
section { border-inline-start: 4px solid rgba(127, 127, 127, .5); padding-inline-start: .8rem; margin-block: .6rem; }
section.model { border-color: #2563eb; }
p { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
p.code, p.head { font: .82rem/1.7 "DejaVu Sans Mono", Consolas, monospace; unicode-bidi: isolate; }
.m { color: GrayText; }
.m.o { background: rgba(127, 127, 127, .12); }
.s { background: rgba(22, 163, 74, .16); }
.s.o { background: rgba(22, 163, 74, .34); }
.h0 { background: rgba(22, 163, 74, .14); }
.h1 { background: rgba(132, 204, 22, .26); }
.h2 { background: rgba(234, 179, 8, .28); }
.h3 { background: rgba(245, 158, 11, .36); }
.h4 { background: rgba(249, 115, 22, .4); }
.h5 { background: rgba(239, 68, 68, .42); }
.h6 { background: rgba(220, 38, 38, .56); }
.h7 { background: rgba(190, 24, 93, .62); }
[class^=h].o { box-shadow: inset 0 -2px rgba(0, 0, 0, .3); }
[data-i]:hover { outline: 1px solid; }
[data-i]:hover::after { content: attr(data-i); position: absolute; z-index: 1; margin-block-start: 1.9em; padding: 0 .6em;
  background: Canvas; color: CanvasText; border: 1px solid GrayText; border-radius: 4px; font: .85rem/1.9 Vazirmatn,
  "Noto Sans Arabic", Tahoma, sans-serif; white-space: nowrap; unicode-bidi: isolate; }
)";

/// The loss in nats at which each colour but the first begins.
constexpr std::array kLossSteps = {0.1f, 0.5f, 1.0f, 2.0f, 3.0f, 4.5f, 6.0f};

/// Words of the page; {} takes what is counted.
struct Labels {
  const char *language, *direction, *title, *row, *line, *trained, *masked, *loss_scale, *figures, *mean_loss, *token,
      *token_loss, *half_space;
};
constexpr Labels kEnglish{.language = "en",
                          .direction = "ltr",
                          .title = "Training data, token by token",
                          .row = "{}, row {}",
                          .line = " (line {})",
                          .trained = "trained on",
                          .masked = "not trained on",
                          .loss_scale = "loss in nats",
                          .figures = "{} tokens, {} trained on, {} cut off",
                          .mean_loss = ", mean loss {}",
                          .token = "token {}: {}",
                          .token_loss = " · loss {} · probability {} %",
                          .half_space = "[ZWNJ]"};
constexpr Labels kPersian{.language = "fa",
                          .direction = "rtl",
                          .title = "دادهٔ آموزش، توکن به توکن",
                          .row = "{}، ردیف {}",
                          .line = " (خط {})",
                          .trained = "در آموزش",
                          .masked = "بیرون از آموزش",
                          .loss_scale = "زیان (نات)",
                          .figures = "{} توکن، {} در آموزش، {} بریده‌شده",
                          .mean_loss = "، میانگین زیان {}",
                          .token = "توکن {}: {}",
                          .token_loss = " · زیان {} · احتمال {}٪",
                          .half_space = "[نیم‌فاصله]"};

std::string base64(std::string_view bytes) {
  constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t group = 0;
    for (size_t j = 0; j < 3; ++j)
      group = group << 8 | (i + j < bytes.size() ? static_cast<unsigned char>(bytes[i + j]) : 0);
    for (size_t j = 0; j < 4; ++j) out += i + j <= bytes.size() ? kDigits[group >> (18 - 6 * j) & 63] : '=';
  }
  return out;
}

std::string style_source() {
  const std::string hex = sha256_hex(kStyle);
  std::string bytes;
  for (size_t i = 0; i < hex.size(); i += 2) bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  return "'sha256-" + base64(bytes) + "'";
}

class Page {
 public:
  Page(const Tokenizer& tokenizer, Language language)
      : tokenizer_(tokenizer),
        labels_(language == Language::fa ? kPersian : kEnglish),
        turn_start_(tokenizer.find_token("<start_of_turn>")) {}

  std::string render(std::span<const PreviewRow> rows, const std::string& model) {
    add_head();
    const bool has_losses = std::any_of(rows.begin(), rows.end(), [](const auto& row) { return !row.losses.empty(); });
    out_ += fmt::format("<p class=\"legend\"><bdi>{}</bdi> · ", escape_markup(model));
    add_legend(has_losses);
    for (const PreviewRow& row : rows) add_row(row);
    return std::move(out_) + "</body>\n</html>\n";
  }

 private:
  /// Persian digits on a Persian page.
  std::string localised(std::string text) const {
    if (&labels_ != &kPersian) return text;
    std::string out;
    for (const char c : text) {
      if (c == '.') {
        out += "٫";
      } else {
        append_utf8(out, is_ascii_digit(static_cast<unsigned char>(c)) ? 0x06F0 + static_cast<uint32_t>(c - '0')
                                                                       : static_cast<unsigned char>(c));
      }
    }
    return out;
  }
  std::string count(int64_t n) const { return localised(std::to_string(n)); }

  void add_head() {
    out_ += fmt::format(
        "<!doctype html>\n<html lang=\"{}\" dir=\"{}\">\n<head>\n<meta charset=\"utf-8\">\n"
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src {}; base-uri 'none'; "
        "form-action 'none'\">\n<meta name=\"viewport\" content=\"width=device-width\">\n<title>{}</title>\n"
        "<style>{}</style>\n</head>\n<body>\n<h1>{}</h1>\n",
        labels_.language, labels_.direction, style_source(), labels_.title, kStyle, labels_.title);
  }

  void add_legend(bool has_losses) {
    if (has_losses) {
      out_ += fmt::format("{}: ", labels_.loss_scale);
      for (size_t i = 0; i <= kLossSteps.size(); ++i) {
        const std::string from = i == 0 ? "0" : fmt::format("{:g}", kLossSteps[i - 1]);
        out_ += fmt::format("<span class=\"h{}\">{}</span>", i, localised(from));
      }
    } else {
      out_ += fmt::format("<span class=\"s\">{}</span>", labels_.trained);
    }
    out_ += fmt::format(" · <span class=\"m\">{}</span></p>\n", labels_.masked);
  }

  void add_row(const PreviewRow& row) {
    const Sample& sample = row.sample;
    out_ += "<article>\n<h2>" + fmt::format(fmt::runtime(labels_.row),
                                            "<bdi>" + escape_markup(printable(row.file)) + "</bdi>", count(row.number));
    if (row.line > 0) out_ += fmt::format(fmt::runtime(labels_.line), count(row.line));
    out_ += "</h2>\n<p class=\"figures\">";
    out_ += fmt::format(fmt::runtime(labels_.figures), count(static_cast<int64_t>(sample.ids.size())),
                        count(sample.n_scored()), count(sample.n_cut));
    if (!row.losses.empty())
      out_ += fmt::format(fmt::runtime(labels_.mean_loss), localised(fmt::format("{:.3f}", mean_loss(row))));
    out_ += "</p>\n";
    for (size_t begin = 0; begin < sample.ids.size();) {
      size_t end = begin + 1;
      while (end < sample.ids.size() && (end == 1 || sample.ids[end] != turn_start_))
        ++end;  // bos joins the first turn
      add_turn(row, begin, end);
      begin = end;
    }
    out_ += "</article>\n";
  }

  static double mean_loss(const PreviewRow& row) {
    double sum = 0;
    for (size_t i = 0; i < row.losses.size(); ++i) sum += row.sample.scored[i] != 0 ? row.losses[i] : 0;
    return sum / static_cast<double>(std::max<int64_t>(row.sample.n_scored(), 1));
  }

  std::string text_of(const PreviewRow& row, size_t begin, size_t end) const {
    return tokenizer_.decode(std::span(row.sample.ids).subspan(begin, end - begin), SkipSpecial::yes);
  }

  /// The end of the line that starts at `begin`: after the first token with a newline in it.
  size_t line_end(const PreviewRow& row, size_t begin, size_t end) const {
    for (size_t i = begin; i < end; ++i)
      if (text_of(row, i, i + 1).find('\n') != std::string::npos) return i + 1;
    return end;
  }

  void add_turn(const PreviewRow& row, size_t begin, size_t end) {
    const auto& ids = row.sample.ids;
    const bool has_head = std::find(ids.begin() + begin, ids.begin() + std::min(begin + 2, end), turn_start_) !=
                          ids.begin() + std::min(begin + 2, end);
    size_t line = begin;
    const char* role = "text";
    if (has_head) {
      line = line_end(row, begin, end);
      role = text_of(row, begin, line).starts_with("model") ? "model" : "user";
    }
    out_ += fmt::format("<section class=\"{}\">\n", role);
    if (has_head) add_line(row, begin, line, "ltr", " class=\"head\"");
    bool is_in_code = false, is_rtl = false;
    while (line < end) {
      const size_t next = line_end(row, line, end);
      const std::string text = text_of(row, line, next);
      const std::string_view stripped = strip_like_python(text);
      const bool is_fence = stripped.starts_with("```") && stripped.find("```", 3) == std::string_view::npos;
      is_rtl = is_right_to_left(text).value_or(is_rtl);
      const bool is_code = is_in_code || is_fence;
      add_line(row, line, next, is_code || !is_rtl ? "ltr" : "rtl", is_code ? " class=\"code\"" : "");
      is_in_code = is_in_code != is_fence;
      line = next;
    }
    out_ += "</section>\n";
  }

  void add_line(const PreviewRow& row, size_t begin, size_t end, const char* direction, const char* attribute) {
    out_ += fmt::format("<p dir=\"{}\"{}>", direction, attribute);
    for (size_t i = begin; i < end; ++i) add_token(row, i);
    out_ += "</p>\n";
  }

  void add_token(const PreviewRow& row, size_t i) {
    const bool is_scored = row.sample.scored[i] != 0, has_loss = i < row.losses.size() && i > 0;
    const std::string text = visible_token(tokenizer_, row.sample.ids[i], "↵");
    std::string classes = is_scored ? (has_loss ? heat(row.losses[i]) : "s") : "m";
    if (i % 2 == 1) classes += " o";  // neighbours differ, so that each token shows
    std::string info = fmt::format(fmt::runtime(labels_.token), count(row.sample.ids[i]), with_half_spaces(text));
    if (has_loss)
      info += fmt::format(fmt::runtime(labels_.token_loss), localised(fmt::format("{:.2f}", row.losses[i])),
                          localised(fmt::format("{:.2g}", 100 * std::exp(-row.losses[i]))));
    out_ +=
        fmt::format("<span class=\"{}\" data-i=\"{}\">{}</span>", classes, escape_markup(info), escape_markup(text));
  }

  static std::string heat(float loss) {
    const auto step = std::upper_bound(kLossSteps.begin(), kLossSteps.end(), loss) - kLossSteps.begin();
    return fmt::format("h{}", step);
  }

  /// A half space alone cannot be seen.
  std::string with_half_spaces(std::string_view text) const {
    std::string out;
    for (size_t i = 0; i < text.size();) {
      const CodePoint c = decode_utf8(text.substr(i));
      i += static_cast<size_t>(c.length);
      if (c.value == kZwnj)
        out += labels_.half_space;
      else
        append_utf8(out, c.value);
    }
    return out;
  }

  const Tokenizer& tokenizer_;
  const Labels& labels_;
  std::optional<int32_t> turn_start_;
  std::string out_;
};

}  // namespace

std::string preview_page(const Tokenizer& tokenizer, std::span<const PreviewRow> rows, const std::string& model,
                         Language language) {
  return Page(tokenizer, language).render(rows, model);
}

}  // namespace saaz
