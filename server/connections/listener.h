// The listening sockets of one address of Options::listen.
#ifndef ATTENTION_SERVER_CONNECTIONS_LISTENER_H_
#define ATTENTION_SERVER_CONNECTIONS_LISTENER_H_

#include <sys/socket.h>
#include <sys/types.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/descriptor.h"

namespace attention::server {

// How long sent bytes may stay unacknowledged before a connection is given up;
// also how long the answer to a keepalive ping may take.
inline constexpr int kPeerTimeoutMs = 20'000;

struct ListenSettings {
  // TCP on loopback addresses only: what is said can be read on its way.
  bool loopback_only = false;
  // Permissions of a Unix socket's file; without, as the umask has them.
  std::optional<mode_t> unix_mode = {};
  // Type of a Unix socket.
  int unix_type = SOCK_STREAM;
  // What errors begin with.
  absl::string_view flag = "--listen";
};

// Not thread-safe. When it dies it removes the file of a Unix socket, if that
// is still the one that it made, and closes its sockets.
class Listener {
 public:
  // Listens; connections wait in the kernel's queue from then on.
  //
  // - A name listens on every address that it has, all with the same port. One
  //   that the machine lacks (often ::1) is left out if another is there.
  // - "[::]" and "0.0.0.0" both stand for every address of both families.
  // - A port in use is never shared. A Unix socket that somebody serves stays
  //   theirs; one that nobody serves is replaced. %XX in its path is decoded,
  //   as gRPC's clients do.
  //
  // Errors: Unavailable, naming the address and what is wrong with it;
  // FailedPrecondition where others than `settings` allows could connect.
  static absl::StatusOr<Listener> Open(const std::string& address,
                                       const ListenSettings& settings = {});

  // As given to Open(), with the port that it got.
  const std::string& address() const { return address_; }
  // Non-blocking; at least one.
  const std::vector<Descriptor>& sockets() const { return sockets_; }
  bool is_unix() const { return is_unix_; }

  // Stops listening but for the sockets, which are the caller's to close: to
  // close one waits for what is queued there.
  std::vector<Descriptor> Release() && {
    file_ = nullptr;
    return std::move(sockets_);
  }

 private:
  // The file that a Unix socket made; removes it.
  struct SocketFile {
    ~SocketFile();

    std::string path;
    dev_t device = 0;
    ino_t inode = 0;
  };

  Listener() = default;
  // Each for the kind of address_ that it is named for.
  absl::Status OpenTcp(bool loopback_only);
  absl::Status OpenUnixPath(const std::string& path,
                            const ListenSettings& settings);
  absl::Status OpenUnixAbstract(const std::string& name);

  std::string address_;
  bool is_unix_ = false;
  std::vector<Descriptor> sockets_;
  // Removed before its socket is closed: until then nobody else takes the path.
  std::unique_ptr<const SocketFile> file_;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_CONNECTIONS_LISTENER_H_
