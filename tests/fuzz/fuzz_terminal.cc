// What a terminal is given and what it gives: bytes typed into the line editor, and any text of a model laid out in
// lines. The text stays valid UTF-8, the cursor inside it, and no line is wider than the screen.
#include <cstdint>
#include <cstdlib>

#include "base/unicode.h"
#include "terminal/graphemes.h"
#include "terminal/line_editor.h"
#include "terminal/text_layout.h"

using namespace saaz;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  LineEditor editor;
  KeyReader keys;
  for (const char byte : bytes)
    if (const auto press = keys.push(byte)) editor.press(*press);
  const std::string& text = editor.text();
  if (find_invalid_utf8(text) != std::string::npos || editor.cursor() > text.size()) std::abort();
  for (const Bidi bidi : {Bidi::off, Bidi::visual, Bidi::padded, Bidi::directed}) {
    const EditorView view = view_of(text, editor.cursor(), "> ", bidi, 20);
    if (view.row >= static_cast<int>(view.lines.size()) || view.column >= 20) std::abort();
    TextLayout layout(bidi, 20);
    const std::string drawn = layout.push(text) + layout.finish();
    if (find_invalid_utf8(drawn) != std::string::npos) std::abort();
  }
  size_t begin = 0;
  for (const size_t end : wrap(bytes, 12)) {
    if (end < begin || end > size) std::abort();
    begin = end;
  }
  return begin == size ? 0 : (std::abort(), 0);
}
