// The products, by cuBLAS: operands in the activations' dtype, sums in f32. Matrices here are row-major; cuBLAS reads
// columns first, so c = a b is asked for as c^T = b^T a^T.
#include "backend/cuda/cuda_blas.h"
#include "backend/cuda/cuda_common.cuh"

namespace saaz::cuda {

namespace {

cudaDataType_t type_of(DType dtype) { return dtype == DType::f32 ? CUDA_R_32F : CUDA_R_16BF; }

}  // namespace

void CudaBackend::gemm(const Tensor& c, const Matrix& a, const Matrix& b, int64_t k, float alpha, Write write) {
  const int64_t m = c.dim(0), n = c.dim(1);
  if (m == 0 || n == 0) return;
  const float beta = write == Write::add ? 1.0f : 0.0f;
  const auto op = [](const Matrix& x) { return x.transposed ? CUBLAS_OP_T : CUBLAS_OP_N; };
  const auto leading = [](const Matrix& x) { return static_cast<int>(x.values.dim(1)); };
  const cublasStatus_t status = blas().gemm_ex(
      blas_, op(b), op(a), static_cast<int>(n), static_cast<int>(m), static_cast<int>(k), &alpha, b.values.data,
      type_of(b.values.dtype), leading(b), a.values.data, type_of(a.values.dtype), leading(a), &beta, c.data,
      type_of(c.dtype), static_cast<int>(n), CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
  check(status == CUBLAS_STATUS_SUCCESS, ExitCode::bug, "cuBLAS: {} for a product [{}, {}] x [{}, {}]",
        blas().status_string(status), m, k, k, n);
}

void CudaBackend::matmul_nt(const Tensor& y, const Tensor& x, const Weight& w, Write write) {
  if (is_narrow(w) && x.dtype == activations_ && y.dtype == activations_) return narrow_nt(y, x, w, write);
  const Tensor values = dense(w);
  gemm(flat(y), {flat(as_activations(x, kLeftScratch)), false}, {values, true}, w.n_in, 1, write);
}

void CudaBackend::matmul_nn(const Tensor& dx, const Tensor& dy, const Weight& w, Write write) {
  if (is_narrow(w) && dx.dtype == activations_ && dy.dtype == activations_) return narrow_nn(dx, dy, w, write);
  const Tensor values = dense(w);
  gemm(flat(dx), {flat(as_activations(dy, kLeftScratch)), false}, {values, false}, w.n_out, 1, write);
}

void CudaBackend::matmul_tn(const Tensor& dw, const Tensor& p, const Tensor& x, float scale, Write write) {
  gemm(flat(dw), {flat(p), true}, {flat(x), false}, p.rows(), scale, write);
}

}  // namespace saaz::cuda
