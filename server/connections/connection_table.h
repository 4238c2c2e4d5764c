// Which connections are open, and what came in over each.
//
// gRPC owns the descriptors and tells nobody when it closes one. A descriptor
// is therefore remembered by its number and its socket's inode: once the number
// is closed, or belongs to something else, the connection is over. A second
// descriptor of the same socket would tell more, but doubles what an open
// connection costs.
#ifndef ATTENTION_SERVER_CONNECTIONS_CONNECTION_TABLE_H_
#define ATTENTION_SERVER_CONNECTIONS_CONNECTION_TABLE_H_

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/strings/string_view.h"

namespace attention::server {

// Thread-safe. Its memory grows with the largest number of a descriptor, which
// RLIMIT_NOFILE bounds: about 100 bytes each.
class ConnectionTable {
 public:
  // Remembers an open socket, before anybody could close it. False, and nothing
  // remembered, if its peer is gone. May throw std::bad_alloc.
  bool Add(int fd);

  // Forgets what has been closed: a system call per open connection (10 000:
  // about 3 ms). Others wait for a small part of it only.
  void Prune();

  // Connections open when Prune() last ran, and those added since.
  int64_t open() const { return open_.load(std::memory_order_relaxed); }

  // Bytes that the kernel has received over an open TCP connection, read or
  // not. `peer` is what grpc::ServerContextBase::peer() says:
  // "ipv4:127.0.0.1:54321" or "ipv6:%5B::1%5D:54321". Nothing for other
  // sockets, for a peer that is unknown, and for one that has gone. A peer that
  // connects to two listeners from one port of its own is known by its later
  // connection.
  std::optional<int64_t> BytesReceived(absl::string_view peer) const;

  // The same, and whether the peer's system has all that was sent to it.
  struct Traffic {
    int64_t bytes_received = 0;
    bool all_delivered = false;
  };
  std::optional<Traffic> TrafficWith(absl::string_view peer) const;

 private:
  // Invariants, with mutex_ held: open_ is the number of entries with an inode;
  // by_peer_[p] = f exactly if entries_[f].peer == p and no later entry took p.
  struct Entry {
    ino_t inode = 0;   // 0: no connection.
    std::string peer;  // Empty for a Unix socket.
  };

  // Need mutex_.
  void Forget(int fd);
  // Where the next part begins; -1 at the end.
  int PrunePart(int begin);

  mutable std::mutex mutex_;
  std::vector<Entry> entries_;  // By number of the descriptor.
  std::unordered_map<std::string, int> by_peer_;
  std::atomic<int64_t> open_{0};
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_CONNECTIONS_CONNECTION_TABLE_H_
