#include "report/model_card.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "report/card_text.h"
#include "report/charts.h"

namespace saaz {

namespace {

constexpr const char* kGemmaNotice =
    "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms";

const Value& member(const Value& object, std::string_view key) {
  static const Value kNone;
  const Value* found = object.find(key);
  return found == nullptr ? kNone : *found;
}

const Value& provenance_of(const RunRecord& run, std::string_view key) {
  return member(member(run.start, "provenance"), key);
}

std::vector<Value> datasets_of(const RunRecord& run) {
  const Value& list = provenance_of(run, "datasets");
  return list.is_array() ? list.items() : std::vector<Value>();
}

/// The Hub's name, else the file's or folder's.
std::string title_of(const Value& source) {
  const std::string id = text_or_empty(source, "hub_id");
  return id.empty() ? text_or_empty(source, "name") : id;
}

void push_once(Value& list, const Value& item) {
  for (const Value& known : list.items())
    if (to_json(known) == to_json(item)) return;
  list.push_back(item);
}

Value metric(const char* type, const char* name, double value) {
  return Value::object({{"type", type}, {"name", name}, {"value", value}});
}

/// What the Hub's table of results shows. It wants a dataset, so there is none without validation.
Value model_index(const RunRecord& run) {
  const std::vector<Value> datasets = datasets_of(run);
  const EvalRecord& last = run.evals.back();
  const std::string dataset = datasets.empty() ? "validation" : title_of(datasets.front());
  Value metrics = Value::array({metric("loss", "Validation loss (nats per token)", last.loss),
                                metric("perplexity", "Validation perplexity", std::exp(last.loss))});
  const Value task = Value::object({{"type", "text-generation"}, {"name", "Text generation"}});
  const Value data = Value::object({{"type", dataset}, {"name", dataset}, {"split", "validation"}});
  const Value result = Value::object({{"task", task}, {"dataset", data}, {"metrics", metrics}});
  return Value::array({Value::object({{"name", run.name}, {"results", Value::array({result})}})});
}

std::string front_matter(const RunRecord& run, bool is_merged) {
  Value header = Value::object({{"license", "gemma"},
                                {"library_name", is_merged ? "transformers" : "peft"},
                                {"pipeline_tag", "text-generation"}});
  // The Hub takes names of its own only: a local file is named in the text below.
  if (const std::string base = text_or_empty(provenance_of(run, "base"), "hub_id"); !base.empty()) {
    header.set("base_model", base);
    header.set("base_model_relation", is_merged ? "finetune" : "adapter");
  }
  Value languages = Value::array(), hub_datasets = Value::array();
  for (const Value& dataset : datasets_of(run)) {
    if (const Value* list = dataset.find("languages"))
      for (const Value& language : list->items()) push_once(languages, language);
    if (const Value* id = dataset.find("hub_id")) push_once(hub_datasets, *id);
  }
  if (!languages.items().empty()) header.set("language", languages);
  if (!hub_datasets.items().empty()) header.set("datasets", hub_datasets);
  const bool is_quantised = text_or_empty(member(run.recipe, "quant"), "scheme") == "nf4";
  header.set("tags", Value::array({is_quantised ? "qlora" : "lora", "gemma", "conversational", "saaz"}));
  if (!run.evals.empty()) {
    header.set("metrics", Value::array({"perplexity"}));
    header.set("model-index", model_index(run));
  }
  return "---\n" + to_yaml(header) + "---\n\n";
}

CardRow row(const char* en, const char* fa, const std::string& value) { return {en, fa, value, persian_number(value)}; }

std::vector<CardRow> results(const RunRecord& run) {
  std::vector<CardRow> rows;
  const auto add = [&](const char* en, const char* fa, double before, double after, int decimals) {
    const auto both = [&](const char* arrow) {
      return fmt::format("{:.{}f} {} {:.{}f}", before, decimals, arrow, after, decimals);
    };
    rows.push_back({en, fa, both("→"), persian_number(both("←"))});
  };
  if (!run.evals.empty()) {
    const EvalRecord &first = run.evals.front(), &last = run.evals.back(), &best = *run.best_eval();
    add("Validation loss (nats per token)", "زیان اعتبارسنجی (نات بر توکن)", first.loss, last.loss, 4);
    add("Validation perplexity", "سرگشتگی اعتبارسنجی", std::exp(first.loss), std::exp(last.loss), 2);
    if (best.step != last.step)
      rows.push_back(
          {"Best validation loss", "بهترین زیان اعتبارسنجی",
           fmt::format("{:.4f}, after update {}", best.loss, best.step),
           persian_number(fmt::format("{:.4f}، پس از به‌روزرسانی {}", best.loss, best.step))});
    if (last.n_scored_tokens > 0)
      rows.push_back(
          row("Scored validation tokens", "توکن‌های سنجیده‌شده", grouped(last.n_scored_tokens)));
  }
  if (!run.steps.empty())
    add("Training loss, first update → mean of the last tenth",
        "زیان آموزش، نخستین به‌روزرسانی ← میانگین دهک پایانی",
        run.steps.front().loss, run.final_loss(), 4);
  return rows;
}

void add_size(std::vector<CardRow>& rows, const RunRecord& run) {
  const auto n = [&](const char* key) { return static_cast<int64_t>(number_or(run.start, key, 0)); };
  if (n("n_samples") > 0)
    rows.push_back(
        {"Conversations", "گفت‌وگوها",
         fmt::format("{} for training, {} for validation", grouped(n("n_samples")), grouped(n("n_validation_samples"))),
         persian_number(fmt::format("{} برای آموزش، {} برای اعتبارسنجی", grouped(n("n_samples")),
                                    grouped(n("n_validation_samples"))))});
  const int64_t n_done = run.steps.empty() ? 0 : run.steps.back().step;
  rows.push_back({"Updates", "به‌روزرسانی‌ها",
                  fmt::format("{} of {}", grouped(n_done), grouped(run.max_steps)),
                  persian_number(fmt::format("{} از {}", grouped(n_done), grouped(run.max_steps)))});
  rows.push_back(row("Tokens seen", "توکن‌های دیده‌شده", grouped(run.n_tokens())));
  if (n("n_parameters") > 0)
    rows.push_back({"Trained parameters", "پارامترهای آموزش‌دیده",
                    fmt::format("{} in {} modules", grouped(n("n_parameters")), n("n_modules")),
                    persian_number(fmt::format("{} در {} ماژول", grouped(n("n_parameters")), n("n_modules")))});
}

void add_cost(std::vector<CardRow>& rows, const RunRecord& run) {
  if (run.seconds() > 0)
    rows.push_back({"Time in updates", "زمان به‌روزرسانی‌ها", duration(run.seconds()),
                    persian_duration(run.seconds())});
  if (const double speed = run.median_tokens_per_s(); std::isfinite(speed))
    rows.push_back({"Speed, median", "سرعت، میانه", fmt::format("{:.0f} tokens/s", speed),
                    persian_number(fmt::format("{:.0f} توکن در ثانیه", speed))});
  if (run.peak_bytes > 0) {
    const double gib = static_cast<double>(run.peak_bytes) / (1 << 30);
    rows.push_back({"Peak memory of the process", "بیشینهٔ حافظهٔ فرایند", fmt::format("{:.2f} GiB", gib),
                    persian_number(fmt::format("{:.2f} گیبی‌بایت", gib))});
  }
  const Value& hardware = provenance_of(run, "hardware");
  std::string machine = text_or_empty(hardware, "processor");
  const std::string backend = text_or_empty(run.start, "backend");
  if (!machine.empty() && !backend.empty()) machine += "; ";
  machine += backend;
  if (!machine.empty()) rows.push_back({"Hardware", "سخت‌افزار", machine, "<bdi>" + machine + "</bdi>"});
  if (const std::string time = text_or_empty(run.start, "time"); !time.empty())
    rows.push_back({"Started", "آغاز", time, "<bdi>" + time + "</bdi>"});
}

std::vector<CardRow> training(const RunRecord& run) {
  std::vector<CardRow> rows;
  const Value& base = provenance_of(run, "base");
  if (const std::string name = title_of(base); !name.empty()) {
    std::string value = "`" + name + "`";
    if (const std::string hash = text_or_empty(base, "sha256"); !hash.empty()) value += ", SHA-256 `" + hash + "`";
    if (const std::string commit = text_or_empty(base, "revision"); !commit.empty()) value += ", `" + commit + "`";
    rows.push_back({"Base model", "مدل پایه", value, "<bdi>" + value + "</bdi>"});
  }
  add_size(rows, run);
  add_cost(rows, run);
  return rows;
}

std::vector<CardRow> data_rows(const RunRecord& run) {
  std::vector<CardRow> rows;
  for (const Value& dataset : datasets_of(run)) {
    const std::string license = text_or_empty(dataset, "license");
    const std::string name = "`" + title_of(dataset) + "`";
    rows.push_back({"Dataset", "مجموعه‌داده", name, "<bdi>" + name + "</bdi>"});
    rows.push_back(
        {"Its licence", "پروانهٔ آن", license.empty() ? "not stated beside the files" : "`" + license + "`",
         license.empty() ? "کنار پرونده‌ها نیامده است" : "<bdi>`" + license + "`</bdi>"});
    for (const Value& file : member(dataset, "files").items()) {
      const std::string value =
          fmt::format("`{}`, SHA-256 `{}`", text_or_empty(file, "name"), text_or_empty(file, "sha256"));
      rows.push_back({"File", "پرونده", value, "<bdi>" + value + "</bdi>"});
    }
  }
  return rows;
}

std::vector<CardRow> merge_rows(const Value& certificate) {
  const Value& gap = member(certificate, "logit_gap");
  const auto percent = [](double share) { return fmt::format("{:.2f}", 100 * share); };
  const std::string top = percent(number_or(gap, "same_top_token"));
  const std::string modules = fmt::format("{:.0f}", number_or(certificate, "n_merged_modules")),
                    all = fmt::format("{:.0f}", number_or(certificate, "n_adapter_modules"));
  return {
      {"Merged modules", "ماژول‌های ادغام‌شده", modules + " of " + all,
       persian_number(modules + " از " + all)},
      {"Stored as", "قالب ذخیره", text_or_empty(certificate, "dtype"), text_or_empty(certificate, "dtype")},
      row("Logits, adapter against merged: RMS difference",
          "لوجیت‌ها، آداپتور در برابر ادغام‌شده: اختلاف RMS",
          fmt::format("{:.4f}", number_or(gap, "rms_adapter_against_merged"))),
      row("The bound that rounding explains", "کرانی که گرد کردن توضیح می‌دهد",
          fmt::format("{:.4f}", number_or(gap, "bound"))),
      row("Logits, base against adapter: RMS difference",
          "لوجیت‌ها، پایه در برابر آداپتور: اختلاف RMS",
          fmt::format("{:.4f}", number_or(gap, "rms_base_against_adapter"))),
      {"Same most likely token on the probes",
       "محتمل‌ترین توکن یکسان در متن‌های آزمون", top + " %",
       persian_number(top) + "٪"},
  };
}

/// The settings that decide the result, without the paths of the machine it ran on.
std::string recipe_table(const RunRecord& run) {
  std::string out;
  for (const char* section : {"model", "quant", "lora", "data", "train"}) {
    const Value& values = member(run.recipe, section);
    if (!values.is_object()) continue;
    for (const auto& [key, value] : values.members()) {
      const bool is_path = (std::string_view(section) == "model" && key == "base") ||
                           (std::string_view(section) == "data" && (key == "train" || key == "validation"));
      if (is_path || value.is_null()) continue;
      out += fmt::format("| `{}.{}` | `{}` |\n", section, key, value.is_string() ? value.as_string() : to_json(value));
    }
  }
  return out.empty() ? "" : "| key | value |\n| --- | --- |\n" + out;
}

}  // namespace

std::string model_card(const RunRecord& run, const Value& certificate, bool has_charts) {
  CardContent content{.name = run.name,
                      .base = title_of(provenance_of(run, "base")),
                      .base_hub_id = text_or_empty(provenance_of(run, "base"), "hub_id"),
                      .is_merged = !certificate.is_null(),
                      .has_validation = !run.evals.empty(),
                      .has_charts = has_charts,
                      .results = results(run),
                      .training = training(run),
                      .data = data_rows(run),
                      .merge = certificate.is_null() ? std::vector<CardRow>() : merge_rows(certificate),
                      .recipe = recipe_table(run),
                      .notice = kGemmaNotice};
  for (const Value& dataset : datasets_of(run))
    if (const std::string citation = text_or_empty(dataset, "citation"); !citation.empty())
      content.citations.push_back(citation);
  return front_matter(run, content.is_merged) + card_body(content);
}

void write_model_card(const RunRecord& run, const fs::path& folder) {
  write_file_atomically(folder / "NOTICE", std::string(kGemmaNotice) + "\n");
  write_file_atomically(folder / "README.md", model_card(run, Value(), fs::exists(folder / "charts" / "loss.svg")));
}

void write_merged_card(const fs::path& adapter, const Value& certificate, const fs::path& folder) {
  if (!fs::exists(folder / "NOTICE")) write_file_atomically(folder / "NOTICE", std::string(kGemmaNotice) + "\n");
  if (!is_run(adapter)) return;
  const RunRecord run = read_run(adapter);
  write_charts(run, folder / "charts");
  write_file_atomically(folder / "README.md", model_card(run, certificate, !run.steps.empty()));
}

}  // namespace saaz
