// Declaring the options of commands, so that one file alone knows the command line library. Enters: names, targets and
// one-line docs. Leaves: targets set by parsing; every target must live until the action has run. Faults of the command
// line are usage.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace CLI {
class App;
}

namespace saaz {

class Arguments {
 public:
  enum class Need { optional, required };

  explicit Arguments(CLI::App& app) : app_(app) {}

  void positional(const std::string& name, std::string& target, const std::string& doc);
  /// At least one.
  void positionals(const std::string& name, std::vector<std::string>& target, const std::string& doc);
  void text(const std::string& flag, std::string& target, Need need, const std::string& doc);
  /// May be given several times, one value each time.
  void texts(const std::string& flag, std::vector<std::string>& target, Need need, const std::string& doc);
  /// "--resume" gives the word `alone`, "--resume=DIR" gives DIR.
  void text_or_word(const std::string& flag, std::string& target, const std::string& alone, const std::string& doc);
  void integer(const std::string& flag, int64_t& target, int64_t min, int64_t max, const std::string& doc);
  void unsigned_integer(const std::string& flag, uint64_t& target, const std::string& doc);
  void real(const std::string& flag, double& target, double min, double max, const std::string& doc);
  /// "5GB" (10^9), "5GiB" (2^30), or plain bytes.
  void bytes(const std::string& flag, uint64_t& target, const std::string& doc);
  void toggle(const std::string& flag, bool& target, const std::string& doc);
  template <class E>
  void choice(const std::string& flag, E& target, std::initializer_list<std::pair<const char*, E>> words,
              const std::string& doc) {
    std::vector<std::string> names;
    std::vector<E> values;
    for (const auto& [name, value] : words) {
      names.emplace_back(name);
      values.push_back(value);
    }
    choice_of_words(
        flag, names, [&target, values](size_t i) { target = values[i]; }, doc);
  }
  /// A command below this one, whose `chosen` runs after parsing when it was named. One of them must be.
  Arguments subcommand(const std::string& name, const std::string& doc, std::function<void()> chosen);

 private:
  void choice_of_words(const std::string& flag, const std::vector<std::string>& words,
                       const std::function<void(size_t)>& set, const std::string& doc);
  CLI::App& app_;
};

struct Command;
struct Globals;

/// Parses the command line: the action of the named command, or nothing when help or the version was printed. `globals`
/// is set.
std::optional<std::function<int()>> parse_command_line(int argc, char** argv, const std::vector<Command>& commands,
                                                       Globals& globals);

}  // namespace saaz
