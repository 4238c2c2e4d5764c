#include "benchmarks/rpc/plain_sockets.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <span>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace attention::benchmarks {
namespace {

// A broken client must not make the server take all memory.
constexpr uint64_t kMaxBytes = uint64_t{1} << 30;

// All of `parts`, however often it takes; false if the connection is lost.
bool SendAll(int socket, std::span<iovec> parts) {
  while (!parts.empty()) {
    msghdr message = {};
    message.msg_iov = parts.data();
    message.msg_iovlen = parts.size();
    ssize_t sent = sendmsg(socket, &message, MSG_NOSIGNAL);
    if (sent <= 0) return false;
    while (!parts.empty() && sent >= static_cast<ssize_t>(parts[0].iov_len)) {
      sent -= static_cast<ssize_t>(parts[0].iov_len);
      parts = parts.subspan(1);
    }
    if (parts.empty()) return true;
    parts[0].iov_base = static_cast<char*>(parts[0].iov_base) + sent;
    parts[0].iov_len -= sent;
  }
  return true;
}

bool ReceiveAll(int socket, std::span<char> bytes) {
  while (!bytes.empty()) {
    const ssize_t got = recv(socket, bytes.data(), bytes.size(), 0);
    if (got <= 0) return false;
    bytes = bytes.subspan(got);
  }
  return true;
}

iovec PartOf(const void* data, size_t bytes) {
  return {const_cast<void*>(data), bytes};
}

void ServeConnection(int socket) {
  std::vector<char> request, answer;
  SocketHeader header;
  while (
      ReceiveAll(socket, {reinterpret_cast<char*>(&header), sizeof header}) &&
      header.request_bytes <= kMaxBytes && header.answer_bytes <= kMaxBytes) {
    request.resize(header.request_bytes);
    answer.resize(header.answer_bytes);
    if (!ReceiveAll(socket, request)) break;
    std::array<iovec, 1> parts = {PartOf(answer.data(), answer.size())};
    if (!SendAll(socket, parts)) break;
  }
  close(socket);
}

void SendAtOnce(int socket) {
  const int on = 1;
  setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

absl::Status Listen(int socket, const sockaddr* address, socklen_t length) {
  if (socket < 0 || bind(socket, address, length) != 0 ||
      listen(socket, SOMAXCONN) != 0) {
    return absl::ErrnoToStatus(errno, "cannot listen");
  }
  std::thread([socket] {
    while (true) {
      const int connection = accept(socket, nullptr, nullptr);
      if (connection < 0) return;
      SendAtOnce(connection);
      std::thread(ServeConnection, connection).detach();
    }
  }).detach();
  return absl::OkStatus();
}

sockaddr_in Loopback(int port) {
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(port);
  return address;
}

absl::StatusOr<sockaddr_un> UnixAddress(absl::string_view path) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": too long for a Unix socket"));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

// A socket that is connected, or -1.
int ConnectTo(int socket, const sockaddr* address, socklen_t length) {
  if (socket >= 0 && connect(socket, address, length) == 0) {
    SendAtOnce(socket);
    return socket;
  }
  if (socket >= 0) close(socket);
  return -1;
}

}  // namespace

absl::StatusOr<std::string> ServeTcpSockets() {
  const int socket = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = Loopback(0);
  auto* const generic = reinterpret_cast<sockaddr*>(&address);
  const absl::Status status = Listen(socket, generic, sizeof address);
  if (!status.ok()) return status;
  socklen_t length = sizeof address;
  getsockname(socket, generic, &length);
  return absl::StrCat("127.0.0.1:", ntohs(address.sin_port));
}

absl::StatusOr<std::string> ServeUnixSockets(const std::string& path) {
  const absl::StatusOr<sockaddr_un> address = UnixAddress(path);
  if (!address.ok()) return address.status();
  const absl::Status status =
      Listen(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0),
             reinterpret_cast<const sockaddr*>(&*address), sizeof *address);
  if (!status.ok()) return status;
  return absl::StrCat("unix:", path);
}

absl::StatusOr<std::unique_ptr<SocketClient>> SocketClient::Connect(
    const std::string& address) {
  absl::string_view name = address;
  int socket = -1;
  if (absl::ConsumePrefix(&name, "unix:")) {
    const absl::StatusOr<sockaddr_un> path = UnixAddress(name);
    if (!path.ok()) return path.status();
    socket = ConnectTo(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0),
                       reinterpret_cast<const sockaddr*>(&*path), sizeof *path);
  } else {
    int port = 0;
    if (!absl::ConsumePrefix(&name, "127.0.0.1:") ||
        !absl::SimpleAtoi(name, &port)) {
      return absl::InvalidArgumentError(
          absl::StrCat("address: got ", address, ", wanted 127.0.0.1:PORT"));
    }
    const sockaddr_in loopback = Loopback(port);
    socket = ConnectTo(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0),
                       reinterpret_cast<const sockaddr*>(&loopback),
                       sizeof loopback);
  }
  if (socket < 0) return absl::UnavailableError("cannot connect");
  return std::unique_ptr<SocketClient>(new SocketClient(socket));
}

SocketClient::~SocketClient() { close(socket_); }

absl::Status SocketClient::Call(const Workload& workload) {
  const ComputeRequest& request = workload.request();
  const std::span<const std::byte> query = request.query.bytes;
  const std::span<const std::byte> key = request.key.bytes;
  const std::span<const std::byte> value = request.value.bytes;
  const SocketHeader header = {query.size() + key.size() + value.size(),
                               workload.output_bytes()};
  std::array<iovec, 4> parts = {
      PartOf(&header, sizeof header), PartOf(query.data(), query.size()),
      PartOf(key.data(), key.size()), PartOf(value.data(), value.size())};
  answer_.resize(header.answer_bytes);
  if (SendAll(socket_, parts) && ReceiveAll(socket_, answer_)) {
    return absl::OkStatus();
  }
  return absl::UnavailableError("the connection was lost");
}

}  // namespace attention::benchmarks
