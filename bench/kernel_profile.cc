// Kernel times by name through CUPTI's activity records. The library is loaded at run time: a bench must run where it
// is not there.
#include <cupti.h>
#include <cxxabi.h>
#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>

#include "bench/full_size.h"

namespace saaz::bench {

namespace {

struct Sum {
  double ms = 0;
  int64_t launches = 0;
};
std::mutex guard;
std::map<std::string, Sum> sums;
void* library = nullptr;

template <class F>
F function(const char* name) {
  return reinterpret_cast<F>(dlsym(library, name));
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
    Sum& sum = sums[kernel->name];
    sum.ms += static_cast<double>(kernel->end - kernel->start) * 1e-6;
    ++sum.launches;
  }
  std::free(buffer);
}

std::string readable(const std::string& name) {
  int status = 0;
  char* plain = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status);
  std::string out = status == 0 ? plain : name;
  std::free(plain);
  return out.substr(0, 110);
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
  function<decltype(&cuptiActivityFlushAll)>("cuptiActivityFlushAll")(0);
  function<decltype(&cuptiActivityDisable)>("cuptiActivityDisable")(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL);
  const std::lock_guard lock(guard);
  std::vector<std::pair<std::string, Sum>> rows(sums.begin(), sums.end());
  std::sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) { return a.second.ms > b.second.ms; });
  double all = 0;
  for (const auto& [name, sum] : rows) all += sum.ms;
  fmt::print("{}: {:.2f} ms of kernels a repeat\n", title, all / n_repeats);
  for (size_t i = 0; i < std::min<size_t>(rows.size(), 45); ++i)
    fmt::print("{:5.1f}% {:8.3f} ms {:6} x {}\n", 100 * rows[i].second.ms / all, rows[i].second.ms / n_repeats,
               rows[i].second.launches / n_repeats, readable(rows[i].first));
  sums.clear();
}

}  // namespace saaz::bench
