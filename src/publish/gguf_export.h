// Export for llama.cpp: a base or merged model as one GGUF file, or as a folder that `ollama create` takes. Enters: any
// base that can be opened. Leaves: a file or folder that appears whole. Values change as llama.cpp's converter changes
// them (gemma3n.md 8.3); what llama.cpp hard-codes and this model does differently is said in the report.
#pragma once

#include <string>
#include <vector>

#include "model/weight_source.h"

namespace saaz {

struct GgufReport {
  int64_t n_tensors = 0, n_tokens = 0;
  uint64_t bytes = 0;              // of the file
  std::vector<std::string> notes;  // for people: why llama.cpp would compute something else
};

/// Writes `out`. `format`: of the matrices: f32, f16, bf16, q8_0, q5_0 or q4_0; what must not be rounded that far is
/// stored as formats.md 2.1 says. bad_input when the base has no tokenizer or a non-finite value; io, resource: disk.
GgufReport export_gguf(const BaseModel& base, WeightFormat format, const fs::path& out);

/// Writes the folder `out` (absent or empty: in_use): model.gguf and a Modelfile with template, stop and parameters.
GgufReport export_ollama(const BaseModel& base, WeightFormat format, const fs::path& out);

}  // namespace saaz
