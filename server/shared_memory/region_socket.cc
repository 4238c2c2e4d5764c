#include "server/shared_memory/region_socket.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <future>
#include <list>
#include <new>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "attention/v1/attention.pb.h"
#include "base/descriptor.h"
#include "server/connections/listener.h"
#include "server/shared_memory/closer.h"
#include "server/status.h"

namespace attention::server {
namespace {

// Of a request; a token has 4096 at the most.
constexpr size_t kMostBytes = 8192;
// Descriptors of one datagram: all that the kernel lets be sent. It would close
// what does not fit, on this thread.
constexpr size_t kMostDescriptors = 253;
// How long accepting pauses where the system has no descriptors, and between
// two looks at whether enough are closed.
constexpr int kPauseMs = 50;
// How long the end of the thread is waited for.
constexpr std::chrono::seconds kEndPatience{2};

// A datagram and what came with it.
struct Datagram {
  std::array<char, kMostBytes> bytes;
  size_t size = 0;
  bool cut = false;  // it was longer
  std::vector<Descriptor> descriptors;
  bool descriptors_cut = false;  // there were more, or none could be opened
};

// The descriptors of `message`, which are the caller's from here on.
void TakeDescriptors(msghdr& message, std::vector<Descriptor>* descriptors) {
  for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr;
       part = CMSG_NXTHDR(&message, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) {
      continue;
    }
    const size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(part) + i * sizeof(int), sizeof(int));
      descriptors->emplace_back(fd);
    }
  }
}

// Whether it is memory that can be sealed, which is closed at once. What else
// there is may take as long as who made it likes.
bool IsMemory(const Descriptor& descriptor) {
  return fcntl(descriptor.get(), F_GET_SEALS) >= 0;
}

enum class Received : uint8_t { kDatagram, kNothing, kEnd };

Received Receive(const Descriptor& socket, Datagram& datagram) {
  iovec bytes{datagram.bytes.data(), datagram.bytes.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(kMostDescriptors * sizeof(int))];
  msghdr message{};
  message.msg_iov = &bytes;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  // So that taking them cannot fail.
  datagram.descriptors.clear();
  datagram.descriptors.reserve(kMostDescriptors);
  const ssize_t size =
      recvmsg(socket.get(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (size < 0) {
    return errno == EAGAIN || errno == EINTR ? Received::kNothing
                                             : Received::kEnd;
  }
  TakeDescriptors(message, &datagram.descriptors);
  // An empty datagram looks like the end, and is taken for it.
  if (size == 0) return Received::kEnd;
  datagram.size = static_cast<size_t>(size);
  datagram.cut = (message.msg_flags & MSG_TRUNC) != 0;
  datagram.descriptors_cut = (message.msg_flags & MSG_CTRUNC) != 0;
  return Received::kDatagram;
}

v1::SharedMemoryResponse Failure(const absl::Status& status) {
  v1::SharedMemoryResponse response;
  response.set_code(static_cast<int>(status.code()));
  const absl::string_view reason = ReasonName(ReasonOf(status));
  response.set_reason(std::string(
      reason.empty() ? CodeName(static_cast<grpc::StatusCode>(status.code()))
                     : reason));
  response.set_message(std::string(status.message()));
  return response;
}

}  // namespace

// Everything but Stop(), StopListening() and connections() belongs to the
// thread that runs Run().
class RegionSocket::Loop {
 public:
  Loop(const RegionSocketSettings& settings, Listener listener,
       RegionTable& regions, const Authenticator& authenticator,
       spdlog::logger& log, LogLimiter& limiter)
      : settings_(settings),
        regions_(regions),
        authenticator_(authenticator),
        log_(log),
        limiter_(limiter),
        wake_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
    listener_.emplace(std::move(listener));
  }
  ~Loop() {
    while (!connections_.empty()) Close(connections_.begin());
    StopAccepting();
    CloseDescriptors();
  }

  bool valid() const { return wake_.valid(); }
  void RunToEnd() {
    Run();
    ended_.set_value();
  }
  std::future<void> ended() { return ended_.get_future(); }
  // Nothing but itself is there any more.
  void Abandon() { abandoned_ = true; }
  void Stop() {
    stopping_ = true;
    eventfd_write(wake_.get(), 1);
  }
  void StopListening() {
    leaving_ = true;
    eventfd_write(wake_.get(), 1);
  }
  int64_t connections() const { return count_; }

 private:
  void Run();
  struct Connection {
    Descriptor socket;
    std::vector<RegionTable::Added> regions = {};
    int64_t bytes = 0;  // of all regions
    // What it has sent was answered before it was read.
    bool answered = false;
  };
  using Place = std::list<Connection>::iterator;

  void Wait();
  void Accept();
  bool MakeRoom();
  void StopAccepting();
  void Close(Place connection);
  void CloseDescriptors();
  // Whether what clients sent is not being closed. Until it is, nothing is
  // taken from them.
  bool IsBehind() const {
    return closer_.behind() + kMostDescriptors > Closer::kMostBehind;
  }
  bool Refuse(Connection& connection);
  void Forget(Connection& connection);
  // False: it is over.
  bool Serve(Connection& connection);
  v1::SharedMemoryResponse Answer(Connection& connection);
  v1::SharedMemoryResponse Register(Connection& connection,
                                    const v1::RegisterRegion& request);
  absl::StatusOr<int> TenantOf(const std::string& token) const;
  v1::SharedMemoryResponse Drop(Connection& connection,
                                const std::string& region);

  const RegionSocketSettings settings_;
  RegionTable& regions_;
  const Authenticator& authenticator_;
  spdlog::logger& log_;
  LogLimiter& limiter_;
  const Descriptor wake_;
  std::optional<Listener> listener_;
  std::atomic<bool> stopping_{false};
  std::atomic<bool> leaving_{false};
  std::atomic<bool> abandoned_{false};
  std::promise<void> ended_;
  std::atomic<int64_t> count_{0};
  // Whoever spoke last is last.
  std::list<Connection> connections_;
  bool accept_paused_ = false;
  Datagram datagram_;
  Closer closer_;
  // Of the last Wait(): those of connections_ in its order.
  std::vector<pollfd> polled_;
};

