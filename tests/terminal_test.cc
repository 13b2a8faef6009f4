// The terminal room: graphemes, the order of right-to-left lines, wrapping, answers that grow, the line editor. The
// expected orders are UAX #9's, worked out by hand; the screen is a small terminal of its own.
#include <gtest/gtest.h>

#include <random>

#include "base/unicode.h"
#include "terminal/bidi.h"
#include "terminal/graphemes.h"
#include "terminal/line_editor.h"
#include "terminal/text_layout.h"

namespace saaz {
namespace {

std::string visual(std::string_view text, Direction base) { return visual_line(text, 0, text.size(), base).text; }

/// The lines a terminal shows after `output`, without blanks at their ends.
std::vector<std::string> screen_after(std::string_view output) {
  std::vector<std::string> lines(1);
  for (size_t i = 0; i < output.size(); ++i) {
    if (output[i] == '\n') {
      lines.emplace_back();
    } else if (output[i] == '\r') {
      EXPECT_EQ(output.substr(i, 4), "\r\x1b[K") << "a line is only ever drawn anew as a whole";
      lines.back().clear();
      i += 3;
    } else if (output[i] == '\x1b') {
      EXPECT_TRUE(output.substr(i, 5) == "\x1b[2 k" || output.substr(i, 5) == "\x1b[0 k");
      i += 4;
    } else {
      lines.back() += output[i];
    }
  }
  for (std::string& line : lines) line.erase(line.find_last_not_of(' ') + 1);
  return lines;
}

std::vector<std::string> code_points(std::string_view text) {
  std::vector<std::string> out;
  for (size_t i = 0; i < text.size();) {
    const auto n = static_cast<size_t>(decode_utf8(text.substr(i)).length);
    out.emplace_back(text.substr(i, n));
    i += n;
  }
  return out;
}

std::string layout(std::string_view text, Bidi bidi, int columns) {
  TextLayout layout(bidi, columns);
  std::string out = layout.push(text);
  return out + layout.finish();
}

constexpr std::string_view kAnswer =
    "پایتون (Python) یک زبان برنامه‌نویسی است که در سال ۱۹۹۱ ساخته شد؛ "
    "نسخهٔ "
    "امروزی "
    "آن "
    "3.11 "
    "است.\n"
    "\n"
    "- `NumPy` برای محاسبه 👩‍👩‍👧\n"
    "- http://example.org نشانی آن است\n"
    "```python\n"
    "print('سلام')  # a comment that is longer than the line of this terminal\n"
    "```\n"
    "This one is English, with a فارسی word.\n"
    "اَلا یا اَیُّهَا السّاقی";

TEST(Graphemes, LettersKeepTheirMarks) {
  EXPECT_EQ(graphemes("یُّ").size(), 1u);
  EXPECT_EQ(graphemes("a\u0301b").size(), 2u);
  EXPECT_EQ(graphemes("👩‍👩‍👧").size(), 1u);
  EXPECT_EQ(cell_width("👩‍👩‍👧"), 2);
  EXPECT_EQ(cell_width("می‌روم"), 5);
  EXPECT_EQ(cell_width("漢字"), 4);
  EXPECT_EQ(graphemes("\xff\xfe").size(), 2u);
  EXPECT_TRUE(graphemes("").empty());
}

TEST(VisualLine, LettersJoin) {
  EXPECT_EQ(visual("سلام", Direction::rtl), "\uFEE1\uFEFC\uFEB3");        // meem alone, lam-alef, seen
  EXPECT_EQ(visual("گچپژ", Direction::rtl), "\uFB8B\uFB59\uFB7D\uFB94");  // Persian letters: zhe does not join on
  EXPECT_EQ(visual("abc", Direction::rtl), "abc");
}

TEST(VisualLine, HalfSpacesPartLettersAndAreNotDrawn) {
  EXPECT_EQ(visual("می‌خ", Direction::rtl), "\uFEA5\uFBFD\uFEE3");
}

TEST(VisualLine, NumbersLatinAndBracketsKeepTheirOrder) {
  EXPECT_EQ(visual("دو (abc) ۱۲۳.", Direction::rtl), ".۱۲۳ (abc) \uFEED\uFEA9");
  EXPECT_EQ(visual("abc دو.", Direction::ltr), "abc \uFEED\uFEA9.");
  EXPECT_EQ(visual("دو abc.", Direction::rtl), ".abc \uFEED\uFEA9");
}

TEST(VisualLine, CellsFollowTheLetters) {
  const VisualLine line = visual_line("دو ab", 0, 7, Direction::rtl);
  EXPECT_EQ(line.text, "ab \uFEED\uFEA9");
  EXPECT_EQ(line.cells, (std::vector<int>{4, 3, 2, 0, 1}));
}

TEST(VisualLine, ALineIsOrderedWithItsParagraph) {
  const std::string paragraph = "دو ۱۲ abc";
  const size_t begin = paragraph.find("۱");
  EXPECT_EQ(visual_line(paragraph, begin, paragraph.size(), Direction::rtl).text, "abc ۱۲");
}

TEST(Wrap, LinesFitAndCoverTheText) {
  const std::string text = "یک دو سه چهار abcdefghijklmnop پنج";
  for (int columns = 1; columns < 40; ++columns) {
    size_t begin = 0;
    for (const size_t end : wrap(text, columns)) {
      std::string_view line = std::string_view(text).substr(begin, end - begin);
      line = line.substr(0, line.find_last_not_of(' ') + 1);
      EXPECT_LE(cell_width(line), columns);
      EXPECT_TRUE(end > begin);
      begin = end;
    }
    EXPECT_EQ(begin, text.size());
  }
  EXPECT_EQ(wrap("abc def", 4), (std::vector<size_t>{4, 7}));
  EXPECT_EQ(wrap("", 4), (std::vector<size_t>{0}));
}

TEST(TextLayout, RightToLeftLinesStandAtTheRight) {
  const auto screen = screen_after(layout("دو.\nab\n", Bidi::visual, 11));
  EXPECT_EQ(screen[0], "       .\uFEED\uFEA9");
  EXPECT_EQ(screen[1], "ab");
  EXPECT_EQ(screen_after(layout("دو.", Bidi::padded, 11))[0], "       دو.");
  EXPECT_EQ(layout("دو.\n", Bidi::directed, 11), "\r\x1b[K\x1b[2 kدو.\n\x1b[0 k");
}

TEST(TextLayout, OffIsTheTextItself) { EXPECT_EQ(layout(kAnswer, Bidi::off, 20), std::string(kAnswer) + "\n"); }

TEST(TextLayout, TheScreenDoesNotDependOnThePieces) {
  for (const Bidi bidi : {Bidi::visual, Bidi::padded, Bidi::directed}) {
    for (const int columns : {8, 24, 40, 80}) {
      TextLayout pieces(bidi, columns);
      std::string out;
      for (const std::string& point : code_points(kAnswer)) out += pieces.push(point);
      out += pieces.finish();
      EXPECT_EQ(screen_after(out), screen_after(layout(kAnswer, bidi, columns))) << columns;
    }
  }
}

TEST(TextLayout, NoLineIsWiderThanTheTerminal) {
  for (const std::string& line : screen_after(layout(kAnswer, Bidi::visual, 24))) EXPECT_LT(cell_width(line), 24);
}

TEST(TextLayout, CodeStaysAtTheLeft) {
  const auto screen = screen_after(layout("سلام\n```\nسلام = 1\n```\nسلام", Bidi::padded, 30));
  EXPECT_EQ(screen[2], "سلام = 1");
  EXPECT_TRUE(screen[4].starts_with("   "));
}

TEST(TextLayout, OpenCodeAndHalfAddressesDoNotDecideTheDirection) {
  TextLayout layout(Bidi::directed, 40);
  std::string out;
  for (const std::string& point : code_points("سلام\n`ls` یک دستور است")) out += layout.push(point);
  EXPECT_EQ(out.find("\x1b[0 k`"), std::string::npos) << "the line is right to left from its first character on";
  TextLayout other(Bidi::directed, 40);
  out.clear();
  for (const std::string& point : code_points("سلام\nhttp://a.b نشانی")) out += other.push(point);
  EXPECT_EQ(out.find("\x1b[0 kh"), std::string::npos);
}

TEST(TextLayout, NothingOfDirectionIsAdded) {
  for (const Bidi bidi : {Bidi::visual, Bidi::padded, Bidi::directed, Bidi::off})
    for (const std::string& point : code_points(layout(kAnswer, bidi, 30))) {
      const uint32_t c = decode_utf8(point).value;
      EXPECT_FALSE(c == 0x200E || c == 0x200F || (c >= 0x202A && c <= 0x202E) || (c >= 0x2066 && c <= 0x2069));
    }
}

TEST(BidiOf, TerminalsByTheirNames) {
  EXPECT_EQ(bidi_of({.vte_version = "7006"}), Bidi::directed);
  EXPECT_EQ(bidi_of({.vte_version = "5202"}), Bidi::visual);
  EXPECT_EQ(bidi_of({.mlterm = "3.9.2"}), Bidi::directed);
  EXPECT_EQ(bidi_of({.term_program = "Apple_Terminal"}), Bidi::padded);
  EXPECT_EQ(bidi_of({.term_program = "WezTerm"}), Bidi::visual);
  EXPECT_EQ(bidi_of({.vte_version = "7006", .tmux = "/tmp/tmux-0/default"}), Bidi::padded);
  EXPECT_EQ(bidi_of({.vte_version = "x"}), Bidi::visual);
}

/// An editor after these bytes.
struct Typing {
  LineEditor editor;
  KeyReader keys;
  LineEditor::Outcome outcome = LineEditor::Outcome::editing;
  Typing& type(std::string_view bytes) {
    for (const char byte : bytes)
      if (const auto press = keys.push(byte)) {
        outcome = editor.press(*press);
        if (outcome == LineEditor::Outcome::done) editor.remember();
      }
    return *this;
  }
};

TEST(LineEditor, TypesMovesAndErases) {
  EXPECT_EQ(Typing().type("سلام\x1b[D\x1b[DX").editor.text(), "سلXام");
  EXPECT_EQ(Typing().type("یُّ\x7f").editor.text(), "") << "a letter goes with its marks";
  EXPECT_EQ(Typing().type("one two\x17").editor.text(), "one ");
  EXPECT_EQ(Typing().type("one two\x01\x0b").editor.text(), "");
  EXPECT_EQ(Typing().type("ab\x1b[H\x1b[3~").editor.text(), "b");
  EXPECT_EQ(Typing().type("one two\x1b[1;5DX").editor.text(), "one Xtwo");
  EXPECT_EQ(Typing().type("\x04").outcome, LineEditor::Outcome::end_of_file);
  EXPECT_EQ(Typing().type("a\x04").outcome, LineEditor::Outcome::editing);
  EXPECT_EQ(Typing().type("a\x03").outcome, LineEditor::Outcome::cancelled);
}

TEST(LineEditor, SeveralLines) {
  EXPECT_EQ(Typing().type("a\x1b\rb\\\rc").editor.text(), "a\nb\nc");
  EXPECT_EQ(Typing().type("\x1b[200~a\rb\x03\x1b[201~").editor.text(), "a\nb") << "pasted text sends nothing";
  EXPECT_EQ(Typing().type("abc\x1b\rde\x1b[AX").editor.text(), "abXc\nde");
}

TEST(LineEditor, RecallsEarlierMessages) {
  Typing typing;
  typing.type("first\rsecond\rdraft\x1b[A\x1b[A");
  EXPECT_EQ(typing.editor.text(), "first");
  typing.type("\x1b[B\x1b[B");
  EXPECT_EQ(typing.editor.text(), "draft");
}

TEST(LineEditor, AnyBytesLeaveValidText) {
  std::mt19937 random(3407);
  Typing typing;
  for (int i = 0; i < 200000; ++i) {
    const char byte =
        static_cast<char>(random() % 3 == 0 ? "\x1b[ABCDHF~201;\xd8\xb3\x7f"[random() % 16] : random() % 256);
    typing.type({&byte, 1});
    if (i % 997 == 0) {
      const std::string& text = typing.editor.text();
      ASSERT_EQ(find_invalid_utf8(text), std::string::npos);
      ASSERT_LE(typing.editor.cursor(), text.size());
      const EditorView view = view_of(text, typing.editor.cursor(), "> ", Bidi::visual, 20);
      ASSERT_LT(view.row, static_cast<int>(view.lines.size()));
      if (text.size() > 500) typing.type("\x1b[201~\x03"), typing.editor.clear();
    }
  }
}

TEST(EditorView, TheCursorStandsWhereTheNextLetterWill) {
  const EditorView ltr = view_of("ab", 2, "> ", Bidi::visual, 13);
  EXPECT_EQ(ltr.lines, (std::vector<std::string>{"> ab"}));
  EXPECT_EQ(ltr.column, 4);
  const EditorView rtl = view_of("دو", 4, "> ", Bidi::visual, 13);
  EXPECT_EQ(rtl.lines, (std::vector<std::string>{">         \uFEED\uFEA9"}));
  EXPECT_EQ(rtl.column, 9);
  EXPECT_EQ(view_of("دو", 0, "> ", Bidi::visual, 13).column, 11);
  EXPECT_EQ(view_of("a\nb", 3, "> ", Bidi::off, 13).row, 1);
}

}  // namespace
}  // namespace saaz
