// cuBLAS, opened when a GPU is first used: linked, it would take hundreds of megabytes of every command's memory.
#pragma once

#include <cublas_v2.h>

namespace saaz::cuda {

/// The functions that are called, by their names without the prefix.
struct Blas {
  decltype(&cublasCreate_v2) create;
  decltype(&cublasDestroy_v2) destroy;
  decltype(&cublasSetStream_v2) set_stream;
  decltype(&cublasSetWorkspace_v2) set_workspace;
  cublasStatus_t (*gemm_ex)(cublasHandle_t, cublasOperation_t, cublasOperation_t, int m, int n, int k,
                            const void* alpha, const void* a, cudaDataType, int lda, const void* b, cudaDataType,
                            int ldb, const void* beta, void* c, cudaDataType, int ldc, cublasComputeType_t,
                            cublasGemmAlgo_t);
  decltype(&cublasGetStatusString) status_string;
};
/// Throws resource, naming the library and how to go on, where it is not to be found.
const Blas& blas();

}  // namespace saaz::cuda
