// Bytes to a server and back, with nothing but gRPC: what the transfer alone
// takes.
#ifndef ATTENTION_BENCHMARKS_RPC_BARE_CALLS_H_
#define ATTENTION_BENCHMARKS_RPC_BARE_CALLS_H_

#include <grpcpp/channel.h>
#include <grpcpp/support/byte_buffer.h>

#include <cstddef>
#include <memory>
#include <string>

#include "benchmarks/rpc/workload.h"

namespace attention::benchmarks {

// Serves until the process is killed; prints "listening on ADDRESS". A call's
// answer is as long as its header says, or what came.
void RunBareServer();

// Sends the tensors of a request from where they are, as one message.
class BareClient {
 public:
  // `answer_bytes` 0: the server sends back what it gets.
  BareClient(const std::string& address, const ComputeRequest& request,
             size_t answer_bytes);
  void Call() const;

 private:
  const std::shared_ptr<grpc::Channel> channel_;
  const grpc::ByteBuffer message_;
  const size_t answer_bytes_;
};

}  // namespace attention::benchmarks

#endif  // ATTENTION_BENCHMARKS_RPC_BARE_CALLS_H_
