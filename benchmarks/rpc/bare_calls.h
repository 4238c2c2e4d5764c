// Bytes to a server and back, with nothing but gRPC: what the transfer alone
// takes.
#ifndef ATTENTION_BENCHMARKS_RPC_BARE_CALLS_H_
#define ATTENTION_BENCHMARKS_RPC_BARE_CALLS_H_

#include <grpcpp/channel.h>
#include <grpcpp/support/byte_buffer.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "attention/client.h"

namespace attention::benchmarks {

// Serves on a port of loopback and on a Unix socket until the process is
// killed; calls `listening` with each address. A call's answer is as long as
// its header says, or what came.
void RunBareServer(const std::string& unix_path,
                   const std::function<void(const std::string&)>& listening);

// Sends the tensors of a request from where they are, as one message.
class BareClient {
 public:
  // `answer_bytes` 0: the server sends back what it gets.
  BareClient(const std::string& address, const ComputeRequest& request,
             size_t answer_bytes);
  absl::Status Call() const;

 private:
  const std::shared_ptr<grpc::Channel> channel_;
  const grpc::ByteBuffer message_;
  const size_t answer_bytes_;
};

}  // namespace attention::benchmarks

#endif  // ATTENTION_BENCHMARKS_RPC_BARE_CALLS_H_
