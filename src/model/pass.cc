#include "model/pass.h"

#include <algorithm>

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

void PassBytes::cover(const PassBytes& other) {
  work = std::max(work, other.work);
  store = std::max(store, other.store);
}

PassMemory::PassMemory(Backend& backend, int64_t work_bytes, int64_t store_bytes)
    : backend_(&backend),
      memory_{backend.allocate(work_bytes, "activations of one layer"),
              backend.allocate(store_bytes, "activations between layers")},
      work_(memory_[0], work_bytes),
      store_(memory_[1], store_bytes) {}

PassMemory::~PassMemory() {
  recordings_.clear();
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
  Tensor losses, d_streams;
  {
    ArenaScope scope(memory.work());
    Tape tape(memory.work());
    Ctx ctx{backend, memory.work(), &tape, Tracking::record};
    final[State::streams] = tape.leaf(final[State::streams]);
    const Tensor hidden = select_rows(ctx, model.output(ctx, final), scored.rows);
    const Tensor row_losses = head_loss(ctx, hidden, model.head(), scored.targets, scale);
    losses = Tensor(memory.store().allocate(row_losses.bytes()), DType::f32, {row_losses.size()});
    backend.copy(losses, row_losses);
    tape.seed(row_losses, row_losses);
    tape.backward(ctx);
    const Tensor gradient = tape.gradient(final[State::streams]);
    if (gradient.empty()) return download(backend, losses);  // only the output block trains
    d_streams = gradient;
    d_streams.node = Ctx::kUntracked;
    d_streams.data = memory.store().allocate(gradient.bytes());
    backend.copy(d_streams, gradient);
  }
  pass.backward(d_streams);
  return download(backend, losses);  // last: a device is not waited for in between
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

namespace {

/// The given tokens alone, each a sequence of one query that sees the keys it saw.
Batch only_rows(const Batch& batch, std::span<const int32_t> rows) {
  Batch out;
  for (const int32_t row : rows) {
    for (const AdapterRows& adapter : batch.adapter_rows)
      if (row >= adapter.begin && row < adapter.begin + adapter.n)
        out.adapter_rows.push_back({static_cast<int64_t>(out.ids.size()), 1, adapter.pairs});
    out.ids.push_back(batch.ids[static_cast<size_t>(row)]);
    out.positions.push_back(batch.positions[static_cast<size_t>(row)]);
    for (size_t type = 0; type < batch.spans.size(); ++type)
      for (AttentionSpan span : batch.spans[type]) {
        if (row < span.q_begin || row >= span.q_begin + span.n_queries) continue;
        span.first_position += row - span.q_begin;
        span.q_begin = static_cast<int64_t>(out.ids.size()) - 1;
        span.n_queries = 1;
        out.spans[type].push_back(span);
      }
  }
  return out;
}

/// x [n, T, dim] with the given of its T rows.
Tensor select_of_each(Ctx& ctx, const Tensor& x, std::span<const int32_t> rows) {
  const auto n = static_cast<int64_t>(rows.size());
  const Tensor y = ctx.empty({x.dim(0), n, x.dim(2)});
  const Tensor from(x.data, x.dtype, {x.dim(0) * x.dim(1), x.dim(2)}), to(y.data, y.dtype, {x.dim(0) * n, x.dim(2)});
  for (int64_t i = 0; i < x.dim(0); ++i)
    ctx.backend.select_rows(row_slice(to, i * n, n), row_slice(from, i * x.dim(1), x.dim(1)), rows);
  return y;
}

const std::vector<AdapterRows>* adapter_rows_of(const Batch& batch) {
  return batch.adapter_rows.empty() ? nullptr : &batch.adapter_rows;
}

/// Whether a batch is one new token of each sequence, all of whose logits are wanted, and no adapter's.
bool is_step(const Batch& batch, std::span<const int32_t> rows) {
  if (!batch.adapter_rows.empty() || rows.empty() || rows.size() != batch.ids.size() ||
      batch.ids.size() > static_cast<size_t>(StepKernels::kMostRows))
    return false;
  for (size_t i = 0; i < rows.size(); ++i)
    if (rows[i] != static_cast<int32_t>(i)) return false;
  for (const auto& spans : batch.spans) {
    if (spans.size() != batch.ids.size()) return false;
    for (size_t i = 0; i < spans.size(); ++i)
      if (spans[i].n_queries != 1 || spans[i].q_begin != static_cast<int64_t>(i)) return false;
  }
  return true;
}

/// The logits by the backend's step kernels. Tensors lie where they lay in every step of so many rows.
Tensor step_logits(Backend& backend, StepKernels& kernels, PassMemory& memory, const Model& model, const Batch& batch,
                   const KvCache& cache, LogitsWanted wanted) {
  const auto n = static_cast<int64_t>(batch.ids.size());
  Ctx ctx{backend, memory.work(), nullptr, Tracking::off};
  const Tensor logits = ctx.empty_f32({n, model.config().vocab_size});
  const PassMemory::StepKey key{&model, model.head().weight.data, cache.k(0).data, cache.bytes(), n, wanted};
  kernels.run(memory.recording(key), {batch.ids, {batch.spans[0], batch.spans[1]}}, [&] {
    ArenaScope scope(memory.work());
    model.queue_step(ctx, kernels, cache, logits, wanted);
  });
  return logits;
}

}  // namespace

std::span<float> Logits::row(int64_t i) {
  const Tensor row = row_slice(values_, i, 1);
  const auto n = static_cast<size_t>(row.size());
  if (float* host = backend_.host_view(row); host != nullptr) return {host, n};
  staging_.resize(n);
  backend_.download(staging_.data(), row);
  return staging_;
}

void logits_pass(Backend& backend, PassMemory& memory, const Model& model, const Batch& batch, KvCache* cache,
                 std::span<const int32_t> rows, LogitsWanted wanted, std::vector<float>& staging,
                 const UseLogits& use) {
  ArenaScope store_scope(memory.store()), work_scope(memory.work());
  StepKernels* kernels = cache != nullptr && is_step(batch, rows) ? backend.step_kernels() : nullptr;
  if (kernels != nullptr && model.takes_steps()) {
    Logits logits(backend, step_logits(backend, *kernels, memory, model, batch, *cache, wanted), staging);
    return use(logits);
  }
  // Segments from here on make no keys or values: only the rows whose logits are wanted need them.
  const int n_owning = static_cast<int>(model.config().n_layers - model.config().n_kv_shared_layers) + 1;
  const bool narrows = n_owning < model.n_segments() && rows.size() < batch.ids.size();
  const Batch narrow = narrows ? only_rows(batch, rows) : Batch{};
  const State final = run_without_gradients(
      backend, memory.work(), memory.store(), narrows && rows.empty() ? n_owning : model.n_segments(),
      [&](Ctx& ctx, int index, State& state) {
        const Batch& seen = narrows && index >= n_owning ? narrow : batch;
        if (narrows && index == n_owning)
          for (const State::Field field : {State::streams, State::per_layer_inputs})
            state[field] = select_of_each(ctx, state[field], rows);
        ctx.adapter_rows = adapter_rows_of(seen);
        model.segment(ctx, index, state, seen, cache);
      },
      nullptr);
  if (rows.empty()) return;
  Ctx ctx{backend, memory.work(), nullptr, Tracking::off, adapter_rows_of(narrows ? narrow : batch)};
  const Tensor all = model.output(ctx, final), hidden = narrows ? all : select_rows(ctx, all, rows);
  Logits logits(backend, head_logits(ctx, hidden, model.head()), staging);
  if (!backend.is_plan()) use(logits);
}

std::vector<float> logits_pass(Backend& backend, PassMemory& memory, const Model& model, const Batch& batch,
                               KvCache* cache, std::span<const int32_t> rows) {
  std::vector<float> staging, out;
  logits_pass(backend, memory, model, batch, cache, rows, LogitsWanted::all, staging, [&](Logits& logits) {
    for (int64_t i = 0; i < static_cast<int64_t>(rows.size()); ++i) {
      const std::span<float> row = logits.row(i);
      out.insert(out.end(), row.begin(), row.end());
    }
  });
  return out;
}

}  // namespace saaz
