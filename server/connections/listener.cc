#include "server/connections/listener.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "server/connections/loopback.h"
#include "server/connections/percent.h"

namespace attention::server {
namespace {

// Connections that may wait to be accepted; the kernel cuts it down to
// net.core.somaxconn. At the limit of connections new ones wait there.
constexpr int kBacklog = 4096;
// A free port of the first address may be in use on another.
constexpr int kPortAttempts = 16;

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t length = 0;

  sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }
  const sockaddr* get() const {
    return reinterpret_cast<const sockaddr*>(&storage);
  }
  int family() const { return storage.ss_family; }
  in_port_t& port() {
    return family() == AF_INET6
               ? reinterpret_cast<sockaddr_in6*>(&storage)->sin6_port
               : reinterpret_cast<sockaddr_in*>(&storage)->sin_port;
  }
  bool operator==(const SocketAddress& other) const {
    return length == other.length &&
           std::memcmp(&storage, &other.storage, length) == 0;
  }
};

absl::Status CannotListen(const std::string& address,
                          absl::string_view reason) {
  return absl::UnavailableError(
      absl::StrCat("cannot listen on \"", address, "\": ", reason));
}

// Names may ask the network. UNAVAILABLE if there are none.
absl::StatusOr<std::vector<SocketAddress>> Resolve(
    const std::string& host_and_port) {
  const size_t colon = host_and_port.rfind(':');
  absl::string_view host = absl::string_view(host_and_port).substr(0, colon);
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  if (absl::ConsumePrefix(&host, "[") && absl::ConsumeSuffix(&host, "]")) {
    hints.ai_flags |= AI_NUMERICHOST;
  }
  addrinfo* found = nullptr;
  std::vector<SocketAddress> addresses;
  const int error =
      getaddrinfo(std::string(host).c_str(), host_and_port.c_str() + colon + 1,
                  &hints, &found);
  if (error != 0) return CannotListen(host_and_port, gai_strerror(error));
  for (const addrinfo* info = found; info != nullptr; info = info->ai_next) {
    SocketAddress address;
    std::memcpy(&address.storage, info->ai_addr, info->ai_addrlen);
    address.length = info->ai_addrlen;
    // A name may stand in /etc/hosts twice.
    if (std::find(addresses.begin(), addresses.end(), address) ==
        addresses.end()) {
      addresses.push_back(address);
    }
  }
  freeaddrinfo(found);
  return addresses;
}

bool IsWildcard(const SocketAddress& address) {
  if (address.family() == AF_INET) {
    return reinterpret_cast<const sockaddr_in*>(&address.storage)
               ->sin_addr.s_addr == htonl(INADDR_ANY);
  }
  return IN6_IS_ADDR_UNSPECIFIED(
      &reinterpret_cast<const sockaddr_in6*>(&address.storage)->sin6_addr);
}

// Every address of both families, or of IPv4 where there is no IPv6.
SocketAddress Wildcard(in_port_t port) {
  SocketAddress address;
  address.storage.ss_family =
      Descriptor(socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0)).valid()
          ? AF_INET6
          : AF_INET;
  address.length =
      address.family() == AF_INET6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in);
  address.port() = port;
  return address;
}

bool Set(const Descriptor& socket, int level, int name, int value) {
  return setsockopt(socket.get(), level, name, &value, sizeof(value)) == 0;
}

