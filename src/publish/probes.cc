#include "publish/probes.h"

#include <algorithm>
#include <array>
#include <random>

#include "model/base_tokenizer.h"

namespace saaz {

namespace {
constexpr std::array kProbes = {
    "پایتخت ایران تهران است و زبان رسمی آن فارسی.",
    "برای یادگیری برنامه‌نویسی بهتر است هر روز کمی تمرین کنید.",
    "بادگیرهای یزد هوای خانه را در تابستان خنک می‌کردند.",
    "می‌خواهم در بهار به شیراز بروم؛ چه جاهایی را ببینم؟",
    "حافظ و سعدی از شاعران بزرگ شیراز بودند.",
    "سال ۱۴۰۳ کبیسه بود و ۳۶۶ روز داشت.",
    "def greet(name):\n    return f\"سلام {name}\"",
    "آب در فشار یک جو در صد درجهٔ سلسیوس می‌جوشد.",
};
constexpr size_t kMaxProbeTokens = 64;
}  // namespace

std::vector<std::vector<int32_t>> probe_ids(const BaseModel& base) {
  std::vector<std::vector<int32_t>> out;
  if (!has_tokenizer(base.path)) {
    std::mt19937 generator(1);
    for (size_t p = 0; p < kProbes.size(); ++p) {
      std::vector<int32_t>& ids = out.emplace_back();
      for (int i = 0; i < 24; ++i)
        ids.push_back(static_cast<int32_t>(generator() % static_cast<uint64_t>(base.config.vocab_size)));
    }
    return out;
  }
  const Tokenizer tokenizer = load_base_tokenizer(base);
  for (const char* text : kProbes) {
    std::vector<int32_t> ids = tokenizer.encode(text, ControlTokens::as_text, AddBos::yes);
    ids.resize(std::min(ids.size(), kMaxProbeTokens));
    out.push_back(std::move(ids));
  }
  return out;
}

}  // namespace saaz
