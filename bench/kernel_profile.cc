// Kernel times by name through CUPTI's activity records. The library is loaded at run time: a bench must run where it
// is not there.
#include <cupti.h>
#include <cxxabi.h>
#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

#include "bench/full_size.h"

namespace saaz::bench {

namespace {

struct Sum {
  double ms = 0, added_ms = 0;
  int64_t launches = 0;
};
struct Run {
  uint64_t start, end;
  std::string name;
};
std::mutex guard;
std::vector<Run> runs;
void* library = nullptr;

template <class F>
F function(const char* name) {
  return reinterpret_cast<F>(dlsym(library, name));
}

std::string readable(const std::string& name) {
  int status = 0;
  char* plain = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status);
  std::string out = status == 0 ? plain : name;
  std::free(plain);
  // The name's middle is the same in all.
  for (const char* part : {"void ", "saaz::cuda::", "(anonymous namespace)::", "__nv_"})
    for (size_t at = out.find(part); at != std::string::npos; at = out.find(part)) out.erase(at, std::strlen(part));
  return out.substr(0, std::min<size_t>(90, out.find('(')));
}

void CUPTIAPI give_buffer(uint8_t** buffer, size_t* size, size_t* max_records) {
  *size = 8 << 20;
  *buffer = static_cast<uint8_t*>(std::aligned_alloc(64, *size));
  *max_records = 0;
}

void CUPTIAPI take_buffer(CUcontext, uint32_t, uint8_t* buffer, size_t, size_t valid) {
  static const auto next = function<decltype(&cuptiActivityGetNextRecord)>("cuptiActivityGetNextRecord");
  const std::lock_guard lock(guard);
  CUpti_Activity* record = nullptr;
  while (next(buffer, valid, &record) == CUPTI_SUCCESS) {
    if (record->kind != CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) continue;
    const auto* kernel = reinterpret_cast<const CUpti_ActivityKernel9*>(record);
    runs.push_back({kernel->start, kernel->end,
                    fmt::format("{} [{}, {}]", readable(kernel->name), kernel->gridX, kernel->dynamicSharedMemory)});
  }
  std::free(buffer);
}

}  // namespace

void KernelProfile::start() {
  if (library == nullptr)
    for (const char* name : {"libcupti.so.13", "libcupti.so"})
      if (library == nullptr) library = dlopen(name, RTLD_NOW);
  if (library == nullptr) return;
  function<decltype(&cuptiActivityRegisterCallbacks)>("cuptiActivityRegisterCallbacks")(give_buffer, take_buffer);
  function<decltype(&cuptiActivityEnable)>("cuptiActivityEnable")(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL);
}

void KernelProfile::stop_and_print(const char* title, int n_repeats) {
  if (library == nullptr) {
    fmt::print("{}: no CUPTI, no profile\n", title);
    return;
  }
  function<decltype(&cuptiActivityFlushAll)>("cuptiActivityFlushAll")(1);  // also buffers that are not full
  function<decltype(&cuptiActivityDisable)>("cuptiActivityDisable")(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL);
  const std::lock_guard lock(guard);
  // Kernels may overlap: what one adds is the time from the end of those before it to its own.
  std::sort(runs.begin(), runs.end(), [](const Run& a, const Run& b) { return a.end < b.end; });
  std::map<std::string, Sum> sums;
  double added = 0, idle = 0;
  for (size_t i = 0; i < runs.size(); ++i) {
    const uint64_t before = i == 0 ? runs[0].start : runs[i - 1].end;
    Sum& sum = sums[runs[i].name];
    ++sum.launches;
    sum.ms += static_cast<double>(runs[i].end - runs[i].start) * 1e-6;
    const double here = static_cast<double>(runs[i].end - std::max(before, runs[i].start)) * 1e-6;
    sum.added_ms += here, added += here;
    if (runs[i].start > before) idle += static_cast<double>(runs[i].start - before) * 1e-6;
  }
  std::vector<std::pair<std::string, Sum>> rows(sums.begin(), sums.end());
  std::sort(rows.begin(), rows.end(),
            [](const auto& a, const auto& b) { return a.second.added_ms > b.second.added_ms; });
  fmt::print("{}: {:.2f} ms of kernels a repeat, {:.2f} ms between them; added, from start to end, launches\n", title,
             added / n_repeats, idle / n_repeats);
  for (size_t i = 0; i < std::min<size_t>(rows.size(), 45); ++i)
    fmt::print("{:5.1f}% {:8.3f} {:8.3f} ms {:6} x {}\n", 100 * rows[i].second.added_ms / added,
               rows[i].second.added_ms / n_repeats, rows[i].second.ms / n_repeats, rows[i].second.launches / n_repeats,
               rows[i].first);
  runs.clear();
}

}  // namespace saaz::bench
