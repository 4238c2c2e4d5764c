#include "attention/client.h"

#include <google/protobuf/wrappers.pb.h>

#include <future>
#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "attention/internal/compute_messages.h"
#include "attention/internal/key_chunks.h"
#include "attention/internal/patience.h"
#include "attention/internal/retries.h"
#include "attention/internal/session_calls.h"
#include "attention/internal/session_client.h"
#include "attention/internal/shared_memory.h"
#include "attention/internal/shared_request.h"
#include "attention/internal/stream_call.h"
#include "attention/internal/unary_call.h"
#include "attention/internal/workers.h"
#include "attention/session.h"

namespace attention {
namespace {

constexpr char kComputeMethod[] =
    "/attention.v1.AttentionService/ComputeAttention";
constexpr char kCapabilitiesMethod[] =
    "/attention.v1.AttentionService/GetCapabilities";
constexpr char kHealthMethod[] = "/grpc.health.v1.Health/Check";

int64_t TensorBytes(const ComputeRequest& request) {
  size_t bytes = 0;
  for (const TensorSpan* tensor :
       {&request.query, &request.key, &request.value}) {
    bytes += tensor->bytes.size();
  }
  for (const auto* tensor :
       {&request.mask, &request.past_key, &request.past_value, &request.indices,
        &request.sinks}) {
    if (tensor->has_value()) bytes += (*tensor)->bytes.size();
  }
  return static_cast<int64_t>(bytes);
}

// Rejects what protobuf could not send before anything is copied.
absl::Status CheckSize(const ComputeRequest& request) {
  const int64_t bytes = TensorBytes(request);
  // What the small fields take: lengths and slopes grow with the batch only.
  constexpr int64_t kSmallFields = 1 << 20;
  constexpr int64_t kLargest = std::numeric_limits<int32_t>::max();
  if (bytes <= kLargest - kSmallFields) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the tensors take ", bytes,
                   " bytes, more than a message can hold (2 GiB): split the "
                   "request by batch or head"));
}

// The call that sends the request in one message.
internal::UnaryCall MakeCall(const ComputeRequest& request,
                             const internal::SharedPlaces& places = {}) {
  internal::UnaryCall call;
  call.method = kComputeMethod;
  call.message = internal::EncodeRequest(request, call.lease, places);
  call.message_bytes = call.message.Length();
  return call;
}

absl::StatusOr<ComputeResult> ResultOf(
    const internal::UnaryAnswer& answer, const ComputeOutputs& outputs,
    const internal::SharedPlaces& places = {}) {
  if (!answer.status.ok()) return answer.status;
  return internal::DecodeResponse(answer.message, outputs, places);
}

// With fewer bytes of keys and values a single message is as fast, or faster.
constexpr int64_t kStreamedBytes = int64_t{4} << 20;

// Nothing: the request is sent in one message. A stream makes the server keep
// the state of all rows: it is for many keys and few rows, and for what is too
// large for a message.
std::optional<internal::KeyChunks> ChunksToStream(const ComputeRequest& request,
                                                  bool no_streams) {
  const int64_t bytes = TensorBytes(request);
  const bool one_message = CheckSize(request).ok();
  if (one_message &&
      (no_streams || bytes - static_cast<int64_t>(request.query.bytes.size()) <=
                         kStreamedBytes)) {
    return std::nullopt;
  }
  std::optional<internal::KeyChunks> chunks = internal::KeyChunks::Of(request);
  if (chunks && one_message && chunks->state_bytes() > bytes) {
    return std::nullopt;
  }
  return chunks;
}

// Whether a server has not understood what a stream is, as older ones do.
bool KnowsNoStreams(const absl::Status& status) {
  return absl::IsUnimplemented(status) &&
         ErrorReason(status) != "INVALID_FIELD";
}

// Whether the server may take as one message what it will never take as a
// stream: it knows none, takes no chunks of this size, or can have no room for
// the state of all rows. One that is busy is left alone.
bool MayTakeOneMessage(const absl::Status& status,
                       const ComputeRequest& request) {
  if (!CheckSize(request).ok()) return false;
  if (KnowsNoStreams(status)) return true;
  const std::string reason = ErrorReason(status);
  return absl::IsResourceExhausted(status) &&
         (reason == "REQUEST_TOO_LARGE" || reason == "MEMORY_TOO_LARGE");
}

// Nothing: the request is to be sent.
using MaybeResult = std::optional<absl::StatusOr<ComputeResult>>;

