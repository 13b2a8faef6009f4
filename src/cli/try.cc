// `saaz try`: the whole job, offline, on the tiny Gemma 3n compiled into the binary. Asks questions, fine-tunes, is
// killed and resumes, merges, verifies, asks again. Every answer is generated; the command fails when they are not
// wrong before and right after.
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <thread>

#include "base/check.h"
#include "base/stop.h"
#include "base/system.h"
#include "cli/cli.h"
#include "cli/embedded.h"
#include "data/batcher.h"
#include "infer/engine.h"
#include "model/base_tokenizer.h"
#include "model/evaluate_loss.h"
#include "publish/merge.h"
#include "tokenizer/chat_template.h"
#include "train/trainer.h"

namespace saaz {

namespace {

constexpr std::string_view kFolder = "data/try/";
constexpr int64_t kKillAfterStep = 70;
constexpr int64_t kMaxAnswerTokens = 64;

struct Question {
  std::string text;
  std::vector<std::string> must_contain;
};

/// Writes the embedded model and data below `root`, so that what follows is the ordinary commands on ordinary files.
void unpack(const fs::path& root) {
  for (const EmbeddedFile& file : embedded_files()) {
    if (!file.path.starts_with(kFolder)) continue;
    const fs::path path = root / file.path.substr(kFolder.size());
    make_directories(path.parent_path());
    write_file_atomically(path, file.bytes);
  }
}

std::vector<Question> read_questions(const fs::path& path) {
  std::vector<Question> out;
  const Value document = parse_json(read_file(path), path.string());
  const std::string& headline = document.find("headline")->as_string();
  for (const Value& item : document.find("questions")->items()) {
    Question question{item.find("question")->as_string(), {}};
    for (const Value& text : item.find("must_contain")->items()) question.must_contain.push_back(text.as_string());
    const bool first = item.find("id")->as_string() == headline;
    out.insert(first ? out.begin() : out.end(), std::move(question));
  }
  return out;
}

bool is_right(const Question& question, const std::string& answer) {
  return std::all_of(question.must_contain.begin(), question.must_contain.end(),
                     [&](const std::string& text) { return answer.find(text) != std::string::npos; });
}

/// A model, loaded as the recipe does, with what the demonstration asks of it.
struct Examined {
  std::vector<std::string> answers;
  EvalResult validation;
};

Examined examine(Backend& backend, const fs::path& folder, const Recipe& recipe, QuantScheme scheme,
                 const std::vector<Question>& questions) {
  const BaseModel base = open_base_model(folder);
  const Tokenizer tokenizer = load_base_tokenizer(base);
  const std::unique_ptr<Model> model =
      load_model(backend, base, {.scheme = scheme, .max_positions = recipe.model.max_seq_length});
  BadRows bad(0);
  const EncodeOptions encode{.max_seq_length = recipe.model.max_seq_length, .loss_on = recipe.data.loss_on};
  const EncodedRows rows =
      encode_rows(tokenizer, load_rows(recipe.data.validation.file, DataFormat::automatic, bad), encode, bad);
  Examined out;
  out.validation = evaluate_loss(backend, *model, rows.samples, recipe.model.max_seq_length);
  check_stop();
  std::vector<Request> requests;
  for (const Question& question : questions) {
    const ChatMessage message{"user", {question.text}};
    Request& request = requests.emplace_back();
    request.prompt = encode_chat(tokenizer, {&message, 1}, AddGenerationPrompt::yes).ids;
    request.max_tokens = kMaxAnswerTokens;
    request.stop_ids = tokenizer.stop_ids();
  }
  Engine engine(backend, *model, &tokenizer,
                {.max_running = static_cast<int64_t>(requests.size()),
                 .context = recipe.model.max_seq_length,
                 .prefix_bytes = 0});
  for (const Completion& answer : complete_all(engine, std::move(requests), {})) {
    check_answered(answer);
    out.answers.push_back(answer.choices[0].text);
  }
  return out;
}

/// The last step that a run's events tell of; a line still being written does not count.
int64_t last_step(const fs::path& events) {
  int64_t step = 0;
  if (!fs::exists(events)) return step;
  const std::string text = read_file(events);
  for (size_t begin = 0, end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
    const Value event = parse_json(std::string_view(text).substr(begin, end - begin), events.string());
    if (const Value* at = event.find("step"); at != nullptr && at->is_integer())
      step = std::max(step, at->as_integer());
  }
  return step;
}

/// Trains in a process of its own and kills it without warning after some steps. Returns the last step it had done.
int64_t train_and_kill(const fs::path& recipe, const fs::path& run) {
  const pid_t child = fork();
  check(child >= 0, ExitCode::resource, "cannot start a second process");
  if (child == 0) {
    const int null = open("/dev/null", O_WRONLY);
    dup2(null, STDERR_FILENO);
    execl("/proc/self/exe", "saaz", "train", recipe.c_str(), static_cast<char*>(nullptr));
    constexpr int kNotStarted = 127;
    _exit(kNotStarted);
  }
  const fs::path events = run / "events.jsonl";
  int status = 0;
  while (waitpid(child, &status, WNOHANG) == 0 && stop_signal() == 0 && last_step(events) < kKillAfterStep)
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  kill(child, SIGKILL);
  waitpid(child, &status, 0);
  const int64_t step = last_step(events);
  check(step >= kKillAfterStep || stop_signal() != 0, ExitCode::bug,
        "the training process ended by itself after step {} (status {})", step, status);
  return step;
}

void print_answers(const std::vector<Question>& questions, const Examined& model) {
  for (size_t i = 0; i < questions.size(); ++i)
    print_text(fmt::format("  {} {}\n    {}\n", is_right(questions[i], model.answers[i]) ? "right" : "wrong",
                           questions[i].text, without_controls(model.answers[i])));
}

int64_t n_right(const std::vector<Question>& questions, const Examined& model) {
  int64_t n = 0;
  for (size_t i = 0; i < questions.size(); ++i) n += is_right(questions[i], model.answers[i]);
  return n;
}

fs::path fresh_folder(const fs::path& wanted) {
  fs::path out = wanted;
  for (int n = 2; fs::exists(out); ++n) out = wanted.string() + "-" + std::to_string(n);
  return out;
}

}  // namespace

int run_try(const TryFlags& flags, const Globals& globals) {
  const double began = monotonic_seconds();
  const fs::path root = fresh_folder(flags.out), model = root / "model", run = root / "run", merged = root / "merged";
  unpack(root);
  const std::vector<std::string> overrides = {
      "model.base=" + model.string(), "data.train=" + (root / "train.jsonl").string(),
      "data.validation.file=" + (root / "valid.jsonl").string(), "output.dir=" + run.string()};
  const Recipe recipe = load_recipe(root / "recipe.yaml", overrides);
  write_file_atomically(root / "recipe.yaml", to_yaml(resolved(recipe)));
  const std::vector<Question> questions = read_questions(root / "questions.json");
  const std::unique_ptr<Backend> backend = make_backend(globals);
  const auto say = [&](const std::string& text) {
    log_line(globals, fmt::format("[{:5.1f} s] {}", monotonic_seconds() - began, text));
  };

  say(fmt::format("a tiny Gemma 3n and its Persian chats are in {}; nothing is downloaded", root.string()));
  const Examined before = examine(*backend, model, recipe, recipe.quant.scheme, questions);
  print_text("Before fine-tuning (4-bit base), greedy answers:\n");
  print_answers(questions, before);

  say("QLoRA fine-tuning in a process of its own, which is about to be killed");
  const int64_t lost = train_and_kill(root / "recipe.yaml", run);
  if (const int code = signal_exit_code(); code != 0) return code;
  say(fmt::format("killed with SIGKILL after step {}; resuming from the last whole checkpoint", lost));
  TrainOptions options;
  options.start = TrainOptions::Start::resume;
  const TrainOutcome outcome = train(*backend, recipe, options);
  if (outcome.signal != 0) return signal_exit_code();
  say(fmt::format("{} steps done, last loss {:.3f}; merging into the original 16-bit weights", outcome.n_steps,
                  outcome.last_loss));

  const Certificate certificate = merge_adapter(*backend, model, run, merged, {});
  print_text(certificate.to_table());
  check(certificate.passed(), ExitCode::verification, "the merge could not be proven");
  const MergeRecord record = read_merge_record(merged);
  const bool verified = verify_merge(*backend, merged, record.base, record.adapter, record.options).passed();
  check(verified, ExitCode::verification, "the merged folder does not verify");
  say("merged and verified; asking the merged model");

  const Examined after = examine(*backend, merged, recipe, QuantScheme::none, questions);
  print_text(
      "After fine-tuning (merged 16-bit model), the same questions; none of their words is in a training row:\n");
  print_answers(questions, after);
  print_text(
      fmt::format("Validation: loss {:.3f} before, {:.3f} after; perplexity {:.1f} before, {:.2f} after ({} tokens)\n",
                  before.validation.loss_nats, after.validation.loss_nats, before.validation.perplexity,
                  after.validation.perplexity, after.validation.n_tokens));
  const auto n = static_cast<int64_t>(questions.size());
  check(n_right(questions, before) == 0 && n_right(questions, after) == n, ExitCode::verification,
        "{} of {} answers were right before and {} after; 0 and {} were expected", n_right(questions, before), n,
        n_right(questions, after), n);
  print_text(
      fmt::format("Done in {:.1f} s. Next:\n  {} chat --model {}\n  {} train recipes/gemma3-270m-fa.yaml   (the "
                  "real Gemma 3 270M: tools/get-gemma3-270m fetches it)\n"
                  "  {} recipe ls                           (recipes in this program)\n",
                  monotonic_seconds() - began, globals.program, merged.string(), globals.program, globals.program));
  return 0;
}

}  // namespace saaz
