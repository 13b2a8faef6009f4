// All kernels and the table that exports them; each kernels_*.cc includes this once, compiled for its instruction set.
#pragma once

#include "backend/cpu/attention.inc.h"
#include "backend/cpu/matmul_bf16.inc.h"
#include "backend/cpu/matmul_int8.inc.h"

namespace saaz::cpu {
namespace {

constexpr KernelTable make_table(const char* name, Bf16Kernels bf16 = kWidenedBf16) {
  return {
      .name = name,
      .dequantise = dequantise_range,
      .dot = dot_task,
      .dot_bf16 = bf16.dot,
      .round_bf16 = bf16.round,
      .dot_int8 = dot_task_int8,
      .round_int8 = round_int8,
      .int8_product = int8_product,
      .outer = outer_task,
      .exp = exp_range,
      .tanh = tanh_range,
      .tanh_backward = tanh_backward,
      .softcap = softcap,
      .add_scaled = add_scaled,
      .accumulate = accumulate,
      .sum_of_squares = sum_of_squares,
      .adamw_f32 = adamw_f32,
      .adamw_8bit = adamw_8bit,
      .scale_columns = scale_columns,
      .rms_norm = rms_norm,
      .rms_norm_backward = rms_norm_backward,
      .match_magnitude = match_magnitude,
      .match_magnitude_backward = match_magnitude_backward,
      .geglu = geglu,
      .geglu_backward = geglu_backward,
      .rope = rope,
      .cross_entropy = cross_entropy,
      .altup_predict = altup_predict,
      .altup_predict_backward = altup_predict_backward,
      .altup_correct = altup_correct,
      .altup_correct_backward = altup_correct_backward,
      .attention_scratch = attention_scratch,
      .attention = attention_task,
      .attention_backward_queries = attention_backward_queries,
      .attention_backward_keys = attention_backward_keys,
  };
}

}  // namespace
}  // namespace saaz::cpu