// Computes it through shared memory. If the server does not know the memory, as
// after it has restarted, that is registered with it again and the call tried
// once more.
MaybeResult RunShared(const Connection& connection,
                      const std::shared_ptr<internal::SharedMemory>& memory,
                      const ComputeRequest& request,
                      const CallOptions& options) {
  if (memory == nullptr || !internal::WorthSharing(*memory, request)) {
    return std::nullopt;
  }
  const absl::Time begin = absl::Now();
  for (int tries = 0; tries < 2; ++tries) {
    if (!memory->Connect(internal::InTimeLeft(options, begin))) {
      return std::nullopt;
    }
    const auto shared = internal::SharedRequest::Of(
        memory, request,
        internal::Patience::Of(internal::InTimeLeft(options, begin)));
    if (shared == nullptr) return std::nullopt;
    internal::UnaryCall call = MakeCall(request, shared->places());
    const internal::UnaryAnswer answer = internal::RunUnary(
        connection, internal::InTimeLeft(options, begin), call);
    absl::StatusOr<ComputeResult> result =
        ResultOf(answer, request.outputs, shared->places());
    if (shared->Ended(answer.status)) return result;
  }
  return std::nullopt;
}

void StartInOneMessage(
    const Connection& connection, const ComputeRequest& request,
    const CallOptions& options,
    std::function<void(absl::StatusOr<ComputeResult>)> done) {
  if (absl::Status status = CheckSize(request); !status.ok()) {
    return done(status);
  }
  internal::StartUnary(connection, options, MakeCall(request),
                       [outputs = request.outputs, done = std::move(done)](
                           const internal::UnaryAnswer& answer) {
                         done(ResultOf(answer, outputs));
                       });
}

}  // namespace

Client::Client(const std::string& target, const ClientOptions& options)
    : Client(Connection::Make(target, options)) {}

Client::Client(Connection connection)
    : Client(absl::StatusOr<Connection>(std::move(connection))) {}

Client::Client(std::shared_ptr<grpc::Channel> channel)
    : Client(Connection(std::move(channel))) {}

Client::Client(absl::StatusOr<Connection> connection)
    : connection_(std::move(connection)) {
  if (!connection_.ok()) return;
  if (connection_->may_share_memory()) {
    shared_memory_ = std::make_shared<internal::SharedMemory>(*connection_);
  }
  session_client_ = std::make_shared<internal::SessionClient>(*connection_);
}

absl::StatusOr<ComputeResult> Client::Compute(
    const ComputeRequest& request, const CallOptions& options) const {
  if (!connection_.ok()) return connection_.status();
  return internal::RunTries<absl::StatusOr<ComputeResult>>(
      *connection_, internal::Twice::kHarmless, options,
      [&](const CallOptions& left) { return TryCompute(request, left); });
}

absl::StatusOr<ComputeResult> Client::TryCompute(
    const ComputeRequest& request, const CallOptions& options) const {
  const absl::Time begin = absl::Now();
  if (auto result = RunShared(*connection_, shared_memory_, request, options)) {
    return *std::move(result);
  }
  CallOptions left = internal::InTimeLeft(options, begin);
  if (auto chunks = ChunksToStream(request, server_->KnowsNoStreams())) {
    absl::StatusOr<ComputeResult> result =
        internal::RunStream(*connection_, left, request, *std::move(chunks));
    if (KnowsNoStreams(result.status())) server_->FoundNoStreams();
    if (!MayTakeOneMessage(result.status(), request)) return result;
    left = internal::InTimeLeft(options, begin);
  }
  if (absl::Status status = CheckSize(request); !status.ok()) return status;
  internal::UnaryCall call = MakeCall(request);
  return ResultOf(internal::RunUnary(*connection_, left, call),
                  request.outputs);
}

std::shared_ptr<std::byte> Client::AllocateShared(size_t bytes) const {
  return internal::SharedMemory::Allocate(shared_memory_, bytes);
}

void Client::ComputeAsync(
    const ComputeRequest& request, const CallOptions& options,
    std::function<void(absl::StatusOr<ComputeResult>)> done) const {
  if (!connection_.ok()) return done(connection_.status());
  // The client and the request may be gone before another try.
  internal::StartedTries<absl::StatusOr<ComputeResult>>::Begin(
      *connection_, internal::Twice::kHarmless, options,
      [connection = *connection_, server = server_, memory = shared_memory_,
       request](const CallOptions& left,
                std::function<void(absl::StatusOr<ComputeResult>)> then) {
        StartTry(connection, server, memory, request, left, std::move(then));
      },
      std::move(done));
}

void Client::StartTry(const Connection& connection,
                      const std::shared_ptr<Server>& server,
                      const std::shared_ptr<internal::SharedMemory>& memory,
                      const ComputeRequest& request, const CallOptions& options,
                      std::function<void(absl::StatusOr<ComputeResult>)> done) {
  if (memory == nullptr || !internal::WorthSharing(*memory, request) ||
      !memory->ConnectLater()) {
    return StartSending(connection, server, request, options, std::move(done));
  }
  // What is shared may have to be copied and registered first, which takes its
  // time.
  internal::RunOnWorker([connection, server, memory, request, options,
                         begin = absl::Now(), done = std::move(done)] {
    StartSharing(connection, server, memory, request,
                 internal::InTimeLeft(options, begin), done);
  });
}

