#include "report/provenance.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "base/check.h"
#include "report/run_record.h"

namespace saaz {

namespace {

void set_hub_id(Value& out, const fs::path& path, std::string_view kind) {
  const std::optional<HubName> name = hub_name_of(path, kind);
  if (!name) return;
  out.set("hub_id", name->id);
  if (!name->revision.empty()) out.set("revision", name->revision);
}

Value describe_base(const std::string& base, const Value& hashes) {
  const fs::path path = fs::absolute(base).lexically_normal();
  Value out = Value::object({{"name", (path.has_filename() ? path : path.parent_path()).filename().string()}});
  set_hub_id(out, path, "models");
  if (const Value* hash = hashes.find(base)) out.set("sha256", *hash);
  return out;
}

/// The YAML between the first two lines "---" of a card; null when there is none or it is not ours to read.
Value front_matter(std::string_view card) {
  constexpr std::string_view kBegin = "---\n", kEnd = "\n---\n";
  if (!card.starts_with(kBegin)) return {};
  const size_t end = card.find(kEnd, kBegin.size() - 1);
  if (end == std::string_view::npos) return {};
  try {
    return parse_yaml(card.substr(kBegin.size(), end + 1 - kBegin.size()), "README.md");
  } catch (const Error&) {
    return {};
  }
}

std::string first_bibtex(std::string_view card) {
  constexpr std::string_view kFence = "```bibtex\n";
  const size_t begin = card.find(kFence);
  const size_t end = begin == std::string_view::npos ? begin : card.find("\n```", begin);
  if (end == std::string_view::npos) return "";
  return std::string(card.substr(begin + kFence.size(), end - begin - kFence.size()));
}

/// The README.md of a dataset stands beside its files, or above a folder `data`.
void read_card(Value& out, const fs::path& folder) {
  for (const fs::path& path : {folder / "README.md", folder.parent_path() / "README.md"}) {
    if (!fs::is_regular_file(path) || fs::file_size(path) > 4 << 20) continue;
    const std::string card = read_file(path);
    const Value header = front_matter(card);
    if (header.is_object()) {
      if (const std::string license = text_or_empty(header, "license"); !license.empty()) out.set("license", license);
      const Value* language = header.find("language");
      if (language != nullptr && language->is_string()) out.set("languages", Value::array({*language}));
      if (language != nullptr && language->is_array()) out.set("languages", *language);
      if (const std::string name = text_or_empty(header, "pretty_name"); !name.empty()) out.set("name", name);
    }
    if (const std::string citation = first_bibtex(card); !citation.empty()) out.set("citation", citation);
    return;
  }
}

Value describe_dataset(const fs::path& folder, const std::vector<fs::path>& files, const Value& hashes) {
  Value out = Value::object({{"name", folder.filename().string()}});
  set_hub_id(out, folder, "datasets");
  read_card(out, folder);
  Value list = Value::array();
  for (const fs::path& file : files) {
    Value entry = Value::object({{"name", file.filename().string()}});
    if (const Value* hash = hashes.find(file.string())) entry.set("sha256", *hash);
    list.push_back(entry);
  }
  out.set("files", list);
  return out;
}

std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("model name")) return line.substr(std::min(line.size(), line.find(':') + 2));
  return "";
}

}  // namespace

std::optional<HubName> hub_name_of(const fs::path& path, std::string_view kind) {
  const fs::path whole = fs::absolute(path).lexically_normal();
  for (auto part = whole.begin(); part != whole.end(); ++part) {
    std::string name = part->string();
    const std::string prefix = std::string(kind) + "--";
    if (!name.starts_with(prefix)) continue;
    name = name.substr(prefix.size());
    const size_t between = name.find("--");
    if (between == std::string::npos) return std::nullopt;
    HubName out{.id = fmt::format("{}/{}", name.substr(0, between), name.substr(between + 2)), .revision = {}};
    auto next = std::next(part);
    if (next != whole.end() && next->string() == "snapshots" && ++next != whole.end()) out.revision = next->string();
    return out;
  }
  return std::nullopt;
}

Value provenance(const std::string& base, const std::vector<fs::path>& data_files, const Value& hashes) {
  // Files of one folder are one dataset.
  std::vector<std::pair<fs::path, std::vector<fs::path>>> folders;
  for (const fs::path& file : data_files) {
    const fs::path folder = fs::absolute(file).lexically_normal().parent_path();
    auto at = std::find_if(folders.begin(), folders.end(), [&](const auto& f) { return f.first == folder; });
    if (at == folders.end()) at = folders.insert(at, {folder, {}});
    at->second.push_back(file);
  }
  Value datasets = Value::array();
  for (const auto& [folder, files] : folders) datasets.push_back(describe_dataset(folder, files, hashes));
  const int64_t memory = int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
  return Value::object({{"base", describe_base(base, hashes)},
                        {"datasets", datasets},
                        {"hardware", Value::object({{"processor", processor_name()}, {"memory_bytes", memory}})}});
}

}  // namespace saaz
