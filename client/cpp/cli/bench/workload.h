// What is sent: request bytes, made once, of numbers that need no memory.
#ifndef ATTENTION_CLIENT_CPP_CLI_BENCH_WORKLOAD_H_
#define ATTENTION_CLIENT_CPP_CLI_BENCH_WORKLOAD_H_

#include <grpcpp/support/byte_buffer.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "attention/v1/attention.pb.h"
#include "client/cpp/cli/bench/call_shape.h"

namespace attention::cli {

// Which tensor of a request.
enum class Input { kQuery, kKey, kValue };

// The numbers of a benchmark's tensors: of mean 0 and variance 1, uniform,
// rounded to `type`, a function of tensor, index and seed. So a row can be
// made again without keeping the tensor. A value; thread-safe.
class InputNumbers {
 public:
  // `type`: FLOAT32, FLOAT16, BFLOAT16 or FLOAT64.
  InputNumbers(v1::DataType type, uint64_t seed) : type_(type), seed_(seed) {}

  v1::DataType type() const { return type_; }

  // Element `index` (row-major) of a tensor, as the server reads it.
  double At(Input input, int64_t index) const;

  // Elements [0, count) as they travel.
  std::string Bytes(Input input, int64_t count) const;

 private:
  v1::DataType type_;
  uint64_t seed_;
};

// A kind of call: everything about it that does not change from call to call.
struct CallKind {
  std::string name;    // FormatShape(), or "health".
  std::string method;  // "/attention.v1.AttentionService/ComputeAttention"
  CallShape shape;     // Of ComputeAttention.
  // The serialized message, in one slice that every call shares.
  grpc::ByteBuffer request;
  double weight = 1;

  bool computes() const { return name != "health"; }
};

struct Workload {
  InputNumbers numbers;
  v1::Causal causal;
  std::vector<CallKind> kinds;
};

// Calls of ComputeAttention with these shapes. INVALID_ARGUMENT if a request
// would be larger than a message can be (2 GiB).
absl::StatusOr<Workload> MakeWorkload(const std::vector<WeightedShape>& mix,
                                      v1::DataType type, v1::Causal causal,
                                      uint64_t seed);

// Calls of grpc.health.v1.Health/Check for the whole server.
Workload MakeHealthWorkload();

}  // namespace attention::cli

#endif  // ATTENTION_CLIENT_CPP_CLI_BENCH_WORKLOAD_H_
