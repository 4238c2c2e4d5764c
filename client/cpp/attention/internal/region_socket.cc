#include "attention/internal/region_socket.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"

namespace attention::internal {
namespace {

// A server answers within microseconds; one that does not is stopped.
constexpr absl::Duration kLongestAnswer = absl::Seconds(1);
// Questions without an answer. There is room for more in either direction of a
// Unix socket with the system's buffers.
constexpr size_t kMostAsked = 100;

absl::Status Gone() {
  return absl::UnavailableError("the server's shared memory is gone");
}

absl::Status NoTime() {
  return absl::DeadlineExceededError("no time to share memory");
}

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
  Descriptor socket(
      ::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (connect(socket.get(), reinterpret_cast<const sockaddr*>(&name),
              sizeof(name)) == 0) {
    socket_ = std::move(socket);
  }
}

bool RegionSocket::connected() const {
  if (!socket_.valid() || broken_) return false;
  pollfd look{socket_.get(), POLLRDHUP, 0};
  return poll(&look, 1, 0) == 0;
}

// For good, and at once for the server as well.
void RegionSocket::Break() {
  broken_ = true;
  shutdown(socket_.get(), SHUT_RDWR);
  asked_.clear();
}

bool RegionSocket::Send(const v1::SharedMemoryRequest& request,
                        int descriptor) {
  if (broken_ || !socket_.valid()) return false;
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
  if (asked_.size() >= kMostAsked ||
      sendmsg(socket_.get(), &message, MSG_NOSIGNAL) < 0) {
    Break();
    return false;
  }
  asked_.push_back({absl::Now()});
  return true;
}

// False: none has come. The answer is that to the first of asked_.
bool RegionSocket::TakeAnswer(v1::SharedMemoryResponse& response) {
  if (broken_ || asked_.empty()) return false;
  std::array<char, 8192> answer;
  const ssize_t size = recv(socket_.get(), answer.data(), answer.size(), 0);
  if (size < 0 && (errno == EAGAIN || errno == EINTR)) {
    if (absl::Now() - asked_.front().at >= kLongestAnswer) Break();
    return false;
  }
  if (size <= 0 ||
      !response.ParseFromArray(answer.data(), static_cast<int>(size))) {
    Break();
    return false;
  }
  return true;
}

// All that have come, up to the one that is waited for, if it has: true then.
bool RegionSocket::TakeAnswers(v1::SharedMemoryResponse* response) {
  v1::SharedMemoryResponse answer;
  while (TakeAnswer(answer)) {
    const Asked asked = asked_.front();
    asked_.pop_front();
    if (asked.waits) {
      *response = std::move(answer);
      return true;
    }
    if (asked.given_up && answer.code() == 0) TellDrop(answer.region());
  }
  return false;
}

void RegionSocket::TellDrop(const std::string& region) {
  v1::SharedMemoryRequest request;
  request.mutable_drop_region()->set_region(region);
  static_cast<void>(Send(request, -1));
}

void RegionSocket::TellDrops() {
  while (true) {
    std::vector<std::string> regions;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      regions.swap(dropped_);
    }
    if (regions.empty()) return;
    for (const std::string& region : regions) {
      static_cast<void>(TakeAnswers(nullptr));
      TellDrop(region);
    }
  }
}

// Whoever has the turn tells them once more when it has given it back.
void RegionSocket::TryTellDrops() {
  while (true) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (dropped_.empty()) return;
    }
    const Turns::Turn turn = turns_.Try();
    if (!turn) return;
    TellDrops();
  }
}

void RegionSocket::Drop(std::string region) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    dropped_.push_back(std::move(region));
  }
  TryTellDrops();
}

absl::StatusOr<std::string> RegionSocket::Register(int memory,
                                                   const std::string& token,
                                                   const Patience& patience) {
  const absl::StatusOr<v1::SharedMemoryResponse> response =
      Ask(memory, token, patience);
  TryTellDrops();
  if (!response.ok()) return response.status();
  if (response->code() != 0) {
    return absl::Status(static_cast<absl::StatusCode>(response->code()),
                        response->message());
  }
  return response->region();
}

absl::StatusOr<v1::SharedMemoryResponse> RegionSocket::Ask(
    int memory, const std::string& token, const Patience& patience) {
  const Turns::Turn turn = turns_.Take(patience);
  if (!turn) return NoTime();
  static_cast<void>(TakeAnswers(nullptr));
  TellDrops();
  v1::SharedMemoryRequest request;
  request.mutable_register_region()->set_token(token);
  if (!Send(request, memory)) return Gone();
  asked_.back().waits = true;
  v1::SharedMemoryResponse response;
  while (!TakeAnswers(&response)) {
    if (broken_) return Gone();
    if (patience.IsOver()) {
      for (Asked& asked : asked_) {
        asked.given_up |= std::exchange(asked.waits, false);
      }
      return NoTime();
    }
    const absl::Duration left =
        std::clamp(patience.deadline - absl::Now(), absl::ZeroDuration(),
                   absl::FromChrono(Patience::kLook));
    pollfd look{socket_.get(), POLLIN, 0};
    poll(&look, 1, static_cast<int>(absl::ToInt64Milliseconds(left)) + 1);
  }
  return response;
}

}  // namespace attention::internal