void RegionSocket::Loop::Run() {
  while (!stopping_) {
    try {
      Wait();
      if (leaving_) StopAccepting();
      size_t next = 2;  // after wake_ and the listener
      const size_t served = polled_.size();
      for (Place at = connections_.begin(); next < served; ++next) {
        const Place connection = at++;
        if (stopping_) return;
        if (polled_[next].revents == 0) continue;
        if (Serve(*connection)) {
          connections_.splice(connections_.end(), connections_, connection);
        } else {
          Close(connection);
        }
      }
      if ((polled_[1].revents & POLLIN) != 0) Accept();
    } catch (const std::bad_alloc&) {
      if (stopping_) return;
      // Whoever has said something most lately may go on saying it.
      polled_.clear();
      if (!connections_.empty()) Close(std::prev(connections_.end()));
    }
  }
}

void RegionSocket::Loop::Wait() {
  polled_.clear();
  polled_.push_back({wake_.get(), POLLIN, 0});
  // Negative descriptors are passed over.
  const bool behind = IsBehind();
  const bool accepts = listener_ && !accept_paused_ && !behind;
  polled_.push_back(
      {accepts ? listener_->sockets().front().get() : -1, POLLIN, 0});
  for (const Connection& connection : connections_) {
    const bool waits = behind && connection.answered;
    polled_.push_back({waits ? -1 : connection.socket.get(), POLLIN, 0});
  }
  if (poll(polled_.data(), polled_.size(),
           accept_paused_ || behind ? kPauseMs : -1) < 0) {
    for (pollfd& one : polled_) one.revents = 0;
  }
  accept_paused_ = false;
  eventfd_t count;
  if (polled_[0].revents != 0) eventfd_read(wake_.get(), &count);
}