void Client::StartSharing(
    const Connection& connection, const std::shared_ptr<Server>& server,
    const std::shared_ptr<internal::SharedMemory>& memory,
    const ComputeRequest& request, const CallOptions& options,
    std::function<void(absl::StatusOr<ComputeResult>)> done) {
  const absl::Time begin = absl::Now();
  internal::Patience patience = internal::Patience::Of(options);
  patience.interrupted = nullptr;  // Of the calling thread alone.
  const std::shared_ptr<internal::SharedRequest> shared =
      internal::SharedRequest::Of(memory, request, patience);
  const CallOptions left = internal::InTimeLeft(options, begin);
  if (shared == nullptr) {
    return StartSending(connection, server, request, left, std::move(done));
  }
  internal::StartUnary(
      connection, left, MakeCall(request, shared->places()),
      [connection, server, request, options, begin, shared,
       done = std::move(done)](const internal::UnaryAnswer& answer) {
        absl::StatusOr<ComputeResult> result =
            ResultOf(answer, request.outputs, shared->places());
        if (shared->Ended(answer.status)) return done(std::move(result));
        // The server did not know the memory.
        StartSending(connection, server, request,
                     internal::InTimeLeft(options, begin), done);
      });
}

void Client::StartSending(
    const Connection& connection, const std::shared_ptr<Server>& server,
    const ComputeRequest& request, const CallOptions& options,
    std::function<void(absl::StatusOr<ComputeResult>)> done) {
  if (auto chunks = ChunksToStream(request, server->KnowsNoStreams())) {
    return internal::StartStream(
        connection, options, request, *std::move(chunks),
        [connection, server, request, options, begin = absl::Now(),
         done = std::move(done)](absl::StatusOr<ComputeResult> result) {
          if (KnowsNoStreams(result.status())) server->FoundNoStreams();
          if (!MayTakeOneMessage(result.status(), request)) {
            return done(std::move(result));
          }
          StartInOneMessage(connection, request,
                            internal::InTimeLeft(options, begin), done);
        });
  }
  StartInOneMessage(connection, request, options, std::move(done));
}

std::future<absl::StatusOr<ComputeResult>> Client::ComputeAsync(
    const ComputeRequest& request, const CallOptions& options) const {
  const auto promise =
      std::make_shared<std::promise<absl::StatusOr<ComputeResult>>>();
  ComputeAsync(request, options, [promise](auto result) {
    promise->set_value(std::move(result));
  });
  return promise->get_future();
}

absl::StatusOr<ClientSession> Client::CreateSession(
    const v1::SessionConfig& config, const std::string& id,
    const CallOptions& options) const {
  if (!connection_.ok()) return connection_.status();
  return session_client_->Create(config, id, options);
}

absl::StatusOr<v1::Session> Client::GetSession(
    const std::string& id, const CallOptions& options) const {
  if (!connection_.ok()) return connection_.status();
  return session_client_->Get(id, /*incarnation=*/0, options);
}

absl::StatusOr<ClientSession> Client::OpenSession(
    const std::string& id, const CallOptions& options) const {
  if (!connection_.ok()) return connection_.status();
  return session_client_->Open(id, options);
}

absl::StatusOr<std::vector<v1::Session>> Client::ListSessions(
    const CallOptions& options) const {
  if (!connection_.ok()) return connection_.status();
  return session_client_->List(options);
}

absl::StatusOr<std::vector<ClientSession>> Client::ForkSessions(
    const v1::ForkSessionsRequest& request, const CallOptions& options) const {
  if (!connection_.ok()) return connection_.status();
  return session_client_->Fork(request, options);
}

absl::Status Client::DeleteSession(const std::string& id,
                                   const CallOptions& options) const {
  if (!connection_.ok()) return connection_.status();
  return session_client_->Delete(id, /*incarnation=*/0, options);
}

std::vector<absl::StatusOr<AttendResult>> Client::Step(
    std::span<const StepItem> items, const CallOptions& options) const {
  if (!connection_.ok()) return {items.size(), connection_.status()};
  return session_client_->Step(items, options);
}

absl::StatusOr<v1::GetCapabilitiesResponse> Client::GetCapabilities(
    const CallOptions& options) const {
  if (!connection_.ok()) return connection_.status();
  v1::GetCapabilitiesResponse response;
  absl::Status status = internal::Call(*connection_, internal::Twice::kHarmless,
                                       options, kCapabilitiesMethod,
                                       v1::GetCapabilitiesRequest(), &response);
  if (!status.ok()) return status;
  return response;
}

absl::StatusOr<Health> Client::CheckHealth(const std::string& service,
                                           const CallOptions& options) const {
  if (!connection_.ok()) return connection_.status();
  // gRPC's C++ library ships no stub of grpc.health.v1.Health. Its request has
  // one string and its response one enum, both field 1: on the wire these are
  // StringValue and Int32Value.
  google::protobuf::StringValue request;
  request.set_value(service);
  google::protobuf::Int32Value response;
  const absl::Status status =
      internal::Call(*connection_, internal::Twice::kHarmless, options,
                     kHealthMethod, request, &response);
  if (!status.ok()) return status;
  switch (response.value()) {
    case 1:
      return Health::kServing;
    case 2:
      return Health::kNotServing;
    default:
      return Health::kUnknown;
  }
}

}  // namespace attention
