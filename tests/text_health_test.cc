// The measures of Persian text, against texts whose counts can be told by hand.
#include "data/text_health.h"

#include <gtest/gtest.h>

#include <cmath>

namespace saaz {
namespace {

TEST(TextHealth, HalfSpacesRightLostAndMisplaced) {
  const TextHealth right = measure_text("می‌روم و کتاب‌ها را می‌آورم");
  EXPECT_EQ(right.n_half_spaces, 3);
  EXPECT_EQ(right.n_bad_half_spaces, 0);
  EXPECT_EQ(right.n_lost_half_spaces, 0);
  EXPECT_EQ(right.half_space_accuracy(), 1);
  // «می روم» and «کتاب ها» lost theirs; «کارها» wants none.
  const TextHealth lost = measure_text("می روم و کتاب ها را می‌آورم، کارها مانده");
  EXPECT_EQ(lost.n_half_spaces, 1);
  EXPECT_EQ(lost.n_lost_half_spaces, 2);
  EXPECT_DOUBLE_EQ(lost.half_space_accuracy(), 1.0 / 3);
  // One doubled, one beside a blank, one at the end.
  const TextHealth bad = measure_text("می‌‌روم خانه‌ ما‌");
  EXPECT_EQ(bad.n_half_spaces, 1);
  EXPECT_EQ(bad.n_bad_half_spaces, 3);
  EXPECT_TRUE(std::isnan(measure_text("سلام").half_space_accuracy()));
}

TEST(TextHealth, LettersOfOtherScriptsAndOfArabic) {
  const TextHealth mixed = measure_text("سلام мир 世界 hi");
  EXPECT_EQ(mixed.n_foreign_letters, 5);
  EXPECT_EQ(mixed.n_letters, 4 + 5);  // a Latin run is no prose
  EXPECT_EQ(measure_text("علي و كتاب").n_arabic_letters, 2);
  EXPECT_EQ(measure_text("علی و کتاب").n_arabic_letters, 0);
  // Code and formulas may hold what they like.
  const TextHealth code = measure_text("سلام `печать` 😀 ۱۲۳ α");
  EXPECT_EQ(code.n_foreign_letters, 0);
  EXPECT_EQ(code.n_letters, 4);
}

TEST(TextHealth, RepeatedRunsOfFourWords) {
  EXPECT_TRUE(std::isnan(measure_text("یک دو سه").repetition()));
  EXPECT_EQ(measure_text("یک دو سه چهار پنج").repetition(), 0);
  // Twelve words, nine runs; from the fifth on each was there before.
  const TextHealth loop = measure_text("یک دو سه چهار یک دو سه چهار، یک دو سه چهار.");
  EXPECT_EQ(loop.n_runs, 9);
  EXPECT_EQ(loop.n_repeated_runs, 5);
  TextHealth sum = loop;
  sum.add(loop);
  EXPECT_EQ(sum.n_runs, 18);
  EXPECT_DOUBLE_EQ(sum.repetition(), 5.0 / 9);
}

TEST(TextHealth, AnythingValidIsMeasured) {
  for (const char* text : {"", " ", "\n\n", "```", "\xEF\xBF\xBD", "‌‌‌", "1234", "﴾﴿"}) {
    const TextHealth health = measure_text(text);
    EXPECT_GE(health.n_half_spaces, 0) << text;
    EXPECT_NO_THROW(to_json(to_value(health)));
  }
}

}  // namespace
}  // namespace saaz
