// Classes of characters for Persian text: what normalisation and the data report have to tell apart. Tables hold what
// Persian text meets, not all of Unicode.
#pragma once

#include <cstdint>
#include <string_view>

namespace saaz {

constexpr uint32_t kZwnj = 0x200C, kTatweel = 0x0640, kSoftHyphen = 0x00AD, kReplacement = 0xFFFD;
constexpr uint32_t kArabicYeh = 0x064A, kAlefMaksura = 0x0649, kPersianYeh = 0x06CC;
constexpr uint32_t kArabicKaf = 0x0643, kPersianKaf = 0x06A9;
constexpr uint32_t kHeh = 0x0647, kHehWithYeh = 0x06C0, kHamzaAbove = 0x0654;

constexpr bool is_within(uint32_t c, uint32_t first, uint32_t last) { return c >= first && c <= last; }

/// Letters, marks and digits of the Arabic blocks; no punctuation.
bool is_arabic_script(uint32_t c);
/// An Arabic letter, not a mark or digit.
bool is_arabic_letter(uint32_t c);
/// Letters of Latin with their accents.
bool is_latin_letter(uint32_t c);
/// A letter of a script that Persian text does not use: Cyrillic, Hebrew, Devanagari, Chinese and so on. Greek, which
/// formulas have, is none.
bool is_foreign_letter(uint32_t c);
constexpr bool is_ascii_digit(uint32_t c) { return is_within(c, '0', '9'); }
constexpr bool is_persian_digit(uint32_t c) { return is_within(c, 0x06F0, 0x06F9); }
constexpr bool is_arabic_digit(uint32_t c) { return is_within(c, 0x0660, 0x0669); }
/// Fathatan to sukun, and the superscript alef; hamza and madda are no harakat.
constexpr bool is_haraka(uint32_t c) { return is_within(c, 0x064B, 0x0652) || c == 0x0670; }
/// Marks of direction, the byte order mark and the soft hyphen: invisible, and noise to a model. ZWNJ and ZWJ, which
/// carry meaning, are not among them.
bool is_invisible_mark(uint32_t c);
/// Blanks and line ends.
bool is_space(uint32_t c);
/// What a word may consist of: everything but blanks and punctuation.
bool is_word_character(uint32_t c);
/// Letters that the next one does not join: no half space is seen after them.
bool is_non_joining(uint32_t c);

/// The letters of an Arabic presentation form (ﻻ, ﭘ), as old files and PDFs have them; empty for any other character.
std::u32string_view letters_of_presentation_form(uint32_t c);

}  // namespace saaz
