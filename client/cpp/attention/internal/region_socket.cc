#include "attention/internal/region_socket.h"

#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace attention::internal {
namespace {

// A server answers within microseconds; one that does not is stopped.
constexpr timeval kPatience = {.tv_sec = 1, .tv_usec = 0};

}  // namespace

RegionSocket::RegionSocket(const std::string& address) {
  absl::string_view path = address;
  sockaddr_un name{};
  if (!absl::ConsumePrefix(&path, "unix:") ||
      path.size() >= sizeof(name.sun_path)) {
    return;
  }
  name.sun_family = AF_UNIX;
  std::memcpy(name.sun_path, path.data(), path.size());
  Descriptor socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  // The time limit for sending is one for connecting, too.
  for (int option : {SO_SNDTIMEO, SO_RCVTIMEO}) {
    setsockopt(socket.get(), SOL_SOCKET, option, &kPatience, sizeof(kPatience));
  }
  if (connect(socket.get(), reinterpret_cast<const sockaddr*>(&name),
              sizeof(name)) == 0) {
    socket_ = std::move(socket);
  }
}

bool RegionSocket::connected() const {
  if (!socket_.valid()) return false;
  char byte;
  // Nothing comes unasked but the end.
  return recv(socket_.get(), &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 &&
         errno == EAGAIN;
}

absl::StatusOr<v1::SharedMemoryResponse> RegionSocket::Ask(
    const v1::SharedMemoryRequest& request, int descriptor) {
  std::string bytes = request.SerializeAsString();
  iovec part{bytes.data(), bytes.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (descriptor >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &descriptor, sizeof(int));
  }
  std::array<char, 8192> answer;
  v1::SharedMemoryResponse response;
  ssize_t size = -1;
  if (sendmsg(socket_.get(), &message, MSG_NOSIGNAL) >= 0) {
    size = recv(socket_.get(), answer.data(), answer.size(), 0);
  }
  if (size <= 0 ||
      !response.ParseFromArray(answer.data(), static_cast<int>(size))) {
    // An answer that comes later would be taken for that to another question.
    socket_ = Descriptor();
    return absl::UnavailableError("the server's shared memory is gone");
  }
  return response;
}

absl::StatusOr<std::string> RegionSocket::Register(int memory,
                                                   const std::string& token) {
  v1::SharedMemoryRequest request;
  request.mutable_register_region()->set_token(token);
  absl::StatusOr<v1::SharedMemoryResponse> response = Ask(request, memory);
  if (!response.ok()) return response.status();
  if (response->code() != 0) {
    return absl::Status(static_cast<absl::StatusCode>(response->code()),
                        response->message());
  }
  return std::move(*response->mutable_region());
}

void RegionSocket::Drop(const std::string& region) {
  if (!socket_.valid()) return;
  v1::SharedMemoryRequest request;
  request.mutable_drop_region()->set_region(region);
  static_cast<void>(Ask(request, -1));
}

}  // namespace attention::internal
