// `saaz doctor`: what this machine and this terminal can do.
#include <langinfo.h>
#include <unistd.h>

#include <cstdlib>
#include <string_view>

#include "base/check.h"
#include "base/system.h"
#include "base/threads.h"
#include "cli/cli.h"
#include "cli/prompt.h"

namespace saaz {
namespace {

std::vector<std::string> instruction_sets() {
  std::vector<std::string> out;
  for (const char* name : {"plain", "avx2", "avx512", "avx512-bf16"}) try {
      make_cpu_backend({.n_threads = 1, .instruction_set = name});
      out.emplace_back(name);
    } catch (const Error&) {  // not on this machine
    }
  return out;
}

std::string locale_name() {
  for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    const char* value = std::getenv(name);
    if (value != nullptr && *value != '\0') return printable(value);
  }
  return "C";
}

/// The same sentence in each way of `saaz chat --bidi`, so that a person sees which this terminal needs.
void print_terminal_lines() {
  constexpr std::string_view kSentence =
      "می‌خواهم با «ساز» (Saaz) گفت‌وگو کنم، نسخهٔ ۱.";
  print_text(fmt::format(
      "terminal          --bidi auto takes {}\n"
      "                  one of these lines reads well from the right: letters joined, the full stop at the left end\n",
      describe(bidi_for(BidiChoice::automatic))));
  for (const auto& [name, choice] :
       {std::pair("terminal", BidiChoice::terminal), std::pair("visual", BidiChoice::visual)}) {
    const Bidi bidi = bidi_for(choice);
    print_text(fmt::format(
        "                  saaz chat --bidi {}:\n{}{}\n{}", name, direction_mark(Direction::rtl, bidi),
        draw_line(kSentence, 0, kSentence.size(), Direction::rtl, bidi, 79), direction_mark(Direction::ltr, bidi)));
  }
  print_text("                  if neither does, take a font with Arabic letters; files and models are not affected\n");
}

int run_doctor(const Globals& globals) {
  const std::vector<std::string> sets = instruction_sets();
  const std::string encoding = nl_langinfo(CODESET);
  const bool is_utf8 = encoding == "UTF-8";
  const auto memory = static_cast<double>(available_memory_bytes());
  if (globals.json) {
    Value names = Value::array();
    for (const std::string& set : sets) names.push_back(set);
    print_json(Value::object({{"schema_version", 1},
                              {"version", kVersion},
                              {"backend", make_backend(globals)->describe()},
                              {"instruction_sets", names},
                              {"cores", available_cores()},
                              {"available_memory_bytes", available_memory_bytes()},
                              {"locale", locale_name()},
                              {"encoding", encoding}}));
    return 0;
  }
  print_text(
      fmt::format("saaz {}\nbackend           {}\ninstruction sets  {}\ncores             {}\nfree memory       {}\n"
                  "locale            {} ({})\n",
                  kVersion, make_backend(globals)->describe(), fmt::join(sets, ", "), available_cores(),
                  bytes_text(memory), locale_name(), encoding));
  if (!is_utf8) print_text("                  Persian text needs a UTF-8 locale: export LC_ALL=C.UTF-8\n");
  print_terminal_lines();
  return 0;
}

}  // namespace

Action declare_doctor(Arguments&, const Globals& globals) {
  return [&globals] { return run_doctor(globals); };
}

}  // namespace saaz
