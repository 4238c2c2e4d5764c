#include "benchmarks/rpc/contenders.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/executor.h"
#include "benchmarks/rpc/bare_calls.h"
#include "benchmarks/rpc/generated_client.h"
#include "benchmarks/rpc/plain_sockets.h"

namespace attention::benchmarks {
namespace {

absl::StatusOr<Tensor> OutputOf(absl::StatusOr<ComputeResult> result) {
  if (!result.ok()) return result.status();
  return std::move(result->output);
}

absl::StatusOr<Tensor> NoOutput(const absl::Status& status) {
  if (!status.ok()) return status;
  return Tensor();
}

Call ClientCall(const std::string& address, const Workload& workload) {
  auto client = std::make_shared<Client>(address);
  return [client, &workload] {
    return OutputOf(client->Compute(workload.request()));
  };
}

Call AsyncCall(const std::string& address, const Workload& workload) {
  auto client = std::make_shared<Client>(address);
  return [client, &workload] {
    return OutputOf(client->ComputeAsync(workload.request()).get());
  };
}

// The same memory for every answer, as one does who calls often.
Call IntoMemoryCall(const std::string& address, const Workload& workload) {
  struct State {
    Client client;
    std::vector<std::byte> memory;
    ComputeRequest request;
  };
  auto state = std::make_shared<State>(
      Client(address), std::vector<std::byte>(workload.output_bytes()),
      workload.request());
  state->request.outputs.output = state->memory;
  return [state] { return OutputOf(state->client.Compute(state->request)); };
}

// Of a server that shares memory; the tensors lie there, and the output comes
// there.
Call InPlaceCall(const std::string& address, const Workload& workload) {
  struct State {
    Client client;
    ComputeRequest request;
    std::vector<std::shared_ptr<std::byte>> memory;

    std::span<std::byte> Allocate(size_t bytes) {
      memory.push_back(client.AllocateShared(bytes));
      return {memory.back().get(), bytes};
    }
  };
  auto state = std::make_shared<State>(Client(address), workload.request());
  ComputeRequest& request = state->request;
  for (TensorSpan* tensor : {&request.query, &request.key, &request.value}) {
    const std::span<std::byte> memory = state->Allocate(tensor->bytes.size());
    std::ranges::copy(tensor->bytes, memory.begin());
    tensor->bytes = memory;
  }
  request.outputs.output = state->Allocate(workload.output_bytes());
  return [state] { return OutputOf(state->client.Compute(state->request)); };
}

Call GeneratedCall(const std::string& address, const Workload& workload) {
  auto client = std::make_shared<GeneratedClient>(address);
  return [client, &workload] { return client->Call(workload.request()); };
}

Call BareCall(const std::string& address, const Workload& workload,
              size_t answer_bytes) {
  auto client =
      std::make_shared<BareClient>(address, workload.request(), answer_bytes);
  return [client] { return NoOutput(client->Call()); };
}

absl::StatusOr<Call> SocketCall(const std::string& address,
                                const Workload& workload) {
  auto connected = SocketClient::Connect(address);
  if (!connected.ok()) return connected.status();
  std::shared_ptr<SocketClient> client = *std::move(connected);
  return [client, &workload] { return NoOutput(client->Call(workload)); };
}

// As many threads as cores, this one included, as the server has.
Call KernelCall(const Workload& workload) {
  const int threads =
      std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  auto executor = std::make_shared<Executor>(threads - 1);
  auto output =
      std::make_shared<std::vector<std::byte>>(workload.output_bytes());
  return [executor, output, &workload]() -> absl::StatusOr<Tensor> {
    const absl::Status status =
        RunAttention(workload.plan(), {.output = output->data()}, *executor);
    if (!status.ok()) return status;
    const TensorSpan& query = workload.request().query;
    return Tensor::FromShared(
               query.type,
               std::shared_ptr<const std::byte>(output, output->data()),
               output->size(), query.shape)
        .value();
  };
}

// The request's bytes once, and the answer's.
Call MemcpyCall(const Workload& workload) {
  const ComputeRequest& request = workload.request();
  std::vector<std::span<const std::byte>> parts = {
      request.query.bytes, request.key.bytes, request.value.bytes,
      request.query.bytes};
  size_t total = 0;
  for (const auto& part : parts) total += part.size();
  auto memory = std::make_shared<std::vector<std::byte>>(total);
  return [memory, parts]() -> absl::StatusOr<Tensor> {
    std::byte* to = memory->data();
    for (const auto& part : parts) {
      std::memcpy(to, part.data(), part.size());
      to += part.size();
    }
    return Tensor();
  };
}

}  // namespace

absl::StatusOr<Call> MakeCall(const Contender& contender,
                              const Workload& workload) {
  const std::string& name = contender.name;
  const std::string& address = contender.address;
  if (name == "client") return ClientCall(address, workload);
  if (name == "client_into_memory") return IntoMemoryCall(address, workload);
  if (name == "client_async") return AsyncCall(address, workload);
  if (name == "client_in_place") return InPlaceCall(address, workload);
  if (name == "generated") return GeneratedCall(address, workload);
  if (name == "transfer") {
    return BareCall(address, workload, workload.output_bytes());
  }
  if (name == "echo") return BareCall(address, workload, 0);
  if (name == "sockets") return SocketCall(address, workload);
  if (name == "compute") return KernelCall(workload);
  if (name == "memcpy") return MemcpyCall(workload);
  return absl::InvalidArgumentError(absl::StrCat("no contender '", name, "'"));
}

}  // namespace attention::benchmarks
