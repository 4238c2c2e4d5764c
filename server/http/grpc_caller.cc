#include "server/http/grpc_caller.h"

#include <algorithm>
#include <atomic>
#include <new>
#include <optional>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "base/field_error.h"
#include "grpcpp/client_context.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/support/client_callback.h"
#include "server/http/json_memory.h"
#include "server/rpc/call_headers.h"
#include "server/status.h"

namespace attention::server {
namespace {

// Bytes of JSON, or of a message to be written so, that take a few
// milliseconds.
constexpr int64_t kSmallWork = int64_t{256} << 10;

// gRPC ends the process where a header's value has other bytes.
bool IsLegal(absl::string_view value) {
  return std::all_of(value.begin(), value.end(),
                     [](char c) { return c >= 0x20 && c <= 0x7e; });
}

// "500m" as in gRPC's header grpc-timeout: up to eight digits and a unit.
std::optional<absl::Duration> ParseTimeout(absl::string_view text) {
  if (text.size() < 2 || text.size() > 9) return std::nullopt;
  int64_t value = 0;
  for (char digit : text.substr(0, text.size() - 1)) {
    if (!absl::ascii_isdigit(digit)) return std::nullopt;
    value = 10 * value + (digit - '0');
  }
  switch (text.back()) {
    case 'H':
      return absl::Hours(value);
    case 'M':
      return absl::Minutes(value);
    case 'S':
      return absl::Seconds(value);
    case 'm':
      return absl::Milliseconds(value);
    case 'u':
      return absl::Microseconds(value);
    case 'n':
      return absl::Nanoseconds(value);
    default:
      return std::nullopt;
  }
}

}  // namespace

// A call, until it has ended.
struct GrpcCaller::Running final : grpc::ClientUnaryReactor {
  Running(GrpcCaller& its_caller, std::shared_ptr<grpc::Channel> to,
          std::shared_ptr<HttpExchange> its_exchange, TenantPtr its_tenant,
          std::function<void(Result&)> then)
      : caller(its_caller),
        channel(std::move(to)),
        stub(channel),
        exchange(std::move(its_exchange)),
        tenant(std::move(its_tenant)),
        done(std::move(then)) {}

  // A thread of the caller's destroys this: gRPC may wait for its own threads
  // where a channel is destroyed, and this is one of them.
  void OnDone(const grpc::Status& status) override {
    static_cast<void>(begun.load(std::memory_order_acquire));
    GrpcCaller& its_caller = caller;
    try {
      result.status = status;
      // The call's own memory is free again from here on, the answer is not.
      request.Clear();
      if (!HoldToWait(result.response, *exchange)) {
        result.response.Clear();
        result.status = ToGrpcStatus(TooMuchHeld());
      }
      caller.Post({.exchange = exchange,
                   .tenant = tenant,
                   .bytes = static_cast<int64_t>(result.response.Length()),
                   .run = [me = std::move(self)] { me->done(me->result); }});
    } catch (const std::bad_alloc&) {
      exchange->Abort();
    }
    its_caller.Ended();
  }

  GrpcCaller& caller;
  const std::shared_ptr<grpc::Channel> channel;
  grpc::GenericStub stub;
  const std::shared_ptr<HttpExchange> exchange;
  const TenantPtr tenant;
  const std::function<void(Result&)> done;
  grpc::ClientContext context;
  grpc::ByteBuffer request;
  Result result;
  // gRPC's, from when the call begins until OnDone().
  std::shared_ptr<Running> self;
  // Set by who begins the call, read by who ends it: gRPC orders the two, but
  // ThreadSanitizer does not see into it.
  std::atomic<bool> begun{false};
};

GrpcCaller::GrpcCaller(Connect connect, int64_t max_answer_bytes)
    : connect_(std::move(connect)), max_answer_bytes_(max_answer_bytes) {}

absl::StatusOr<std::unique_ptr<GrpcCaller>> GrpcCaller::Create(
    Connect connect, int64_t max_answer_bytes) {
  std::unique_ptr<GrpcCaller> caller(
      new GrpcCaller(std::move(connect), max_answer_bytes));
  for (auto* lane : {&caller->small_lane_, &caller->large_lane_}) {
    auto made = WorkLane::Create();
    if (!made.ok()) return made.status();
    *lane = *std::move(made);
  }
  return caller;
}

GrpcCaller::~GrpcCaller() {
  std::unique_lock<std::mutex> lock(mutex_);
  stop_ = true;
  changed_.wait(lock, [this] { return running_ == 0; });
}

void GrpcCaller::Post(WorkLane::Work work) {
  (work.bytes <= kSmallWork ? small_lane_ : large_lane_)->Post(std::move(work));
}

void GrpcCaller::Start(const std::shared_ptr<HttpExchange>& exchange,
                       const Call& call, std::function<void(Result&)> done) {
  std::shared_ptr<grpc::Channel> channel = connect_();
  if (channel == nullptr) {
    Result result;
    result.status = {grpc::StatusCode::UNAVAILABLE,
                     "the server is starting or stopping"};
    return done(result);
  }
  const auto running = std::make_shared<Running>(
      *this, std::move(channel), exchange, call.tenant, std::move(done));
  for (const auto& [name, value] : call.headers) {
    if (IsLegal(value)) running->context.AddMetadata(name, value);
  }
  running->context.AddMetadata(kRequestBytesHeader,
                               absl::StrCat(call.request.Length()));
  running->context.AddMetadata(kMaxAnswerBytesHeader,
                               absl::StrCat(max_answer_bytes_));
  if (call.deadline != absl::InfiniteFuture()) {
    running->context.set_deadline(absl::ToChronoTime(call.deadline));
  }
  running->request = call.request;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    // ~GrpcCaller() waits for no call that begins now.
    if (stop_) return exchange->Abort();
    ++running_;
  }
  try {
    running->stub.PrepareUnaryCall(&running->context, call.method, {},
                                   &running->request, &running->result.response,
                                   running.get());
  } catch (const std::bad_alloc&) {
    Ended();
    throw;
  }
  running->self = running;
  running->begun.store(true, std::memory_order_release);
  running->StartCall();
  // Now, or when its client goes.
  exchange->OnGone([running] { running->context.TryCancel(); });
}

void GrpcCaller::Ended() {
  const std::lock_guard<std::mutex> lock(mutex_);
  --running_;
  changed_.notify_all();
}

absl::StatusOr<GrpcCaller::Call> CallOf(const HttpRequest& request) {
  GrpcCaller::Call call;
  if (const absl::string_view text = request.Header("Grpc-Timeout");
      !text.empty()) {
    const auto timeout = ParseTimeout(text);
    if (!timeout) {
      return FieldError(
          "Grpc-Timeout",
          absl::StrCat("got ", text,
                       ", wanted up to eight digits and one of H, M, S, m "
                       "(milliseconds), u, n"));
    }
    call.deadline = absl::Now() + *timeout;
  }
  for (const char* name : {"authorization", "traceparent", "x-request-id"}) {
    for (const absl::string_view value : request.Headers(name)) {
      call.headers.emplace_back(name, value);
    }
  }
  if (!request.IsOnThisMachine()) {
    call.headers.emplace_back(kFromElsewhereHeader, "1");
  }
  return call;
}

}  // namespace attention::server