void RegionSocket::Loop::Accept() {
  if (!listener_) return;
  Descriptor socket(accept4(listener_->sockets().front().get(), nullptr,
                            nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (!socket.valid()) {
    accept_paused_ = errno == EMFILE || errno == ENFILE || errno == ENOBUFS ||
                     errno == ENOMEM;
    return;
  }
  if (connections_.size() >= settings_.max_connections && !MakeRoom()) {
    if (limiter_.Allow({.event = "shared_memory_refused"},
                       spdlog::level::warn)) {
      log_.warn(
          "event=shared_memory_refused reason=\"{} connections are open\"",
          connections_.size());
    }
    closer_.Close(std::move(socket));
    return;
  }
  ucred peer{};
  socklen_t size = sizeof(peer);
  getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size);
  if (limiter_.Allow({.event = "shared_memory_connected"},
                     spdlog::level::debug)) {
    log_.debug("event=shared_memory_connected uid={} pid={}", peer.uid,
               peer.pid);
  }
  connections_.push_back({std::move(socket)});
  count_ = static_cast<int64_t>(connections_.size());
}

bool RegionSocket::Loop::MakeRoom() {
  const auto idle =
      std::find_if(connections_.begin(), connections_.end(),
                   [](const Connection& one) { return one.regions.empty(); });
  if (idle == connections_.end()) return false;
  Close(idle);
  return true;
}

void RegionSocket::Loop::StopAccepting() {
  if (!listener_) return;
  closer_.Close(std::move(*listener_).Release());
  listener_.reset();
}

// What has come with the last datagram.
void RegionSocket::Loop::CloseDescriptors() {
  std::vector<Descriptor> others;
  for (Descriptor& descriptor : datagram_.descriptors) {
    if (descriptor.valid() && !IsMemory(descriptor)) {
      others.push_back(std::move(descriptor));
    }
  }
  datagram_.descriptors.clear();
  if (!others.empty()) closer_.Close(std::move(others));
}

void RegionSocket::Loop::Close(Place connection) {
  Forget(*connection);
  // Descriptors may wait to be read from it.
  closer_.Close(std::move(connection->socket));
  connections_.erase(connection);
  count_ = static_cast<int64_t>(connections_.size());
}

void RegionSocket::Loop::Forget(Connection& connection) {
  if (abandoned_) return;
  for (const RegionTable::Added& region : connection.regions) {
    regions_.Remove(region.id);
  }
  connection.regions.clear();
}

// It may have come with descriptors, so it is not read yet.
bool RegionSocket::Loop::Refuse(Connection& connection) {
  connection.answered = true;
  if (limiter_.Allow({.event = "shared_memory_behind"}, spdlog::level::warn)) {
    log_.warn(
        "event=shared_memory_behind reason=\"{} descriptors that clients sent "
        "are not closed yet\"",
        closer_.behind());
  }
  const std::string answer =
      Failure(absl::ResourceExhaustedError(
                  "descriptors that clients sent are not closed yet, wanted "
                  "memory only"))
          .SerializeAsString();
  return send(connection.socket.get(), answer.data(), answer.size(),
              MSG_DONTWAIT | MSG_NOSIGNAL) >= 0 ||
         errno == EPIPE;
}

bool RegionSocket::Loop::Serve(Connection& connection) {
  if (IsBehind()) return Refuse(connection);
  switch (Receive(connection.socket, datagram_)) {
    case Received::kNothing:
      return true;
    case Received::kEnd:
      CloseDescriptors();
      return false;
    case Received::kDatagram:
      break;
  }
  // The owner of all that is referred to has not waited any longer.
  if (stopping_) return true;
  if (std::exchange(connection.answered, false)) {
    CloseDescriptors();
    return true;
  }
  try {
    const std::string answer = Answer(connection).SerializeAsString();
    CloseDescriptors();
    return send(connection.socket.get(), answer.data(), answer.size(),
                MSG_DONTWAIT | MSG_NOSIGNAL) ==
           static_cast<ssize_t>(answer.size());
  } catch (const std::bad_alloc&) {
    CloseDescriptors();
    return false;
  }
}

v1::SharedMemoryResponse RegionSocket::Loop::Answer(Connection& connection) {
  if (datagram_.cut) {
    return Failure(absl::InvalidArgumentError(absl::StrCat(
        "got a datagram above ", kMostBytes, " bytes, the most there may be")));
  }
  v1::SharedMemoryRequest request;
  if (!request.ParseFromArray(datagram_.bytes.data(),
                              static_cast<int>(datagram_.size))) {
    return Failure(
        absl::InvalidArgumentError("the datagram is not a valid "
                                   "attention.v1.SharedMemoryRequest message"));
  }
  switch (request.request_case()) {
    case v1::SharedMemoryRequest::kRegisterRegion:
      return Register(connection, request.register_region());
    case v1::SharedMemoryRequest::kDropRegion:
      return Drop(connection, request.drop_region().region());
    default:
      return Failure(absl::InvalidArgumentError(
          "got neither register_region nor drop_region, wanted one"));
  }
}

v1::SharedMemoryResponse RegionSocket::Loop::Register(
    Connection& connection, const v1::RegisterRegion& request) {
  const absl::StatusOr<int> tenant = TenantOf(request.token());
  if (!tenant.ok()) return Failure(tenant.status());
  if (datagram_.descriptors_cut || datagram_.descriptors.size() != 1) {
    return Failure(absl::InvalidArgumentError(absl::StrCat(
        "descriptor: got ",
        datagram_.descriptors_cut ? "more than the server can take"
                                  : absl::StrCat(datagram_.descriptors.size()),
        ", wanted one")));
  }
  if (connection.regions.size() >= settings_.max_connection_regions) {
    return Failure(absl::ResourceExhaustedError(
        absl::StrCat("got one more region, wanted at most ",
                     settings_.max_connection_regions, " of one connection")));
  }
  // So that the region that is added is never forgotten.
  connection.regions.reserve(connection.regions.size() + 1);
  auto added = regions_.Add(datagram_.descriptors.front(), *tenant,
                            settings_.max_connection_bytes - connection.bytes);
  if (!added.ok()) return Failure(added.status());
  connection.regions.push_back(*std::move(added));
  const RegionTable::Added& region = connection.regions.back();
  connection.bytes += region.bytes;
  v1::SharedMemoryResponse response;
  response.set_region(region.id);
  response.set_size_bytes(region.bytes);
  return response;
}

absl::StatusOr<int> RegionSocket::Loop::TenantOf(
    const std::string& token) const {
  const std::string header = absl::StrCat("Bearer ", token);
  Authenticator::Metadata metadata;
  if (!token.empty()) metadata.emplace("authorization", header);
  const absl::StatusOr<TenantPtr> tenant = authenticator_.Check(metadata);
  if (!tenant.ok()) return tenant.status();
  if (absl::Status may = MayCompute(**tenant); !may.ok()) return may;
  return (*tenant)->id;
}

v1::SharedMemoryResponse RegionSocket::Loop::Drop(Connection& connection,
                                                  const std::string& region) {
  const auto found = std::find_if(
      connection.regions.begin(), connection.regions.end(),
      [&](const RegionTable::Added& one) { return one.id == region; });
  if (found == connection.regions.end()) {
    return Failure(UnknownRegion("drop_region.region"));
  }
  regions_.Remove(region);
  connection.bytes -= found->bytes;
  connection.regions.erase(found);
  v1::SharedMemoryResponse response;
  response.set_region(region);
  return response;
}

absl::StatusOr<std::unique_ptr<RegionSocket>> RegionSocket::Start(
    const RegionSocketSettings& settings, RegionTable& regions,
    const Authenticator& authenticator, spdlog::logger& log,
    LogLimiter& limiter) {
  absl::StatusOr<Listener> listener =
      Listener::Open(settings.address, {.unix_mode = settings.mode,
                                        .unix_type = SOCK_SEQPACKET,
                                        .flag = "--shared-memory"});
  if (!listener.ok()) return listener.status();
  auto loop = std::make_shared<Loop>(settings, *std::move(listener), regions,
                                     authenticator, log, limiter);
  if (!loop->valid()) {
    return absl::UnavailableError(
        absl::StrCat("--shared-memory: ", std::strerror(errno)));
  }
  return std::unique_ptr<RegionSocket>(new RegionSocket(std::move(loop)));
}

RegionSocket::RegionSocket(std::shared_ptr<Loop> loop)
    : loop_(std::move(loop)),
      ended_(loop_->ended()),
      thread_([loop = loop_] { loop->RunToEnd(); }) {}

RegionSocket::~RegionSocket() {
  loop_->Stop();
  if (ended_.wait_for(kEndPatience) == std::future_status::ready) {
    thread_.join();
    return;
  }
  // The kernel has it closing something, and what it refers to may be gone
  // when it comes back.
  loop_->Abandon();
  thread_.detach();
}

void RegionSocket::StopListening() { loop_->StopListening(); }

int64_t RegionSocket::connections() const { return loop_->connections(); }

}  // namespace attention::server
