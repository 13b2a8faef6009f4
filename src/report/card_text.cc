#include "report/card_text.h"

#include <cmath>

#include "base/check.h"

// clang-format off: it cuts long Persian strings anew each time it is run
namespace saaz {

namespace {

struct Language {
  bool is_persian;
  const char *figure, *value;  // heads of a table
};
constexpr Language kEnglish{false, "figure", "value"}, kPersian{true, "کمیت", "مقدار"};

/// A cell must not end its row or begin a tag.
std::string cell(std::string_view text) {
  std::string out;
  for (const char c : text) out += c == '|' ? "\\|" : c == '\n' ? " " : std::string(1, c);
  return out;
}

std::string table(const std::vector<CardRow>& rows, const Language& language) {
  std::string out = fmt::format("| {} | {} |\n| --- | --- |\n", language.figure, language.value);
  for (const CardRow& row : rows)
    out += fmt::format("| {} | {} |\n", language.is_persian ? row.fa : row.en,
                       cell(language.is_persian ? row.value_fa : row.value_en));
  return out + "\n";
}

std::string section(const char* title, const std::string& body) {
  return body.empty() ? "" : fmt::format("### {}\n\n{}", title, body);
}

/// The figures of the run: `alt` describes them to those who cannot see them.
std::string figures(const CardContent& content, const char* loss, const char* norm, const char* rate) {
  if (!content.has_charts) return "";
  return fmt::format("![{}](charts/loss.svg)\n\n![{}](charts/grad_norm.svg)\n\n![{}](charts/learning_rate.svg)\n\n",
                     loss, norm, rate);
}

std::string english(const CardContent& c) {
  std::string out = "## English\n\n";
  const std::string what = c.is_merged ? "A fine-tuned model: the weights of" : "A LoRA adapter for";
  out +=
      fmt::format("{} {}{}. Made with `saaz` on the data named below; every figure here was measured by that run.\n\n",
                  what, c.base.empty() ? "a Gemma model" : "`" + c.base + "`",
                  c.is_merged ? " with a trained LoRA adapter merged into them" : "");
  out += section("What training changed", table(c.results, kEnglish) + figures(c, "Training and validation loss",
                                                                               "Gradient norm", "Learning rate"));
  out += section("How it was trained", table(c.training, kEnglish));
  if (!c.data.empty()) out += section("Data", table(c.data, kEnglish));
  if (!c.merge.empty()) out += section("Proof of the merge", table(c.merge, kEnglish));
  out += "### Limits\n\n";
  out += c.has_validation ? "The losses are over the validation conversations, which were not trained on. "
                          : "No conversations were set aside for validation, so only training losses are known. ";
  out +=
      "No benchmark was run and nobody judged the answers. Like its base, the model can be wrong and can repeat "
      "prejudices of its data; do not rely on it for medical, legal or financial decisions.\n\n";
  return out + "### Terms\n\n" + c.notice +
         ". The weights were modified by the fine-tuning described here. Licence of "
         "the data: see the table above.\n\n";
}

std::string persian(const CardContent& c) {
  std::string out = "<div dir=\"rtl\">\n\n## فارسی\n\n";
  const std::string base = c.base.empty() ? "یک مدل Gemma" : "<bdi>`" + c.base + "`</bdi>";
  out +=
      c.is_merged
          ? fmt::format(
                "مدلی تنظیم‌شده: وزن‌های {} که یک آداپتور آموزش‌دیدهٔ LoRA در آن‌ها ادغام شده است.",
                base)
          : fmt::format("یک آداپتور LoRA برای {}.", base);
  out +=
      " با <bdi>`saaz`</bdi> و روی داده‌هایی که در ادامه آمده ساخته شده است؛ همهٔ عددهای این صفحه را همان اجرا "
      "اندازه گرفته است.\n\n";
  out += section("آموزش چه چیزی را تغییر داد",
                 table(c.results, kPersian) + figures(c, "زیان آموزش و اعتبارسنجی", "نُرم گرادیان", "نرخ یادگیری"));
  out += section("چگونه آموزش دیده است", table(c.training, kPersian));
  if (!c.data.empty()) out += section("داده‌ها", table(c.data, kPersian));
  if (!c.merge.empty()) out += section("گواه ادغام", table(c.merge, kPersian));
  out += "### محدودیت‌ها\n\n";
  out +=
      c.has_validation
          ? "زیان‌های اعتبارسنجی روی گفت‌وگوهایی سنجیده شده‌اند که در آموزش نبوده‌اند. "
          : "گفت‌وگویی برای اعتبارسنجی کنار گذاشته نشده و تنها زیان آموزش دانسته است. ";
  out +=
      "هیچ محک استانداردی اجرا نشده و کسی دربارهٔ پاسخ‌ها داوری نکرده است. این مدل، مانند مدل پایه‌اش، ممکن است "
      "اشتباه کند یا سوگیری‌های داده‌ها را بازگو کند؛ برای تصمیم‌های پزشکی، حقوقی یا مالی به آن تکیه نکنید.\n\n";
  return out +
         "### شرایط استفاده\n\nGemma بر پایهٔ شرایط استفادهٔ Gemma و با رعایت آن ارائه می‌شود: "
         "<bdi>[ai.google.dev/gemma/terms](https://ai.google.dev/gemma/terms)</bdi>. وزن‌ها با تنظیمی که در این "
         "صفحه شرح داده شده تغییر کرده‌اند. پروانهٔ داده‌ها در جدول بالا آمده است.\n\n</div>\n\n";
}

std::string usage(const CardContent& c) {
  std::string out = "## Use · استفاده\n\nIn the folder of this file: · در پوشهٔ همین پرونده:\n\n```bash\n";
  if (c.is_merged)
    return out +
           "saaz chat --model .\n```\n\n```python\nfrom transformers import pipeline\n\n"
           "chat = pipeline(\"text-generation\", model=\".\")\n"
           "print(chat([{\"role\": \"user\", \"content\": "
           "\"سلام!\"}])[0][\"generated_text\"][-1][\"content\"])\n```\n\n";
  out += fmt::format("saaz chat --model {} --adapter .\n```\n\n", c.base_hub_id.empty() ? "BASE" : c.base_hub_id);
  if (c.base_hub_id.empty()) return out;
  return out + fmt::format(
                   "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
                   "base = AutoModelForCausalLM.from_pretrained(\"{}\")\n"
                   "model = PeftModel.from_pretrained(base, \".\")\n```\n\n",
                   c.base_hub_id);
}

std::string citation(const CardContent& c) {
  std::string out = "## Citation · ارجاع\n\n```bibtex\n";
  for (const std::string& entry : c.citations) out += entry + "\n\n";
  return out + R"(@inproceedings{dettmers2023qlora,
  title     = {{QLoRA}: Efficient Finetuning of Quantized {LLMs}},
  author    = {Dettmers, Tim and Pagnoni, Artidoro and Holtzman, Ari and Zettlemoyer, Luke},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2023},
  url       = {https://arxiv.org/abs/2305.14314}
}

@misc{gemma2025,
  title  = {Gemma},
  author = {{Gemma Team}},
  year   = {2025},
  url    = {https://ai.google.dev/gemma}
}
```
)";
}

constexpr int64_t kMinute = 60, kHour = 3600;

}  // namespace

std::string card_body(const CardContent& content) {
  std::string out = "# " + content.name + "\n\n[فارسی](#فارسی) · [English](#english)\n\n";
  out += persian(content) + english(content) + usage(content);
  if (!content.recipe.empty()) out += "## Recipe · دستور آموزش\n\n" + content.recipe + "\n";
  return out + citation(content);
}

std::string grouped(int64_t n) {
  std::string out = std::to_string(n);
  constexpr size_t kGroup = 3;
  for (size_t at = out.size(); at > kGroup && out[at - kGroup - 1] != '-';) out.insert(at -= kGroup, ",");
  return out;
}

std::string persian_number(std::string_view text) {
  static constexpr const char* kDigits[] = {"۰", "۱", "۲", "۳", "۴", "۵", "۶", "۷", "۸", "۹"};
  const auto is_digit = [&](size_t i) { return i < text.size() && text[i] >= '0' && text[i] <= '9'; };
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool is_inside = i > 0 && is_digit(i - 1) && is_digit(i + 1);
    if (is_digit(i)) {
      out += kDigits[text[i] - '0'];
    } else if (is_inside && text[i] == '.') {
      out += "٫";
    } else if (is_inside && text[i] == ',') {
      out += "٬";
    } else {
      out += text[i];
    }
  }
  return out;
}

std::string duration(double seconds) {
  const int64_t s = std::llround(seconds);
  if (s >= kHour) return fmt::format("{} h {} min", s / kHour, s % kHour / kMinute);
  if (s >= 2 * kMinute) return fmt::format("{} min {} s", s / kMinute, s % kMinute);
  return fmt::format("{} s", s);
}

std::string persian_duration(double seconds) {
  const int64_t s = std::llround(seconds);
  if (s >= kHour) return persian_number(fmt::format("{} ساعت و {} دقیقه", s / kHour, s % kHour / kMinute));
  if (s >= 2 * kMinute) return persian_number(fmt::format("{} دقیقه و {} ثانیه", s / kMinute, s % kMinute));
  return persian_number(fmt::format("{} ثانیه", s));
}

}  // namespace saaz
// clang-format on
