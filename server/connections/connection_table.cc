#include "server/connections/connection_table.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/descriptor.h"
#include "server/connections/percent.h"

namespace attention::server {
namespace {

// Entries that Prune() looks at without letting others in.
constexpr int kPrunePart = 256;

// 0 if there is no such descriptor.
ino_t InodeOf(int fd) {
  struct stat file;
  return fstat(fd, &file) == 0 ? file.st_ino : 0;
}

std::string IPv4Name(const void* ip, in_port_t port) {
  char text[INET_ADDRSTRLEN];
  inet_ntop(AF_INET, ip, text, sizeof(text));
  return absl::StrCat("ipv4:", text, ":", ntohs(port));
}

std::string IPv6Name(const sockaddr_in6& address) {
  if (IN6_IS_ADDR_V4MAPPED(&address.sin6_addr)) {
    return IPv4Name(&address.sin6_addr.s6_addr[12], address.sin6_port);
  }
  char text[INET6_ADDRSTRLEN];
  inet_ntop(AF_INET6, &address.sin6_addr, text, sizeof(text));
  const std::string zone = address.sin6_scope_id == 0
                               ? ""
                               : absl::StrCat("%", address.sin6_scope_id);
  return absl::StrCat("ipv6:[", text, zone, "]:", ntohs(address.sin6_port));
}

// gRPC's name of the peer, but not percent-encoded; empty for a Unix socket.
// Nothing if there is no peer any more.
std::optional<std::string> PeerOfSocket(int fd) {
  sockaddr_storage storage{};
  socklen_t length = sizeof(storage);
  if (getpeername(fd, reinterpret_cast<sockaddr*>(&storage), &length) != 0) {
    return std::nullopt;
  }
  switch (storage.ss_family) {
    case AF_INET: {
      const auto* address = reinterpret_cast<const sockaddr_in*>(&storage);
      return IPv4Name(&address->sin_addr, address->sin_port);
    }
    case AF_INET6:
      return IPv6Name(*reinterpret_cast<const sockaddr_in6*>(&storage));
    default:
      return "";
  }
}

}  // namespace

bool ConnectionTable::Add(int fd) {
  std::optional<std::string> peer = PeerOfSocket(fd);
  const ino_t inode = InodeOf(fd);
  if (!peer.has_value() || inode == 0) return false;
  std::lock_guard<std::mutex> lock(mutex_);
  if (fd >= entries_.size()) entries_.resize(fd + 1);
  // The number is free for `fd` only because its last socket was closed.
  Forget(fd);
  if (!peer->empty()) by_peer_[*peer] = fd;
  entries_[fd] = {inode, *std::move(peer), Traffic(absl::Now())};
  ++open_;
  return true;
}

void ConnectionTable::Forget(int fd) {
  Entry& entry = entries_[fd];
  if (entry.inode == 0) return;
  const auto found = by_peer_.find(entry.peer);
  if (found != by_peer_.end() && found->second == fd) by_peer_.erase(found);
  entry = Entry();
  --open_;
}

void ConnectionTable::Prune() {
  for (int begin = 0; begin >= 0;) begin = PrunePart(begin);
}

int ConnectionTable::PrunePart(int begin) {
  std::lock_guard<std::mutex> lock(mutex_);
  const int size = static_cast<int>(entries_.size());
  const int end = std::min(size, begin + kPrunePart);
  for (int fd = begin; fd < end; ++fd) {
    const ino_t inode = entries_[fd].inode;
    if (inode != 0 && InodeOf(fd) != inode) Forget(fd);
  }
  return end < size ? end : -1;
}

std::optional<ConnectionId> ConnectionTable::Find(
    absl::string_view peer) const {
  const std::string name = PercentDecoded(peer);
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = by_peer_.find(name);
  if (found == by_peer_.end()) return std::nullopt;
  return ConnectionId{found->second, entries_[found->second].inode};
}

std::optional<int64_t> ConnectionTable::BytesReceived(
    absl::string_view peer) const {
  const std::optional<ConnectionId> connection = Find(peer);
  return connection ? BytesReceived(*connection) : std::nullopt;
}

std::optional<int64_t> ConnectionTable::BytesReceived(
    const ConnectionId& connection) {
  const std::optional<Delivery> delivery = DeliveryOn(connection);
  if (!delivery) return std::nullopt;
  return delivery->bytes_received;
}

std::optional<ConnectionTable::Delivery> ConnectionTable::DeliveryOn(
    const ConnectionId& connection) {
  tcp_info info{};
  socklen_t length = sizeof(info);
  if (getsockopt(connection.fd, IPPROTO_TCP, TCP_INFO, &info, &length) != 0 ||
      length < offsetof(tcp_info, tcpi_notsent_bytes) +
                   sizeof(info.tcpi_notsent_bytes) ||
      // Inodes are not used again: what is this socket now was it then.
      InodeOf(connection.fd) != connection.inode) {
    return std::nullopt;
  }
  return Delivery{static_cast<int64_t>(info.tcpi_bytes_received),
                  info.tcpi_unacked == 0 && info.tcpi_notsent_bytes == 0};
}

int64_t ConnectionTable::BytesUnread(const ConnectionId& connection) {
  int bytes = 0;
  return ioctl(connection.fd, SIOCINQ, &bytes) == 0 ? bytes : 0;
}

ConnectionTable::Entry* ConnectionTable::FindEntry(
    const ConnectionId& connection) {
  return const_cast<Entry*>(std::as_const(*this).FindEntry(connection));
}

const ConnectionTable::Entry* ConnectionTable::FindEntry(
    const ConnectionId& connection) const {
  if (connection.fd < 0 || connection.fd >= entries_.size()) return nullptr;
  const Entry& entry = entries_[connection.fd];
  return entry.inode == connection.inode && entry.inode != 0 ? &entry : nullptr;
}

int ConnectionTable::List(int begin, int most,
                          std::vector<ConnectionId>& found) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const int size = static_cast<int>(entries_.size());
  for (int fd = begin; fd < size; ++fd) {
    const Entry& entry = entries_[fd];
    if (entry.inode == 0 || entry.peer.empty() || entry.cut) continue;
    if (most-- == 0) return fd;
    found.push_back({fd, entry.inode});
  }
  return 0;
}

std::string ConnectionTable::PeerOf(const ConnectionId& connection) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const Entry* const entry = FindEntry(connection);
  return entry == nullptr ? "" : entry->peer;
}

bool ConnectionTable::Cut(const ConnectionId& connection) {
  std::lock_guard<std::mutex> lock(mutex_);
  Entry* const entry = FindEntry(connection);
  if (entry == nullptr || entry->cut) return false;
  // gRPC may close the number at any time, and others get it: a descriptor of
  // our own stays what it is.
  const Descriptor own(fcntl(connection.fd, F_DUPFD_CLOEXEC, 0));
  if (!own.valid() || InodeOf(own.get()) != connection.inode) return false;
  // shutdown() alone would leave what the system has received to be read.
  sockaddr nobody{};
  nobody.sa_family = AF_UNSPEC;
  if (connect(own.get(), &nobody, sizeof(nobody)) != 0) {
    shutdown(own.get(), SHUT_RDWR);
  }
  entry->cut = true;
  return true;
}

}  // namespace attention::server
