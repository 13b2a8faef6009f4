#include "backend/cuda/cuda_blas.h"

#include <dlfcn.h>

#include <string>
#include <type_traits>

#include "base/check.h"

namespace saaz::cuda {

namespace {

Blas open_blas() {
  const std::string name = "libcublas.so." + std::to_string(CUBLAS_VER_MAJOR);
  void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);  // stays open as long as the process
  if (library == nullptr) {
    const char* why = dlerror();
    fail(ExitCode::resource,
         "CUDA: cuBLAS does not open ({}); install cuBLAS {}, name its folder in LD_LIBRARY_PATH, or run with "
         "--device cpu",
         why == nullptr ? name : why, CUBLAS_VER_MAJOR);
  }
  const auto find = [&](const char* symbol, auto& function) {
    void* address = dlsym(library, symbol);
    check(address != nullptr, ExitCode::resource, "CUDA: {} has no {}", name, symbol);
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(address);
  };
  Blas out{};
  find("cublasCreate_v2", out.create);
  find("cublasDestroy_v2", out.destroy);
  find("cublasSetStream_v2", out.set_stream);
  find("cublasSetWorkspace_v2", out.set_workspace);
  find("cublasGemmEx", out.gemm_ex);
  find("cublasGetStatusString", out.status_string);
  return out;
}

}  // namespace

const Blas& blas() {
  static const Blas table = open_blas();
  return table;
}

}  // namespace saaz::cuda
