// Bytes to a server and back over a stream socket, with nothing in between:
// the most that any protocol can do.
#ifndef ATTENTION_BENCHMARKS_RPC_PLAIN_SOCKETS_H_
#define ATTENTION_BENCHMARKS_RPC_PLAIN_SOCKETS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "benchmarks/rpc/workload.h"

namespace attention::benchmarks {

// What a client sends first; then the request's bytes, which are answered by
// as many as it says.
struct SocketHeader {
  uint64_t request_bytes;
  uint64_t answer_bytes;
};

// Serves each connection on a thread of its own, for as long as the process
// lives. Returns the address, as gRPC writes it: on loopback, a free port.
absl::StatusOr<std::string> ServeTcpSockets();
absl::StatusOr<std::string> ServeUnixSockets(const std::string& path);

// One connection.
class SocketClient {
 public:
  static absl::StatusOr<std::unique_ptr<SocketClient>> Connect(
      const std::string& address);
  ~SocketClient();
  SocketClient(const SocketClient&) = delete;
  SocketClient& operator=(const SocketClient&) = delete;

  // Sends the tensors of a request from where they are; as many bytes come
  // back as its answer has.
  absl::Status Call(const Workload& workload);

 private:
  explicit SocketClient(int socket) : socket_(socket) {}
  const int socket_;
  std::vector<char> answer_;
};

}  // namespace attention::benchmarks

#endif  // ATTENTION_BENCHMARKS_RPC_PLAIN_SOCKETS_H_
