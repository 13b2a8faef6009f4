// For cli_test.sh: a Gemma 3n folder as a GGUF file with Q8_0 matrices.
//   make_gguf3n FOLDER FILE
#include <cstdio>

#include "base/error.h"
#include "gguf3n_writer.h"

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  try {
    saaz::write_gguf3n(argv[1], argv[2], {.matrices = saaz::WeightFormat::q8_0});
    return 0;
  } catch (const saaz::Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
