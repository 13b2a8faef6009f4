#include "data/script.h"

#include <algorithm>
#include <array>
#include <utility>

namespace saaz {
namespace {

/// `n` forms from `first` on, all of the same letters.
struct Forms {
  uint32_t first, n;
  std::u32string_view letters;
};

constexpr auto kForms = std::to_array<Forms>({
    {0xFB56, 4, U"پ"},  {0xFB7A, 4, U"چ"},  {0xFB8A, 2, U"ژ"}, {0xFB8E, 4, U"ک"},  {0xFB92, 4, U"گ"},
    {0xFBA4, 2, U"ۀ"},  {0xFBFC, 4, U"ی"},  {0xFE80, 1, U"ء"}, {0xFE81, 2, U"آ"},  {0xFE83, 2, U"أ"},
    {0xFE85, 2, U"ؤ"},  {0xFE87, 2, U"إ"},  {0xFE89, 4, U"ئ"}, {0xFE8D, 2, U"ا"},  {0xFE8F, 4, U"ب"},
    {0xFE93, 2, U"ة"},  {0xFE95, 4, U"ت"},  {0xFE99, 4, U"ث"}, {0xFE9D, 4, U"ج"},  {0xFEA1, 4, U"ح"},
    {0xFEA5, 4, U"خ"},  {0xFEA9, 2, U"د"},  {0xFEAB, 2, U"ذ"}, {0xFEAD, 2, U"ر"},  {0xFEAF, 2, U"ز"},
    {0xFEB1, 4, U"س"},  {0xFEB5, 4, U"ش"},  {0xFEB9, 4, U"ص"}, {0xFEBD, 4, U"ض"},  {0xFEC1, 4, U"ط"},
    {0xFEC5, 4, U"ظ"},  {0xFEC9, 4, U"ع"},  {0xFECD, 4, U"غ"}, {0xFED1, 4, U"ف"},  {0xFED5, 4, U"ق"},
    {0xFED9, 4, U"ك"},  {0xFEDD, 4, U"ل"},  {0xFEE1, 4, U"م"}, {0xFEE5, 4, U"ن"},  {0xFEE9, 4, U"ه"},
    {0xFEED, 2, U"و"},  {0xFEEF, 2, U"ى"},  {0xFEF1, 4, U"ي"}, {0xFEF5, 2, U"لآ"}, {0xFEF7, 2, U"لأ"},
    {0xFEF9, 2, U"لإ"}, {0xFEFB, 2, U"لا"},
});

bool is_arabic_punctuation(uint32_t c) {
  return c == 0x060C || c == 0x061B || is_within(c, 0x061D, 0x061F) || is_within(c, 0x066A, 0x066D) || c == 0x06D4 ||
         is_within(c, 0xFD3E, 0xFD4F);
}

bool is_arabic_mark(uint32_t c) {
  return is_within(c, 0x0610, 0x061A) || is_within(c, 0x064B, 0x065F) || c == 0x0670 || is_within(c, 0x06D6, 0x06ED);
}

}  // namespace

bool is_arabic_script(uint32_t c) {
  const bool is_in_block = is_within(c, 0x0610, 0x06FF) || is_within(c, 0x0750, 0x077F) ||
                           is_within(c, 0x08A0, 0x08FF) || is_within(c, 0xFB50, 0xFDFF) || is_within(c, 0xFE70, 0xFEFC);
  return is_in_block && !is_arabic_punctuation(c);
}

bool is_arabic_letter(uint32_t c) {
  return is_arabic_script(c) && !is_arabic_mark(c) && !is_arabic_digit(c) && !is_persian_digit(c) && c != kTatweel;
}

bool is_latin_letter(uint32_t c) {
  return is_within(c | 0x20, 'a', 'z') || (is_within(c, 0x00C0, 0x024F) && c != 0x00D7 && c != 0x00F7);
}

bool is_foreign_letter(uint32_t c) {
  // Blocks of scripts, in order; between them lie the Arabic blocks, punctuation and symbols.
  static constexpr std::array<std::pair<uint32_t, uint32_t>, 14> kBlocks = {{{0x0400, 0x052F},
                                                                             {0x0531, 0x05EA},
                                                                             {0x0710, 0x074F},
                                                                             {0x0780, 0x085F},
                                                                             {0x0900, 0x1CFF},
                                                                             {0x2C00, 0x2DFF},
                                                                             {0x3005, 0x3007},
                                                                             {0x3041, 0x318F},
                                                                             {0x31F0, 0x31FF},
                                                                             {0x3400, 0x4DBF},
                                                                             {0x4E00, 0xABFF},
                                                                             {0xAC00, 0xD7FF},
                                                                             {0xF900, 0xFAFF},
                                                                             {0x20000, 0x3FFFF}}};
  return std::any_of(kBlocks.begin(), kBlocks.end(),
                     [c](const auto& block) { return is_within(c, block.first, block.second); });
}

bool is_invisible_mark(uint32_t c) {
  return c == 0xFEFF || c == 0x200E || c == 0x200F || is_within(c, 0x202A, 0x202E) || is_within(c, 0x2066, 0x2069) ||
         c == kSoftHyphen;
}

bool is_space(uint32_t c) {
  return is_within(c, 0x09, 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         is_within(c, 0x2000, 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool is_word_character(uint32_t c) {
  if (c < 0x80) return is_latin_letter(c) || is_ascii_digit(c);
  return c >= 0xC0 && !is_space(c) && !is_within(c, 0x2000, 0x206F) && !is_arabic_punctuation(c) && c != kTatweel &&
         c != kZwnj;
}

bool is_non_joining(uint32_t c) { return std::u32string_view(U"اآأإدذرزژوؤء").find(c) != std::u32string_view::npos; }

std::u32string_view letters_of_presentation_form(uint32_t c) {
  const auto after = std::upper_bound(kForms.begin(), kForms.end(), c,
                                      [](uint32_t value, const Forms& forms) { return value < forms.first; });
  if (after == kForms.begin()) return {};
  const Forms& forms = *(after - 1);
  return c < forms.first + forms.n ? forms.letters : std::u32string_view();
}

}  // namespace saaz
