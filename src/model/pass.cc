#include "model/pass.h"

namespace saaz {

namespace {
/// Measuring, at addresses that no tensor of the work arena has: segments tell a kept tensor from a new one by its
/// address.
Arena measuring_store() {
  constexpr int64_t kCapacity = int64_t{1} << 50, kBase = 2 * kCapacity;
  return Arena(reinterpret_cast<void*>(kBase), kCapacity);
}
}  // namespace

PassMemory::PassMemory() : work_(Arena::measuring()), store_(measuring_store()) {}

PassMemory::PassMemory(Backend& backend, int64_t work_bytes, int64_t store_bytes)
    : backend_(&backend),
      memory_{backend.allocate(work_bytes, "activations of one layer"),
              backend.allocate(store_bytes, "activations between layers")},
      work_(memory_[0], work_bytes),
      store_(memory_[1], store_bytes) {}

PassMemory::~PassMemory() {
  for (void* memory : memory_)
    if (memory != nullptr) backend_->release(memory);
}

namespace {

struct Scored {
  std::vector<int32_t> rows, targets;
};
Scored scored_rows(Targets targets) {
  Scored out;
  for (size_t i = 0; i < targets.size(); ++i)
    if (targets[i] >= 0) {
      out.rows.push_back(static_cast<int32_t>(i));
      out.targets.push_back(targets[i]);
    }
  return out;
}

std::vector<float> download(Backend& backend, const Tensor& t) {
  std::vector<float> out(static_cast<size_t>(t.size()));
  if (!backend.is_plan()) backend.download(out.data(), t);
  return out;
}

}  // namespace

std::vector<float> train_pass(Backend& backend, PassMemory& memory, const Model& model, const Batch& batch,
                              Targets targets, Recompute recompute, float scale) {
  const Scored scored = scored_rows(targets);
  if (scored.rows.empty()) return {};
  ArenaScope store_scope(memory.store()), work_scope(memory.work());
  SegmentedPass pass(backend, memory.work(), memory.store(), recompute, model.n_segments(),
                     [&](Ctx& ctx, int index, State& state) { model.segment(ctx, index, state, batch, nullptr); });
  State final = pass.forward();
  std::vector<float> losses;
  Tensor d_streams;
  {
    ArenaScope scope(memory.work());
    Tape tape(memory.work());
    Ctx ctx{backend, memory.work(), &tape, Tracking::record};
    final[State::streams] = tape.leaf(final[State::streams]);
    const Tensor hidden = select_rows(ctx, model.output(ctx, final), scored.rows);
    const Tensor row_losses = head_loss(ctx, hidden, model.head(), scored.targets, scale);
    losses = download(backend, row_losses);
    tape.seed(row_losses, row_losses);
    tape.backward(ctx);
    const Tensor gradient = tape.gradient(final[State::streams]);
    if (gradient.empty()) return losses;  // only the output block trains
    d_streams = gradient;
    d_streams.node = Ctx::kUntracked;
    d_streams.data = memory.store().allocate(gradient.bytes());
    backend.copy(d_streams, gradient);
  }
  pass.backward(d_streams);
  return losses;
}

std::vector<float> evaluate_pass(Backend& backend, PassMemory& memory, const Model& model, const Batch& batch,
                                 Targets targets) {
  const Scored scored = scored_rows(targets);
  if (scored.rows.empty()) return {};
  ArenaScope store_scope(memory.store()), work_scope(memory.work());
  const State final = run_without_gradients(
      backend, memory.work(), memory.store(), model.n_segments(),
      [&](Ctx& ctx, int index, State& state) { model.segment(ctx, index, state, batch, nullptr); }, nullptr);
  Ctx ctx{backend, memory.work(), nullptr, Tracking::off};
  const Tensor hidden = select_rows(ctx, model.output(ctx, final), scored.rows);
  return download(backend, head_loss(ctx, hidden, model.head(), scored.targets, 1));
}

void logits_pass(Backend& backend, PassMemory& memory, const Model& model, const Batch& batch, KvCache* cache,
                 std::span<const int32_t> rows, std::vector<float>& staging, const UseLogits& use) {
  ArenaScope store_scope(memory.store()), work_scope(memory.work());
  const auto* adapter_rows = batch.adapter_rows.empty() ? nullptr : &batch.adapter_rows;
  const State final = run_without_gradients(
      backend, memory.work(), memory.store(), model.n_segments(),
      [&](Ctx& ctx, int index, State& state) {
        ctx.adapter_rows = adapter_rows;
        model.segment(ctx, index, state, batch, cache);
      },
      nullptr);
  if (rows.empty()) return;
  Ctx ctx{backend, memory.work(), nullptr, Tracking::off, adapter_rows};
  const Tensor hidden = select_rows(ctx, model.output(ctx, final), rows);
  const Tensor logits = head_logits(ctx, hidden, model.head());
  if (backend.is_plan()) return;
  float* host = backend.host_view(logits);
  if (host == nullptr) {
    staging.resize(static_cast<size_t>(logits.size()));
    backend.download(staging.data(), logits);
    host = staging.data();
  }
  use({host, static_cast<size_t>(logits.size())});
}

std::vector<float> logits_pass(Backend& backend, PassMemory& memory, const Model& model, const Batch& batch,
                               KvCache* cache, std::span<const int32_t> rows) {
  std::vector<float> staging, out;
  logits_pass(backend, memory, model, batch, cache, rows, staging,
              [&](std::span<float> logits) { out.assign(logits.begin(), logits.end()); });
  return out;
}

}  // namespace saaz
