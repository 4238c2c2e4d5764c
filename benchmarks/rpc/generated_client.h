// A call as one makes it with protobuf's generated classes: what everyone's
// first client does.
#ifndef ATTENTION_BENCHMARKS_RPC_GENERATED_CLIENT_H_
#define ATTENTION_BENCHMARKS_RPC_GENERATED_CLIENT_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "attention/client.h"
#include "attention/v1/attention.grpc.pb.h"

namespace attention::benchmarks {

class GeneratedClient {
 public:
  explicit GeneratedClient(const std::string& address);
  // Copies the tensors into a message and the output out of one.
  absl::StatusOr<Tensor> Call(const ComputeRequest& request) const;

 private:
  const std::unique_ptr<v1::AttentionService::Stub> stub_;
};

}  // namespace attention::benchmarks

#endif  // ATTENTION_BENCHMARKS_RPC_GENERATED_CLIENT_H_
