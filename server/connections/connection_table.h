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
#include "server/connections/traffic.h"

namespace attention::server {

// A connection, once it was open: no other one is ever equal to it.
struct ConnectionId {
  int fd = -1;
  ino_t inode = 0;

  bool operator==(const ConnectionId&) const = default;
};

// Thread-safe. Its memory grows with the largest number of a descriptor, which
// RLIMIT_NOFILE bounds: about 400 bytes each.
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
  // The same by its id; of them, what the process has not read yet.
  static std::optional<int64_t> BytesReceived(const ConnectionId& connection);
  static int64_t BytesUnread(const ConnectionId& connection);

  // The bytes that were received, and whether the peer's system has all that
  // was sent to it.
  struct Delivery {
    int64_t bytes_received = 0;
    bool all_delivered = false;
  };
  static std::optional<Delivery> DeliveryOn(const ConnectionId& connection);

  // The open connection of a peer, as above; nothing if it has none that is
  // TCP.
  std::optional<ConnectionId> Find(absl::string_view peer) const;

  // Calls `visit` with the account of a connection, under a lock: it must be
  // short. Nothing if the connection is over.
  template <typename Visit>
  void VisitTraffic(const ConnectionId& connection, const Visit& visit) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (Entry* const entry = FindEntry(connection)) visit(entry->traffic);
  }

  // Adds up to `most` open TCP connections to `found`, from descriptor `begin`
  // on, but for those that were cut. Returns where to go on; 0 once it has seen
  // all.
  int List(int begin, int most, std::vector<ConnectionId>& found) const;

  // "ipv4:127.0.0.1:54321", not percent-encoded; empty if the connection is
  // over.
  std::string PeerOf(const ConnectionId& connection) const;

  // Resets a TCP connection, whatever is on its way: what gRPC has not read yet
  // is gone, and its calls end. False if it is over or was cut before.
  bool Cut(const ConnectionId& connection);

 private:
  // Invariants, with mutex_ held: open_ is the number of entries with an inode;
  // by_peer_[p] = f exactly if entries_[f].peer == p and no later entry took p.
  struct Entry {
    ino_t inode = 0;   // 0: no connection.
    std::string peer;  // Empty for a Unix socket.
    Traffic traffic;
    bool cut = false;
  };

  // Need mutex_.
  Entry* FindEntry(const ConnectionId& connection);
  const Entry* FindEntry(const ConnectionId& connection) const;
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
