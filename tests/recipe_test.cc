// Recipes: the shipped form parses, resolves and reads back; every bad recipe gives its exit code and names its place.
#include "config/recipe.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <set>

#include "base/check.h"

namespace saaz {
namespace {

constexpr std::string_view kGood =
    "recipe: 1\n"
    "model: { base: models/tiny, max_seq_length: 4000, text_only: true }\n"
    "quant: { scheme: nf4, double_quant: true, compute_dtype: auto }\n"
    "lora:  { target_preset: source, r: 8, lora_alpha: 16, lora_dropout: 0.0, bias: none }\n"
    "data:\n"
    "  train: data/fa\n"
    "  normalize: none\n"
    "  loss_on: all\n"
    "  validation: { fraction: 0.0, seed: 3407 }\n"
    "train:\n"
    "  per_device_train_batch_size: 2\n"
    "  gradient_accumulation_steps: 4\n"
    "  learning_rate: 2.0e-5\n"
    "  lr_scheduler_type: linear\n"
    "  warmup_steps: 10\n"
    "  num_train_epochs: 1\n"
    "  optim: adamw_8bit\n"
    "  weight_decay: 0.01\n"
    "  seed: 3407\n"
    "eval:   { every_steps: 100, tasks: [], probes: default-fa }\n"
    "output: { dir: runs/fa, save_steps: 100, save_total_limit: 3 }\n"
    "report: { to: none, watch: '127.0.0.1:8080' }\n";

constexpr std::string_view kMinimal = "recipe: 1\nmodel: {base: b}\ndata: {train: t}\noutput: {dir: d}\n";

Recipe parse(std::string_view text) { return parse_recipe(parse_yaml(text, "r.yaml"), "r.yaml"); }

/// The exit code and message of what `body` throws.
template <class Body>
std::pair<int, std::string> thrown_by(Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    return {static_cast<int>(error.code()), error.what()};
  }
  return {0, "nothing was thrown"};
}

TEST(Recipe, ReadsTheSourceRecipe) {
  const Recipe r = parse(kGood);
  EXPECT_EQ(r.model.base, "models/tiny");
  EXPECT_EQ(r.model.max_seq_length, 4000);
  EXPECT_EQ(r.lora.target_modules, (std::vector<std::string>{"gate_proj", "up_proj", "down_proj"}));
  EXPECT_EQ(r.data.train, std::vector<std::string>{"data/fa"});
  EXPECT_EQ(r.data.loss_on, LossOn::all);
  EXPECT_EQ(r.train.learning_rate, 2e-5);
  EXPECT_EQ(r.train.optim, Optimizer::adamw_8bit);
  EXPECT_EQ(*r.lora.seed, 3407);
  EXPECT_EQ(r.eval.probes, kDefaultProbes);
  EXPECT_EQ(r.report.watch, "127.0.0.1:8080");
  EXPECT_EQ(*r.train.data_seed, 3407);
  EXPECT_FALSE(r.train.max_steps.has_value());
}

TEST(Recipe, SeedsFollowTheTrainingSeedUnlessGiven) {
  Value document = parse_yaml(kMinimal, "r.yaml");
  apply_override(document, "train.seed=7");
  apply_override(document, "lora.seed=9");
  const Recipe r = parse_recipe(document, "r.yaml");
  EXPECT_EQ(*r.train.data_seed, 7);
  EXPECT_EQ(*r.lora.seed, 9);
}

TEST(Recipe, ResolvedReadsBackToItself) {
  for (const std::string_view lora :
       {"", "lora: {target_modules: [q_proj, v_proj]}\n", "lora: {target_modules: '.*mlp.*'}\n",
        "lora: {target_preset: source-card}\n", "lora: {target_modules: all-linear}\n"}) {
    const std::string text = to_yaml(resolved(parse(std::string(kMinimal) + std::string(lora))));
    EXPECT_EQ(to_yaml(resolved(parse(text))), text) << text;
  }
  const std::string text = to_yaml(resolved(parse(kGood)));
  EXPECT_NE(text.find("learning_rate: 2.0e-05\n"), std::string::npos) << text;
}

TEST(Recipe, TargetsComeFromPresetListOrRegex) {
  const auto with = [](const std::string& lora) { return parse(std::string(kMinimal) + "lora: " + lora + "\n").lora; };
  EXPECT_EQ(with("{target_preset: source-card}").target_modules.size(), 7u);
  EXPECT_EQ(with("{target_preset: all-linear}").target_preset, TargetPreset::all_linear);
  EXPECT_EQ(with("{target_modules: all-linear}").target_preset, TargetPreset::all_linear);
  EXPECT_EQ(with("{target_modules: [q_proj]}").target_modules, std::vector<std::string>{"q_proj"});
  EXPECT_EQ(with("{target_modules: 'layers\\.[0-3]\\..*'}").target_regex, "layers\\.[0-3]\\..*");
}

TEST(Recipe, OverridesWinAndCreateSections) {
  Value document = parse_yaml(kMinimal, "r.yaml");
  apply_override(document, "train.learning_rate=1e-3");
  apply_override(document, "data.validation.fraction=0.1");
  apply_override(document, "data.train=[a.jsonl, b.jsonl]");
  apply_override(document, "output.dir=runs/x=y");
  const Recipe r = parse_recipe(document, "r.yaml");
  EXPECT_EQ(r.train.learning_rate, 1e-3);
  EXPECT_EQ(r.data.validation.fraction, 0.1);
  EXPECT_EQ(r.data.train.size(), 2u);
  EXPECT_EQ(r.output.dir, "runs/x=y");
}

TEST(Recipe, RefusesBadOverrides) {
  const struct {
    const char* assignment;
    const char* fragment;
  } kCases[] = {
      {"train.seed", "expected KEY.PATH=VALUE"},
      {"=3", "expected KEY.PATH=VALUE"},
      {"train..seed=3", "an empty name"},
      {"recipe.x=3", "the recipe has a value where 'x' would stand"},
      {"train.seed=[1", "--set train.seed:1:"},
      {"train.sed=3", "--set: unknown key 'train.sed'; did you mean 'train.seed'?"},
      {"train.seed=-1", "--set: train.seed: expected an integer from 0 to 4294967295, found -1"},
  };
  for (const auto& c : kCases) {
    const auto [code, message] = thrown_by([&] {
      Value document = parse_yaml(kMinimal, "r.yaml");
      apply_override(document, c.assignment);
      parse_recipe(document, "r.yaml");
    });
    EXPECT_EQ(code, 2) << c.assignment;
    EXPECT_NE(message.find(c.fragment), std::string::npos) << message << "\n  lacks: " << c.fragment;
  }
}

struct BadRecipe {
  const char* section;  // appended to the minimal recipe, line 5 on
  const char* fragment;
};

constexpr BadRecipe kBadRecipes[] = {
    {"train: {learning_rat: 1}\n", "r.yaml:5:9: unknown key 'train.learning_rat'; did you mean 'train.learning_rate'?"},
    {"trian: {seed: 1}\n", "r.yaml:5:1: unknown key 'trian'; did you mean 'train'?"},
    {"lora:\n  r: 8\n  learning_rate: 1\n",
     "r.yaml:7:3: unknown key 'lora.learning_rate'; did you mean 'train.learning_rate'?"},
    {"train: {zzzzzzzzzzzz: 1}\n", "known here: per_device_train_batch_size, gradient_accumulation_steps"},
    {"train: {seed: 1, seed: 2}\n", "r.yaml:5:18: the key 'seed' appears twice"},
    {"model: {base: c}\n", "r.yaml:5:1: the key 'model' appears twice"},
    {"train: {seed: abc}\n", "r.yaml:5:9: train.seed: expected an integer from 0 to 4294967295, found \"abc\""},
    {"train: {seed: 1.5}\n", "found 1.5"},
    {"train: {seed: 4294967296}\n", "found 4294967296"},
    {"train: {learning_rate: fast}\n", "train.learning_rate: expected a number"},
    {"train: {learning_rate: 0}\n", "expected a number from 1e-12 to 1, found 0"},
    {"train: {learning_rate: .nan}\n", "not a finite number"},
    {"train: {learning_rate: }\n", "found null"},
    {"train: {per_device_train_batch_size: 0}\n", "expected an integer from 1 to 4096, found 0"},
    {"train: {max_steps: -1}\n", "expected an integer from 1 to 1000000000 or null, found -1"},
    {"train: {adam_beta2: 1.0}\n", "train.adam_beta2: expected"},
    {"train: {optim: adam}\n", "train.optim: expected one of adamw_torch, adamw_8bit, found \"adam\""},
    {"train: {optim: sgd}\n", "sgd is not built yet"},
    {"train: {warmup_steps: 1, warmup_ratio: 0.1}\n",
     "r.yaml:5:26: train.warmup_steps and train.warmup_ratio exclude each other"},
    {"train: 5\n", "r.yaml:5:1: train: expected keys under it, found 5"},
    {"train: [a]\n", "expected keys under it"},
    {"quant: {scheme: fp4}\n", "r.yaml:5:9: quant.scheme: fp4 is not built yet; expected one of none, nf4, int8"},
    {"quant: {scheme: fp4}\n", "fp4 is not built yet"},
    {"quant: {double_quant: no}\n", "quant.double_quant: expected true or false, found \"no\""},
    {"lora: {lora_dropout: 0.1}\n", "r.yaml:5:8: lora.lora_dropout: 0.1 is not built yet"},
    {"lora: {bias: all}\n", "lora.bias: \"all\" is not built yet; leave the key out, or write none"},
    {"lora: {use_dora: true}\n", "lora.use_dora: true is not built yet"},
    {"lora: {r: 0}\n", "lora.r: expected an integer from 1 to 1024"},
    {"lora: {target_modules: []}\n", "lora.target_modules: expected a string or a list of strings"},
    {"lora: {target_modules: [1]}\n", "lora.target_modules: expected"},
    {"lora: {target_preset: source, target_modules: [q_proj]}\n", "lora.target_preset and lora.target_modules exclude"},
    {"eval: {tasks: [parsieval]}\n", "eval.tasks: [\"parsieval\"] is not built yet"},
    {"eval: {probes: [a]}\n", "eval.probes: expected a string or null"},
    {"report: {to: mlflow}\n",
     "r.yaml:5:10: report.to: expected one or a list of tensorboard, wandb, all, none, found"},
    {"report: {to: [none, wandb]}\n", "report.to: 'none' excludes the others"},
    {"report: {to: []}\n", "report.to: expected one or a list of"},
    {"report: {watch: 8080}\n", "report.watch: expected a string or null, found 8080"},
    {"report: {watch: localhost}\n", "r.yaml:5:10: report.watch: expected HOST:PORT"},
    {"report: {watch: 'localhost:70000'}\n", "expected HOST:PORT with a port from 0"},
    {"report: {watch: ':80'}\n", "expected HOST:PORT"},
    {"report: {to: none, to: none}\n", "appears twice"},
    {"x: &a 1\n", "anchors (&name) are not allowed"},
    {"x: !!str 1\n", "tags ("},
    {"\tx: 1\n", "r.yaml:5:"},
    {"--- \nx: 1\n", "a second YAML document"},
};

TEST(Recipe, RefusesBadSections) {
  for (const BadRecipe& c : kBadRecipes) {
    const auto [code, message] = thrown_by([&] { parse(std::string(kMinimal) + c.section); });
    EXPECT_EQ(code, 2) << c.section << message;
    EXPECT_NE(message.find(c.fragment), std::string::npos) << message << "\n  lacks: " << c.fragment;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  }
}

TEST(Recipe, RefusesBadDocuments) {
  const BadRecipe kCases[] = {
      {"", "r.yaml:1:1: expected a recipe"},
      {"- 1\n", "expected a recipe"},
      {"model: {base: b}\n", "the key 'recipe' is missing"},
      {"recipe: 2\n", "r.yaml:1:1: recipe: expected 1 (the version of the format), found 2"},
      {"recipe: 1\ndata: {train: t}\noutput: {dir: d}\n", "the key 'model.base' is missing"},
      {"recipe: 1\nmodel: {base: b}\noutput: {dir: d}\n", "the key 'data.train' is missing"},
      {"recipe: 1\nmodel: {base: b}\ndata: {train: t}\n", "the key 'output.dir' is missing"},
      {"recipe: 1\nmodel: {base: b, text_only: false}\n", "model.text_only: false is not built yet"},
      {"recipe: 1\nmodel: {base: ''}\n", "model.base: expected a string, found \"\""},
      {"recipe: 1\nmodel: {base: b, max_seq_length: 1e3}\n", "model.max_seq_length: expected an integer"},
      {"recipe: 1\ndata: {normalize: nfkc}\n", "data.normalize: expected one of none, chat, strict, found \"nfkc\""},
      {"recipe: 1\ndata: {train: [a, []]}\n", "data.train: expected a string or a list of strings"},
      {"recipe: 1\ndata: {format: csv}\n", "data.format: expected one of auto, messages"},
      {"recipe: 1\ndata: {validation: {file: v, fraction: 0.1}, train: t}\nmodel: {base: b}\noutput: {dir: d}\n",
       "exclude each other"},
      {"recipe: 1\ndata: {validation: {fractoin: 0.1}}\n",
       "r.yaml:2:21: unknown key 'data.validation.fractoin'; did you mean 'data.validation.fraction'?"},
  };
  for (const BadRecipe& c : kCases) {
    const auto [code, message] = thrown_by([&] { parse(c.section); });
    EXPECT_EQ(code, 2) << c.section << message;
    EXPECT_NE(message.find(c.fragment), std::string::npos) << message << "\n  lacks: " << c.fragment;
  }
}

TEST(Recipe, ChecksThatInputsExist) {
  const std::filesystem::path folder = std::filesystem::path(SAAZ_BINARY_DIR) / "recipe_test_inputs";
  std::filesystem::create_directories(folder);
  const std::string path = (folder / "r.yaml").string();
  const auto load = [&](const std::string& base, const std::string& train) {
    std::ofstream(path) << "recipe: 1\nmodel:\n  base: " << base << "\ndata: {train: " << train
                        << "}\noutput: {dir: d}\n";
    return thrown_by([&] { load_recipe(path, {}); });
  };
  const std::string here = folder.string();
  EXPECT_EQ(load(here, here).first, 0);
  const auto [hub_code, hub_message] = load("unsloth/gemma-3n-E4B-it", here);
  EXPECT_EQ(hub_code, 3);
  EXPECT_NE(hub_message.find("r.yaml:3:3: model.base: 'unsloth/gemma-3n-E4B-it' is neither here nor fetched"),
            std::string::npos);
  const auto [data_code, data_message] = load(here, "mshojaei77/persian-gk");
  EXPECT_EQ(data_code, 3);
  EXPECT_NE(data_message.find("'saaz fetch mshojaei77/persian-gk --dataset' gets it"), std::string::npos);
  const auto [code, message] = load("./absent", here);
  EXPECT_EQ(code, 3);
  EXPECT_NE(message.find("there is no file or folder './absent'"), std::string::npos);
  EXPECT_EQ(thrown_by([] { load_recipe("./no-such-recipe.yaml", {}); }).first, 3);
}

TEST(Recipe, EveryKeyIsDocumentedOnceAndItsDefaultIsAccepted) {
  std::set<std::string> paths;
  std::map<std::string, std::string> documented;  // key: default, of the page's table
  std::ifstream page(SAAZ_SOURCE_DIR "/docs/recipe.md");
  for (std::string line; std::getline(page, line);) {
    std::vector<std::string> cells;
    for (size_t at = 0, bar; (bar = line.find(" | ", at)) != std::string::npos; at = bar + 3)
      cells.push_back(line.substr(at, bar - at));
    if (!line.starts_with("| `") || cells.size() < 3) continue;
    EXPECT_TRUE(documented.emplace(cells[0].substr(2), cells[2]).second) << cells[0];
  }
  for (const RecipeField& field : recipe_fields()) {
    EXPECT_TRUE(paths.insert(field.path).second) << field.path;
    EXPECT_GT(std::string_view(field.doc).size(), 0u) << field.path;
    EXPECT_FALSE(expected_text(field).empty()) << field.path;
    const std::string text = default_text(field);
    EXPECT_EQ(documented[fmt::format("`{}`", field.path)], text.empty() ? "-" : "`" + text + "`") << field.path;
    if (text.empty() || std::string_view(field.path) == "lora.target_modules") continue;
    Value document = parse_yaml(kMinimal, "r.yaml");
    apply_override(document, std::string(field.path) + "=" + text);
    EXPECT_NO_THROW(parse_recipe(document, "r.yaml")) << field.path << "=" << text;
  }
  EXPECT_EQ(documented.size(), paths.size());
}

}  // namespace
}  // namespace saaz
