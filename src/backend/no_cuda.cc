// A build without the CUDA sources (SAAZ_CUDA: with them) has no CUDA backend.
#include "backend/backend.h"

#ifndef SAAZ_CUDA
namespace saaz {

std::unique_ptr<Backend> make_cuda_backend(const BackendOptions&) { return nullptr; }

}  // namespace saaz
#endif