Descriptor NewSocket(int family, int type = SOCK_STREAM) {
  return Descriptor(socket(family, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
}

bool Bind(const Descriptor& socket, const SocketAddress& address) {
  return bind(socket.get(), address.get(), address.length) == 0;
}

bool BindAndListen(const Descriptor& socket, const SocketAddress& address) {
  return Bind(socket, address) && listen(socket.get(), kBacklog) == 0;
}

// Invalid, with errno, if it does not listen. Accepted sockets inherit the
// options, which are those that gRPC gives its own.
Descriptor ListenTcp(const SocketAddress& address) {
  Descriptor socket = NewSocket(address.family());
  if (!socket.valid() || !Set(socket, SOL_SOCKET, SO_REUSEADDR, 1) ||
      !Set(socket, IPPROTO_TCP, TCP_NODELAY, 1) ||
      !Set(socket, IPPROTO_TCP, TCP_USER_TIMEOUT, kPeerTimeoutMs) ||
      (address.family() == AF_INET6 &&
       !Set(socket, IPPROTO_IPV6, IPV6_V6ONLY, !IsWildcard(address))) ||
      !BindAndListen(socket, address)) {
    const int error = errno;
    socket = Descriptor();
    errno = error;
  }
  return socket;
}

// In the network's order, as in addresses.
in_port_t PortOf(const Descriptor& socket) {
  SocketAddress address;
  address.length = sizeof(address.storage);
  if (getsockname(socket.get(), address.get(), &address.length) != 0) return 0;
  return address.port();
}

// Nothing if one address is in use or none could be had; `error` is then why.
// Port 0 becomes that of the first socket.
std::vector<Descriptor> ListenOnAll(std::vector<SocketAddress> addresses,
                                    int& error) {
  std::vector<Descriptor> sockets;
  for (SocketAddress& address : addresses) {
    if (address.port() == 0 && !sockets.empty()) {
      address.port() = PortOf(sockets.front());
    }
    Descriptor socket = ListenTcp(address);
    if (socket.valid()) {
      sockets.push_back(std::move(socket));
      continue;
    }
    error = errno;
    if (error == EADDRINUSE) return {};
  }
  return sockets;
}

std::string TcpReason(int error) {
  switch (error) {
    case EADDRINUSE:
      return "in use";
    case EADDRNOTAVAIL:
      return "not an address of this machine";
    case EACCES:
      return "not permitted: low ports need the capability "
             "CAP_NET_BIND_SERVICE";
    default:
      return std::strerror(error);
  }
}

SocketAddress UnixAddress(absl::string_view name, bool abstract) {
  SocketAddress address;
  auto* unix_address = reinterpret_cast<sockaddr_un*>(&address.storage);
  unix_address->sun_family = AF_UNIX;
  std::memcpy(unix_address->sun_path + (abstract ? 1 : 0), name.data(),
              name.size());
  // A path ends with a zero, an abstract name begins with one.
  address.length = offsetof(sockaddr_un, sun_path) + name.size() + 1;
  return address;
}

// Whether there is a socket file that nobody serves. Whoever has a full queue,
// or forbids to connect, is there.
bool IsStale(const SocketAddress& address, const std::string& path) {
  struct stat file;
  if (lstat(path.c_str(), &file) != 0 || !S_ISSOCK(file.st_mode)) return false;
  const Descriptor probe = NewSocket(AF_UNIX);
  return probe.valid() &&
         connect(probe.get(), address.get(), address.length) != 0 &&
         errno == ECONNREFUSED;
}

std::string UnixReason(int error, const std::string& path) {
  const size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos
                                 ? "."
                                 : path.substr(0, std::max<size_t>(slash, 1));
  struct stat file;
  switch (error) {
    case EADDRINUSE:
      return lstat(path.c_str(), &file) == 0 && !S_ISSOCK(file.st_mode)
                 ? "a file that is no socket has this name"
                 : "another process serves it";
    case ENOENT:
      return absl::StrCat("there is no folder ", folder);
    case ENOTDIR:
      return absl::StrCat(folder, " is no folder");
    case EACCES:
      return absl::StrCat("not permitted to create files in ", folder);
    default:
      return std::strerror(error);
  }
}

}  // namespace

absl::StatusOr<Listener> Listener::Open(const std::string& address,
                                        const ListenSettings& settings) {
  Listener listener;
  listener.address_ = address;
  absl::string_view rest = address;
  absl::Status status;
  listener.is_unix_ = true;
  if (absl::ConsumePrefix(&rest, "unix-abstract:")) {
    status = listener.OpenUnixAbstract(PercentDecoded(rest));
  } else if (absl::ConsumePrefix(&rest, "unix:")) {
    status = listener.OpenUnixPath(PercentDecoded(rest), settings);
  } else {
    listener.is_unix_ = false;
    status = listener.OpenTcp(settings.loopback_only);
  }
  if (!status.ok()) {
    return absl::Status(status.code(),
                        absl::StrCat(settings.flag, ": ", status.message()));
  }
  return listener;
}

Listener::SocketFile::~SocketFile() {
  struct stat file;
  if (lstat(path.c_str(), &file) == 0 && file.st_dev == device &&
      file.st_ino == inode) {
    unlink(path.c_str());
  }
}

absl::Status Listener::OpenTcp(bool loopback_only) {
  absl::StatusOr<std::vector<SocketAddress>> addresses = Resolve(address_);
  if (!addresses.ok()) return addresses.status();
  const auto is_loopback = [](const SocketAddress& one) {
    return IsLoopback(*one.get());
  };
  if (loopback_only &&
      !std::all_of(addresses->begin(), addresses->end(), is_loopback)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "got \"", address_,
        "\", which other machines may reach, without encryption: give "
        "--tls-cert and --tls-key, or allow it with --allow-plaintext"));
  }
  const auto wildcard =
      std::find_if(addresses->begin(), addresses->end(), IsWildcard);
  if (wildcard != addresses->end()) *addresses = {Wildcard(wildcard->port())};
  int error = 0;
  for (int i = 0; i < kPortAttempts && sockets_.empty(); ++i) {
    sockets_ = ListenOnAll(*addresses, error);
    if (addresses->size() < 2 || addresses->front().port() != 0) break;
  }
  if (sockets_.empty()) return CannotListen(address_, TcpReason(error));
  address_ = absl::StrCat(address_.substr(0, address_.rfind(':')), ":",
                          ntohs(PortOf(sockets_.front())));
  return absl::OkStatus();
}

absl::Status Listener::OpenUnixPath(const std::string& path,
                                    const ListenSettings& settings) {
  const SocketAddress address = UnixAddress(path, /*abstract=*/false);
  if (IsStale(address, path) && unlink(path.c_str()) != 0) {
    return CannotListen(address_, absl::StrCat("nobody serves it, but it "
                                               "cannot be replaced: ",
                                               std::strerror(errno)));
  }
  Descriptor socket = NewSocket(AF_UNIX, settings.unix_type);
  if (!socket.valid() || !Bind(socket, address)) {
    return CannotListen(address_, UnixReason(errno, path));
  }
  struct stat file;
  if (lstat(path.c_str(), &file) == 0) {
    file_.reset(new SocketFile{path, file.st_dev, file.st_ino});
  }
  // Nobody can connect before it listens, so nobody is too early.
  const std::optional<mode_t> mode = settings.unix_mode;
  if ((mode && chmod(path.c_str(), *mode) != 0) ||
      listen(socket.get(), kBacklog) != 0) {
    return CannotListen(address_, std::strerror(errno));
  }
  sockets_.push_back(std::move(socket));
  return absl::OkStatus();
}

absl::Status Listener::OpenUnixAbstract(const std::string& name) {
  Descriptor socket = NewSocket(AF_UNIX);
  if (!socket.valid() ||
      !BindAndListen(socket, UnixAddress(name, /*abstract=*/true))) {
    return CannotListen(address_, TcpReason(errno));
  }
  sockets_.push_back(std::move(socket));
  return absl::OkStatus();
}

}  // namespace attention::server
