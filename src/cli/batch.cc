#include "cli/batch.h"

#include <unistd.h>

#include <algorithm>
#include <deque>
#include <filesystem>
#include <unordered_set>

#include "base/check.h"
#include "base/system.h"
#include "infer/event_queue.h"
#include "serve/openai.h"

namespace saaz {
namespace {

constexpr size_t kMostPrompts = 1 << 16;  // of one request; a tag holds a request's number and a prompt's

/// The lines of a mapped file, one after another; blank ones are none.
class Lines {
 public:
  explicit Lines(std::string_view text) : rest_(text) {}
  std::optional<std::string_view> next() {
    while (!rest_.empty()) {
      const size_t end = std::min(rest_.find('\n'), rest_.size());
      const std::string_view line = rest_.substr(0, end);
      rest_.remove_prefix(std::min(end + 1, rest_.size()));
      ++number_;
      if (line.find_first_not_of(" \t\r") != std::string_view::npos) return line;
    }
    return std::nullopt;
  }
  int64_t number() const { return number_; }

 private:
  std::string_view rest_;
  int64_t number_ = 0;
};

std::string_view text_of(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

/// A request's custom_id, or null where the line has none that could be read.
Value custom_id_of(std::string_view line) {
  try {
    const Value root = parse_json(line, "");
    const Value* id = root.find("custom_id");
    return id != nullptr && id->is_string() ? *id : Value();
  } catch (const Error&) {
    return {};
  }
}

bool same_id(const Value& a, const Value& b) {
  return a.is_string() == b.is_string() && (!a.is_string() || a.as_string() == b.as_string());
}

/// One request on its way to its line of the output.
struct Job {
  Value custom_id;
  std::string id;  // "batch_req_...", of the custom_id
  std::optional<OpenAiRequest> request;
  std::vector<OpenAiChoice> choices;
  std::vector<RequestId> running;
  Usage usage;
  size_t n_open = 0;  // prompts without an end
  std::optional<WebFault> fault;
};

class BatchRun {
 public:
  /// `output`: flags.output, for this process alone.
  BatchRun(Session& session, Engine& engine, const AnswerFlags& defaults, const BatchFlags& flags, AppendFile& output,
           const Globals& globals)
      : session_(session),
        engine_(engine),
        defaults_{defaults.request.sampling, defaults.max_new_tokens},
        flag_request_(defaults.request),
        flags_(flags),
        globals_(globals),
        input_(flags.input),
        lines_(text_of(input_)),
        output_(output),
        queue_(std::make_shared<EventQueue>()) {
    for (Lines all(text_of(input_)); all.next();) ++n_total_;
  }

  int run() {
    skip_answered();
    const double start = monotonic_seconds();
    while (stop_signal() == 0 && (read_ahead() || !jobs_.empty())) {
      for (EventQueue::Event& event : queue_->take()) hear(event);
      check_engine();
      write_finished();
      show_progress(monotonic_seconds() - start);
    }
    for (const Job& job : jobs_)
      for (const RequestId id : job.running) engine_.cancel(id);
    output_.sync();
    if (shows_progress()) print_log("\r\033[K");
    log_line(globals_, fmt::format("{} of {} requests have a line in {}; {} of this run's {} are errors", n_written_,
                                   n_total_, flags_.output, n_faults_, n_written_ - n_before_));
    if (stop_signal() != 0) return signal_exit_code();
    return static_cast<int>(n_faults_ > 0 ? ExitCode::bad_input : ExitCode::ok);
  }

 private:
  /// What an earlier run has written: whole lines stay, a cut one goes. verification when they answer other requests.
  void skip_answered() {
    size_t kept = 0;
    {
      const MappedFile file(flags_.output);
      const std::string_view text = text_of(file);
      for (size_t end; (end = text.find('\n', kept)) != std::string_view::npos; kept = end + 1) {
        const Value found = custom_id_of(text.substr(kept, end - kept));
        const std::optional<std::string_view> line = lines_.next();
        const Value asked = line ? custom_id_of(*line) : Value();
        check(line.has_value() && same_id(found, asked), ExitCode::verification,
              "{}: line {} answers {}, but the request in its place in {} is {}: name another output, or remove this "
              "one",
              flags_.output, n_before_ + 1, to_json(found), flags_.input, line ? to_json(asked) : "none");
        if (asked.is_string()) seen_.insert(asked.as_string());
        ++n_before_;
      }
      if (kept == text.size()) kept = std::string::npos;
    }
    if (kept != std::string::npos) fs::resize_file(flags_.output, kept);
    n_written_ = n_before_;
    if (n_before_ > 0) log_line(globals_, fmt::format("{}: going on after {} answers", flags_.output, n_before_));
  }

  /// Keeps enough requests with the engine. False when the input is at its end.
  bool read_ahead() {
    const auto enough = static_cast<size_t>(4 * flags_.parallel);
    while (n_open_ < enough && jobs_.size() < 4 * enough) {
      const std::optional<std::string_view> line = lines_.next();
      if (!line) return false;
      Job& job = jobs_.emplace_back();
      try {
        start(job, *line);
      } catch (const WebFault& fault) {
        job.fault = fault;
      } catch (const Error& error) {
        job.fault = WebFault(400, error.what(), "", "invalid_json_line");
      }
    }
    return true;
  }

  void start(Job& job, std::string_view line) {
    const std::string where = fmt::format("{}: line {}", flags_.input, lines_.number());
    job.custom_id = custom_id_of(line);
    job.id = "batch_req_" + sha256_hex(job.custom_id.is_string() ? job.custom_id.as_string() : where).substr(0, 24);
    const Value root = parse_json(line, where);
    const auto text = [&](const char* key) {
      const Value* value = root.find(key);
      if (value == nullptr || !value->is_string() || value->as_string().empty())
        throw WebFault(400, fmt::format("{}: {}: expected a text", where, key), key);
      return value->as_string();
    };
    const std::string custom_id = text("custom_id");
    if (!seen_.insert(custom_id).second)
      throw WebFault(400, fmt::format("{}: custom_id was used before", where), "custom_id", "duplicate_custom_id");
    if (text("method") != "POST") throw WebFault(400, "method: expected POST", "method");
    const std::string url = text("url");
    const Value* found = root.find("body");
    if (found == nullptr || !found->is_object()) throw WebFault(400, "body: expected an object", "body");
    Value body = *found;
    if (const Value* seed = body.find("seed"); seed == nullptr || seed->is_null()) body.set("seed", seed_of(custom_id));
    if (url == "/v1/chat/completions")
      job.request = parse_chat_body(body, session_.tokenizer(), defaults_);
    else if (url == "/v1/completions")
      job.request = parse_completion_body(body, session_.tokenizer(), defaults_);
    else
      throw WebFault(400, "url: expected /v1/chat/completions or /v1/completions", "url");
    if (job.request->stream) throw WebFault(400, "stream: a batch does not stream", "stream");
    submit(job);
  }

  /// The same for the same request, so that a batch that was killed ends as one that was not.
  int64_t seed_of(const std::string& custom_id) const {
    const std::string digits = sha256_hex(fmt::format("{} {}", defaults_.sampling.seed, custom_id)).substr(0, 8);
    return static_cast<int64_t>(std::stoul(digits, nullptr, 16));
  }

  void submit(Job& job) {
    std::vector<Request>& requests = job.request->requests;
    if (requests.size() > kMostPrompts) throw WebFault(400, "prompt: too many at once", "prompt");
    job.choices.resize(requests.size() * static_cast<size_t>(job.request->n));
    const size_t number = n_done_jobs_ + jobs_.size() - 1;
    for (size_t i = 0; i < requests.size(); ++i) {
      if (!session_.adapter_folder().empty()) requests[i].adapter = kFlagAdapter;
      if (requests[i].stop.empty()) requests[i].stop = flag_request_.stop;
      if (!requests[i].guard) requests[i].guard = flag_request_.guard;
      const Submitted s =
          engine_.submit(std::move(requests[i]), EventQueue::callbacks(queue_, number * kMostPrompts + i));
      if (s.refusal != Refusal::none) {
        for (const RequestId id : job.running) engine_.cancel(id);
        throw fault_of(s);
      }
      job.running.push_back(s.id);
      ++job.n_open, ++n_open_;
    }
  }

  void hear(EventQueue::Event& event) {
    Job& job = jobs_[event.tag / kMostPrompts - n_done_jobs_];
    if (!event.end) {
      const size_t prompt = event.tag % kMostPrompts;
      n_tokens_ += event.delta.ids.size();
      const size_t choice = prompt * static_cast<size_t>(job.request->n) + static_cast<size_t>(event.delta.choice);
      job.choices[choice].add(std::move(event.delta));
      return;
    }
    --job.n_open, --n_open_;
    job.usage.prompt_tokens += event.end->usage.prompt_tokens;
    job.usage.cached_tokens += event.end->usage.cached_tokens;
    job.usage.completion_tokens += event.end->usage.completion_tokens;
    if (!event.end->error.empty()) job.fault = WebFault(500, event.end->error);
  }

  /// A failed engine answers nothing any more: what it owes gets no line, so that the next run asks again.
  void check_engine() {
    const EngineStats stats = engine_.stats();
    check(stats.failure.empty(), stats.failure_code,
          "{}; {} holds {} of {} answers, and the same command goes on after them", stats.failure, flags_.output,
          n_written_, n_total_);
  }

  void write_finished() {
    for (; !jobs_.empty() && jobs_.front().n_open == 0; jobs_.pop_front(), ++n_done_jobs_) {
      output_.append(to_json(line_of(jobs_.front())) + "\n");
      ++n_written_;
      n_faults_ += jobs_.front().fault ? 1 : 0;
    }
  }

  Value line_of(const Job& job) const {
    Value line = Value::object({{"id", job.id}, {"custom_id", job.custom_id}});
    if (job.fault && !job.custom_id.is_string()) {
      line.set("response", Value());
      line.set("error", Value::object({{"code", job.fault->code.empty() ? "invalid_request" : job.fault->code},
                                       {"message", job.fault->what()}}));
      return line;
    }
    Value body;
    if (job.fault) {
      body = parse_json(error_reply(*job.fault).body, "");
    } else {
      OpenAiHead head = make_head(job.request->endpoint, job.id.substr(10), model_name());
      head.with_logprobs = job.request->requests[0].top_logprobs >= 0;
      body = completion_object(head, job.choices, job.usage, session_.tokenizer());
    }
    line.set("response", Value::object({{"status_code", job.fault ? job.fault->status : 200},
                                        {"request_id", "req_" + job.id.substr(10)},
                                        {"body", body}}));
    line.set("error", Value());
    return line;
  }

  std::string model_name() const {
    const std::string& name = session_.adapter_folder().empty() ? session_.model_name() : session_.adapter_folder();
    return fs::path(name).filename().empty() ? name : fs::path(name).filename().string();
  }

  bool shows_progress() const { return !globals_.quiet && isatty(STDERR_FILENO) == 1; }
  void show_progress(double seconds) {
    if (!shows_progress() || seconds < next_progress_) return;
    next_progress_ = seconds + 0.5;
    const auto done = static_cast<double>(n_written_ - n_before_), left = static_cast<double>(n_total_ - n_written_);
    const std::string rest = done > 0 ? fmt::format(", about {:.0f} s left", left * seconds / done) : "";
    print_log(fmt::format("\r\033[K{} of {} requests, {} errors, {:.1f} tokens/s{}", n_written_, n_total_, n_faults_,
                          static_cast<double>(n_tokens_) / seconds, rest));
  }

  Session& session_;
  Engine& engine_;
  OpenAiDefaults defaults_;
  const Request& flag_request_;
  const BatchFlags& flags_;
  const Globals& globals_;
  MappedFile input_;
  Lines lines_;
  AppendFile& output_;
  std::shared_ptr<EventQueue> queue_;
  std::unordered_set<std::string> seen_;  // custom_ids
  std::deque<Job> jobs_;                  // the one numbered n_done_jobs_ first
  size_t n_done_jobs_ = 0, n_open_ = 0, n_tokens_ = 0;
  int64_t n_total_ = 0, n_before_ = 0, n_written_ = 0, n_faults_ = 0;
  double next_progress_ = 0;
};

}  // namespace

int run_batch(const ModelFlags& model, const AnswerFlags& defaults, const BatchFlags& flags, const Globals& globals) {
  check(!flags.output.empty(), ExitCode::usage, "--batch needs a file for the answers: -o OUT.jsonl");
  std::error_code ignored;
  check(!fs::equivalent(flags.input, flags.output, ignored), ExitCode::usage,
        "--batch and -o name the same file; the answers need their own");
  { const MappedFile readable(flags.input); }
  if (fs::exists(flags.output)) const MappedFile regular(flags.output);
  Session session(model, globals);
  AppendFile output(flags.output, AppendFile::Writer::only);
  const int64_t context = std::min(flags.context, session.context());
  session.load(context);
  const std::unique_ptr<Engine> engine = make_engine(
      session, {.max_running = flags.parallel, .context = context, .max_waiting = int64_t{1} << 40}, globals);
  return BatchRun(session, *engine, defaults, flags, output, globals).run();
}

}  // namespace saaz
