// Where clients on this machine register memory that they share: a Unix socket
// that takes the datagrams that attention.proto specifies
// (SharedMemoryRequest).
#ifndef ATTENTION_SERVER_SHARED_MEMORY_REGION_SOCKET_H_
#define ATTENTION_SERVER_SHARED_MEMORY_REGION_SOCKET_H_

#include <spdlog/logger.h>
#include <sys/types.h>

#include <cstdint>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "server/auth/authenticator.h"
#include "server/log_limiter.h"
#include "server/shared_memory/region_table.h"

namespace attention::server {

struct RegionSocketSettings {
  std::string address = {};  // "unix:/path"
  // Permissions of the socket's file, which decide who may connect.
  std::optional<mode_t> mode = {};
  // Bytes that one connection may share.
  int64_t max_connection_bytes = 0;
  // Connections at once. When one more comes, the one without memory that has
  // said nothing for longest makes room; if all have memory, the new one is
  // closed.
  size_t max_connections = 64;
  // Regions of one connection.
  size_t max_connection_regions = 128;
};

// Has one thread, which serves all connections in turn, a datagram each, and
// waits for none: a peer that does not take its answer is closed. A connection
// holds a descriptor, its regions' ids, and what the settings let it map; all
// of it goes with the connection. Descriptors that clients sent, and sockets
// that may hold some, are closed by a Closer: that may last for as long as a
// client likes. While it is far behind, nothing is registered. Thread-safe.
class RegionSocket {
 public:
  // Serves as soon as it returns. What is referred to must outlive it;
  // `limiter` bounds the lines that clients cause.
  //
  // Errors: those of Listener::Open().
  static absl::StatusOr<std::unique_ptr<RegionSocket>> Start(
      const RegionSocketSettings& settings, RegionTable& regions,
      const Authenticator& authenticator, spdlog::logger& log,
      LogLimiter& limiter);

  // Closes every connection, forgets their regions; within seconds, whatever
  // clients sent.
  ~RegionSocket();
  RegionSocket(const RegionSocket&) = delete;
  RegionSocket& operator=(const RegionSocket&) = delete;

  // Removes the socket's file, soon; connections go on.
  void StopListening();

  // Open now.
  int64_t connections() const;

 private:
  class Loop;

  explicit RegionSocket(std::shared_ptr<Loop> loop);

  const std::shared_ptr<Loop> loop_;
  const std::future<void> ended_;
  std::thread thread_;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_SHARED_MEMORY_REGION_SOCKET_H_
