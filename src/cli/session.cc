#include "cli/session.h"

#include <algorithm>

#include "base/check.h"
#include "cli/end_at_stop.h"
#include "cli/hub.h"
#include "model/base_tokenizer.h"
#include "quant/int8.h"

namespace saaz {

std::unique_ptr<Backend> make_backend(const Globals& globals, ComputeDtype compute_dtype, ComputeDtype on_cpu) {
  BackendOptions options = globals.backend;
  bool is_int8 = compute_dtype == ComputeDtype::int8 || compute_dtype == ComputeDtype::llm_int8;
  check(!is_int8 || globals.device != Device::cuda, ExitCode::usage,
        "--compute-dtype int8 and llm.int8 are for the CPU: leave --device cuda out, or take bf16");
  const bool wants_cpu = globals.device == Device::cpu || !options.instruction_set.empty() || is_int8;
  if (!wants_cpu) {
    options.compute_dtype = compute_dtype == ComputeDtype::f32 ? DType::f32 : DType::bf16;
    if (std::unique_ptr<Backend> gpu = make_cuda_backend(options)) return gpu;
    check(globals.device != Device::cuda, ExitCode::resource,
          "--device cuda: this machine has no GPU that this program can use; leave the flag out to run on the CPU");
    log_line(globals, "no GPU that this program can use; running on the CPU");
  }
  if (compute_dtype == ComputeDtype::automatic) {
    compute_dtype = on_cpu;
    is_int8 = on_cpu == ComputeDtype::int8;
  }
  options.compute_dtype = is_int8 ? DType::i8 : compute_dtype == ComputeDtype::bf16 ? DType::bf16 : DType::f32;
  if (compute_dtype == ComputeDtype::llm_int8) options.llm_int8_threshold = kLlmInt8Threshold;
  return make_cpu_backend(options);
}

void declare_model(Arguments& arguments, ModelFlags& flags) {
  declare_base_model(arguments, flags);
  arguments.text("--adapter", flags.adapter, Arguments::Need::optional, "a PEFT adapter folder");
}

void declare_base_model(Arguments& arguments, ModelFlags& flags) {
  arguments.text("--model", flags.model, Arguments::Need::required,
                 "a model folder, a .gguf file, or the name of a fetched model");
  arguments.choice("--quant", flags.quant,
                   {{"none", QuantScheme::none}, {"nf4", QuantScheme::nf4}, {"int8", QuantScheme::int8}},
                   "weights of the linears: as stored, as NF4, or in 8 bits with a scale a row (none)");
  arguments.choice(
      "--compute-dtype", flags.compute_dtype,
      {{"auto", ComputeDtype::automatic},
       {"f32", ComputeDtype::f32},
       {"bf16", ComputeDtype::bf16},
       {"int8", ComputeDtype::int8},
       {"llm.int8", ComputeDtype::llm_int8}},
      "what enters the products with frozen weights (auto: bf16 on a GPU; on the CPU f32, but int8 for answers of a "
      "quantised GGUF file); int8: activations in blocks of 8-bit codes; llm.int8: LLM.int8() on weights of --quant "
      "int8");
}

void declare_encoding(Arguments& arguments, EncodeOptions& options) {
  arguments.integer("--max-seq-length", options.max_seq_length, 2, 1 << 20, "longer rows are cut");
  arguments.choice("--loss-on", options.loss_on, {{"assistant", LossOn::assistant}, {"all", LossOn::all}},
                   "the tokens that are scored (assistant)");
}

Session::Session(const ModelFlags& flags, const Globals& globals, Purpose purpose)
    : flags_(flags),
      globals_(globals),
      base_(open_base_model(find_model(flags.model))),
      tokenizer_(load_base_tokenizer(base_)),
      backend_(make_backend(globals, flags.compute_dtype,
                            purpose == Purpose::answers && base_.weights->is_quantised_gguf() ? ComputeDtype::int8
                                                                                              : ComputeDtype::f32)) {}

void Session::load(int64_t max_positions) {
  const EndAtStop nothing_is_lost;
  model_ =
      load_model(*backend_, base_,
                 {.scheme = flags_.quant, .double_quant = true, .max_positions = std::min(max_positions, context())});
  log_line(globals_, fmt::format("{}: {} weights, {}", flags_.model,
                                 bytes_text(static_cast<double>(model_->weight_bytes())), backend_->describe()));
  if (const std::string note = chat_template_note(base_.path); !note.empty()) log_line(globals_, "note: " + note);
}

void Session::attach_adapter() {
  if (flags_.adapter.empty()) return;
  adapter_ = Adapter::load(*backend_, *model_, flags_.adapter, ForTraining::no);
  adapter_->attach();
  for (const std::string& note : adapter_->notes()) log_line(globals_, note);
}

}  // namespace saaz
