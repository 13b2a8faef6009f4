// Step: recording and repeating, and the tokens of a step on their way to the device.
#include "backend/cuda/cuda_step.h"

#include <algorithm>

namespace saaz::cuda {

namespace {
constexpr int kScratchTravelling = 200;  // and the following: one for each table
constexpr int64_t kMostHeads = 64;

constexpr int64_t ids_bytes(int64_t n) { return (n * 4 + 15) / 16 * 16; }
constexpr int64_t spans_bytes(int64_t n) { return n * static_cast<int64_t>(sizeof(AttentionSpan)); }
constexpr int64_t tokens_bytes(int64_t n) { return ids_bytes(n) + 2 * spans_bytes(n); }
}  // namespace

struct Step::Graph final : Recording {
  ~Graph() override {
    forget();
    for (const Travelling& t : travelling) cudaFreeHost(t.pinned);
  }
  void forget() {
    for (cudaGraphExec_t part : parts) cudaGraphExecDestroy(part);
    parts.clear();
  }
  std::vector<cudaGraphExec_t> parts;  // one after another
  int64_t n_tokens = 0;
  int64_t scratch_moves = -1;  // when it was queued or recorded
  std::vector<Travelling> travelling;
};

Step::Step(CudaBackend& backend) : backend_(backend) {
  check_cuda(cudaMalloc(&staged_, tokens_bytes(kMostRows)), "memory of a step's tokens");
  check_cuda(cudaMallocHost(&pinned_, tokens_bytes(kMostRows)), "memory of a step's tokens");
  check_cuda(cudaMalloc(&arrived_, kMostRows * kMostHeads * 4), "memory of a step's tokens");
  check_cuda(cudaMemset(arrived_, 0, kMostRows * kMostHeads * 4), "memory of a step's tokens");
  check_cuda(cudaMalloc(&met_, 8), "memory of a step's tokens");
  check_cuda(cudaMemset(met_, 0, 8), "memory of a step's tokens");
  check_cuda(cudaEventCreateWithFlags(&done_, cudaEventDisableTiming), "creating an event");
  int most_shared = 0;
  check_cuda(cudaDeviceGetAttribute(&most_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, backend_.device_),
             "reading the GPU's properties");
  most_shared_ = most_shared;
  load_tables();
}

Step::~Step() {
  for (const auto& [weight, codes] : head_codes_) cudaFree(codes);
  cudaFree(nf4_tables_);
  cudaFree(staged_);
  cudaFree(arrived_);
  cudaFree(met_);
  cudaFreeHost(pinned_);
  cudaEventDestroy(done_);
}

StepKernels* CudaBackend::step_kernels() {
  if (!step_) step_ = std::make_unique<Step>(*this);
  return step_.get();
}

void Step::stage(const StepTokens& tokens) {
  n_tokens_ = static_cast<int64_t>(tokens.ids.size());
  check(n_tokens_ <= kMostRows, ExitCode::bug, "cuda: a step of {} rows", n_tokens_);
  ids_.assign(tokens.ids.begin(), tokens.ids.end());
  char* to = static_cast<char*>(pinned_);
  std::memcpy(to, tokens.ids.data(), tokens.ids.size_bytes());
  char* device = static_cast<char*>(staged_);
  tokens_.ids = reinterpret_cast<int32_t*>(device);
  for (size_t type = 0; type < 2; ++type) {
    const int64_t at = ids_bytes(n_tokens_) + static_cast<int64_t>(type) * spans_bytes(n_tokens_);
    tokens_.spans[type] = reinterpret_cast<AttentionSpan*>(device + at);
    std::memcpy(to + at, tokens.spans[type].data(), tokens.spans[type].size_bytes());
  }
}

void Step::copy_tokens() {
  check_cuda(cudaMemcpyAsync(staged_, pinned_, static_cast<size_t>(tokens_bytes(n_tokens_)), cudaMemcpyHostToDevice,
                             backend_.stream_),
             "copying a step's tokens");
  after_kernel_ = false;
}

void Step::gather(const Travelling& rows) const {
  std::vector<int32_t> ids = ids_;
  for (int32_t& id : ids)
    if (id >= rows.table.n_out) id = 0;
  gather_on_host(backend_.threads_, rows.pinned, rows.rows, ids, rows.table, 0);
}

void Step::begin_recording() {
  check_cuda(cudaStreamBeginCapture(backend_.stream_, cudaStreamCaptureModeRelaxed), "recording a step");
  after_kernel_ = false;
}

void Step::end_recording() {
  cudaGraph_t recorded = nullptr;
  check_cuda(cudaStreamEndCapture(backend_.stream_, &recorded), "recording a step");
  cudaGraphExec_t part = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&part, recorded, 0);
  cudaGraphDestroy(recorded);
  check_cuda(status, "recording a step");
  recorded_->parts.push_back(part);
}

void Step::cut() {
  if (recorded_ == nullptr) return;
  end_recording();
  begin_recording();
}

void Step::record(Graph& graph, const std::function<void()>& queue) {
  const std::lock_guard lock(backend_.recording_);
  recorded_ = &graph;
  try {
    begin_recording();
    copy_tokens();
    queue();
    end_recording();
  } catch (...) {
    cudaGraph_t recorded = nullptr;
    cudaStreamEndCapture(backend_.stream_, &recorded);
    if (recorded != nullptr) cudaGraphDestroy(recorded);
    recorded_ = nullptr;
    graph.forget();
    throw;
  }
  recorded_ = nullptr;
}

void Step::run(std::unique_ptr<Recording>& recording, const StepTokens& tokens, const std::function<void()>& queue) {
  if (!recording) recording = std::make_unique<Graph>();
  Graph& graph = static_cast<Graph&>(*recording);
  check_cuda(cudaEventSynchronize(done_), "waiting for a step");  // the pinned memory is free again
  stage(tokens);
  check(graph.n_tokens == 0 || graph.n_tokens == n_tokens_, ExitCode::bug, "cuda: a recording of {} rows used for {}",
        graph.n_tokens, n_tokens_);
  graph.n_tokens = n_tokens_;
  if (!graph.parts.empty() && graph.scratch_moves != backend_.scratch_moves_) {
    check_cuda(cudaStreamSynchronize(backend_.stream_), "waiting for a step");
    graph.forget();
  }
  travelling_ = &graph.travelling;
  n_embedded_ = 0;
  for (const Travelling& t : graph.travelling) gather(t);
  // The first time kernels are queued as they are: scratch grows, attributes are set, cuBLAS loads what it needs.
  if (graph.parts.empty() && graph.scratch_moves == backend_.scratch_moves_) record(graph, queue);
  if (!graph.parts.empty()) {
    for (cudaGraphExec_t part : graph.parts)
      check_cuda(cudaGraphLaunch(part, backend_.stream_), "running a recorded step");
  } else {
    copy_tokens();
    queue();
    graph.scratch_moves = backend_.scratch_moves_;
  }
  check_cuda(cudaEventRecord(done_, backend_.stream_), "recording an event");
}

void Step::embed(const Tensor& out, const Weight& table, float scale) {
  if (!in_host_memory(table.data)) {
    backend_.gather_placed(out, tokens_.ids, table, 0, scale);
    after_kernel_ = true;
    return;
  }
  const size_t index = n_embedded_++;
  if (index == travelling_->size()) {
    Travelling t{table, travelling_rows(table, n_tokens_, table.n_in), nullptr, 0};
    t.bytes = t.rows.size() * block_size(t.rows.format).bytes;
    check_cuda(cudaMallocHost(&t.pinned, static_cast<size_t>(t.bytes)), "pinned memory for rows of a table");
    travelling_->push_back(t);
    gather(t);
  }
  Travelling& t = (*travelling_)[index];
  t.rows.data = backend_.scratch(kScratchTravelling + static_cast<int>(index), t.bytes);
  check_cuda(cudaMemcpyAsync(const_cast<void*>(t.rows.data), t.pinned, static_cast<size_t>(t.bytes),
                             cudaMemcpyHostToDevice, backend_.stream_),
             "copying rows of a table");
  after_kernel_ = false;
  backend_.gather_placed(out, nullptr, t.rows, 0, scale);
  after_kernel_ = true;
}

}  // namespace saaz::cuda
