// Attention over the network, from C++. Start here.
//
// A call that works:
//
//   #include <attention/client.h>
//
//   attention::Client client("127.0.0.1:50051");
//   std::vector<float> eye = {1, 0, 0, 1};
//   attention::ComputeRequest request;
//   request.query = attention::TensorSpan::Of<float>(eye, {2, 2});
//   request.key = request.query;
//   request.value = request.query;
//   absl::StatusOr<attention::ComputeResult> result =
//       client.Compute(request, {.timeout = absl::Seconds(5)});
//   if (!result.ok()) return result.status();
//   std::span<const float> output = result->output.elements<float>();
//   // 0.669762, 0.330238, 0.330238, 0.669762
//
// A call that fails, and what it tells:
//
//   std::vector<float> row = {1, 0, 0};
//   request.key = attention::TensorSpan::Of<float>(row, {1, 3});
//   result = client.Compute(request);
//   // result.status().code() is absl::StatusCode::kInvalidArgument, and
//   // attention::FieldViolations(result.status()) names field "key.shape",
//   // what it got and what it wanted (attention/status.h).
//
// What is computed, every option and every error are specified in
// attention/v1/attention.proto, installed beside this library.
//
// In CMake:
//
//   find_package(attention CONFIG REQUIRED)
//   target_link_libraries(mine PRIVATE attention::client)
//
// Threads: a Client may be used by any number of threads at once, all its
// functions included. They share the connection. Compute() blocks the calling
// thread until it is answered, ComputeAsync() does not:
//
//   std::stop_source stop;
//   std::future<absl::StatusOr<attention::ComputeResult>> later =
//       client.ComputeAsync(request, {.stop = stop.get_token()});
//   stop.request_stop();  // "later" is CANCELLED, or what came before
//
// Memory: tensors are sent from the memory that they are lent in, without a
// copy, for each try anew, and `ComputeRequest::outputs` takes the answer's
// elements. Nothing of it is used any more once Compute() has returned, the
// future is ready or the callback is called, however the call ended. To make
// sure of that, a call whose time is over or which is cancelled may end later:
// what gRPC has begun to write to a connection it writes to the end. That is no
// time at all unless the server has stopped reading; such a connection is given
// up after 20 seconds (GRPC_ARG_KEEPALIVE_TIMEOUT_MS), on a Unix socket when
// the server goes on or ends.
//
// A server on this machine may offer to share memory (its flag
// --shared-memory). Tensors of more than 64 KiB together then go to it and back
// through memory that both have mapped, by themselves:
// ClientOptions::use_shared_memory. AllocateShared() gives memory that the
// server reads where it is. Of such memory the server may still read, for some
// milliseconds, after a call that was given up; what is written there by then
// spoils that call's answer, which nobody gets.
//
// TLS and tokens: members of ClientOptions (attention/connection.h).
//
// Sessions, which keep keys and values in the server: attention/session.h.
//
// Retries: a call that a busy or draining server has refused, or whose
// connection was lost, is tried again, up to four times within its timeout, by
// the rules of docs/retries.md: ClientOptions::max_attempts. No thread waits
// between tries of an asynchronous call; a request to stop ends the wait. The
// status is then that of the last try: where RetryDelay() gives a time, another
// one after it may succeed. Apart from that a request is sent a second time in
// two cases: where the server does not know the shared memory that holds it,
// and in one message where the server takes no stream of it, or knows none.
// ErrorReason() tells errors apart (attention/status.h).
#ifndef ATTENTION_CLIENT_H_
#define ATTENTION_CLIENT_H_

#include <grpcpp/channel.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "attention/connection.h"
#include "attention/status.h"
#include "attention/tensor.h"
#include "attention/v1/attention.pb.h"
#include "attention/v1/session.pb.h"

namespace attention {

namespace internal {
class SessionClient;
class SharedMemory;
}  // namespace internal

// The request header in which Compute() tells the server the size of its
// message, in bytes, so that the server can keep memory for it, or refuse it,
// before it is sent. For those who call the service through a stub of their
// own.
inline constexpr char kRequestBytesHeader[] = "attention-request-bytes";

struct CallOptions {
  // The call, all of its tries together, fails with DEADLINE_EXCEEDED when this
  // much time has passed; server and client then both stop working on it. A
  // pause that would outlast it is not begun: the call ends at once.
  absl::Duration timeout = absl::InfiniteDuration();
  // A request to stop cancels the call: it fails with CANCELLED, and server and
  // client stop working on it.
  std::stop_token stop = {};
  // Asked about every 50 ms, on the calling thread, by calls that block; once
  // it is true the call is cancelled, as by `stop`. For a caller that has to
  // look after signals, as an interpreter has. Asynchronous calls ignore it.
  std::function<bool()> interrupted = {};
  // Called while a large request is sent, with bytes of keys and values: on the
  // calling thread by Compute(), on one of the client's by ComputeAsync(). Must
  // not block. Another try begins anew.
  std::function<void(int64_t sent, int64_t total)> progress = {};
};

// Memory for the elements of an answer, each at least as large as they are.
// Empty: none is given, and the answer holds its own.
struct ComputeOutputs {
  std::span<std::byte> output;
  std::span<std::byte> log_sum_exp;
  std::span<std::byte> scores;
  std::span<std::byte> present_key;
  std::span<std::byte> present_value;
};

// Tensors and options of one computation, by the rules of
// attention.v1.ComputeAttentionRequest. The tensors are lent: their memory must
// stay as it is until the call returns.
struct ComputeRequest {
  TensorSpan query;
  TensorSpan key;
  TensorSpan value;
  // BOOL: true attends. Any number, integers too, is added to the scores: a
  // mask of integers 0 and 1 hides nothing. Tensor::Of() takes those of
  // uint8_t, int16_t and uint32_t. BITS: true attends, with the shape of the
  // bits and ceil(elements / 8) bytes.
  std::optional<TensorSpan> mask;
  std::optional<TensorSpan> past_key;
  std::optional<TensorSpan> past_value;
  // Of INT32 or INT64: the keys that each query sees, the only ones read.
  std::optional<TensorSpan> indices = {};
  // One for each row, in place of options.sinks.
  std::optional<TensorSpan> sinks = {};
  std::vector<int64_t> valid_lengths;
  std::vector<int64_t> query_starts;
  std::vector<int64_t> key_starts;
  v1::AttentionOptions options;
  // Lent likewise. What is in it after a call that failed is not specified.
  ComputeOutputs outputs = {};
};

// The answer; what was not asked for is absent. A tensor for which memory was
// given refers to that memory, and so do its copies.
struct ComputeResult {
  Tensor output;
  std::optional<Tensor> log_sum_exp;
  std::optional<Tensor> scores;
  std::optional<Tensor> present_key;
  std::optional<Tensor> present_value;
  v1::Timing timing;
};

enum class Health { kUnknown, kServing, kNotServing };

// In attention/session.h.
class ClientSession;
struct AttendResult;
struct StepItem;

class Client {
 public:
  // Prepares a connection to `target`: "host:port", "unix:/path",
  // "dns:///name:port" or any other name gRPC knows. Does not wait for the
  // network and does not fail: the connection is made by the first call, which
  // reports UNAVAILABLE if it cannot be made, and is made anew after it was
  // lost. Options that cannot be used (a file that does not exist) are what
  // every call then reports, as Connection::Make() does.
  explicit Client(const std::string& target, const ClientOptions& options = {});

  explicit Client(Connection connection);

  // Uses a channel that exists, such as an in-process one. Its limits and
  // credentials apply, and its keepalive arguments: without these a call may
  // outlast its deadline while the server takes nothing from the connection.
  explicit Client(std::shared_ptr<grpc::Channel> channel);

  // Computes attention. A request with more than a few MiB of keys and values
  // for few rows, or with more than a message can hold, is sent in pieces, by
  // StreamAttention, and computed meanwhile, unless it asks for scores or
  // present keys. The answer's bits are the same. On failure nothing is
  // returned but the status: the server's, or
  //   INVALID_ARGUMENT  the request needs to be one message and does not fit
  //                     into it (2 GiB), the answer does not fit into
  //                     request.outputs, or the client's options cannot be
  //                     used
  //   FAILED_PRECONDITION  the token would have travelled in plain text
  //   INTERNAL          the answer was malformed: a bug of the server
  absl::StatusOr<ComputeResult> Compute(const ComputeRequest& request,
                                        const CallOptions& options = {}) const;

  // The same without blocking: what has to be copied or registered to be shared
  // is, on another thread. The memory that `request` refers to must stay
  // until the future is ready; `request` itself need not. The future does not
  // block when it is destroyed.
  std::future<absl::StatusOr<ComputeResult>> ComputeAsync(
      const ComputeRequest& request, const CallOptions& options = {}) const;

  // The same with a callback, which is called once: on a thread of the
  // library's, most often one that all asynchronous calls of the process share,
  // or on this one before ComputeAsync() returns. It may make other calls, but
  // must not wait for asynchronous ones.
  void ComputeAsync(
      const ComputeRequest& request, const CallOptions& options,
      std::function<void(absl::StatusOr<ComputeResult>)> done) const;

  // Memory for tensors, zeroed and aligned to 64 bytes, which a server on this
  // machine reads where it is: without a copy, and of any size. Where nothing
  // can be shared it is memory like any other, so that code works everywhere.
  // It may outlive the client. Each costs a file descriptor and some 10
  // microseconds when it is first used, so allocate large pieces and keep them.
  // Throws std::bad_alloc.
  //
  //   std::shared_ptr<std::byte> keys = client.AllocateShared(bytes);
  //   request.key = {attention::v1::DATA_TYPE_FLOAT16, {1, 8, 4096, 128},
  //                  std::span<const std::byte>(keys.get(), bytes)};
  std::shared_ptr<std::byte> AllocateShared(size_t bytes) const;

  // Sessions. Whoever calls these includes attention/session.h, which tells of
  // them.

  // Makes a session without tokens. An empty id: the server chooses one. Where
  // there is a session with this id and the same configuration, it is the
  // answer. ALREADY_EXISTS if its configuration is another.
  absl::StatusOr<ClientSession> CreateSession(
      const v1::SessionConfig& config, const std::string& id = "",
      const CallOptions& options = {}) const;

  // Tells of a session, and renews its lease.
  absl::StatusOr<v1::Session> GetSession(const std::string& id,
                                         const CallOptions& options = {}) const;

  // A session that exists.
  absl::StatusOr<ClientSession> OpenSession(
      const std::string& id, const CallOptions& options = {}) const;

  // Tells of the caller's sessions, in the order of their ids, and renews no
  // lease. `options.timeout` is for all pages together.
  absl::StatusOr<std::vector<v1::Session>> ListSessions(
      const CallOptions& options = {}) const;

  // Makes new sessions with the tokens of others: all of them or none. In the
  // order of `request.forks`.
  absl::StatusOr<std::vector<ClientSession>> ForkSessions(
      const v1::ForkSessionsRequest& request,
      const CallOptions& options = {}) const;

  // Ends a session; OK also where there is none. A ClientSession of it finds
  // out with its next call.
  absl::Status DeleteSession(const std::string& id,
                             const CallOptions& options = {}) const;

  // Appends to and attends over layers of several sessions, in one message: at
  // most 1024 items, each for itself. One result for each, in their order;
  // where the message as a whole failed, all are its status. A layer may be
  // named twice only by items that do not append. The sessions must be of this
  // client.
  std::vector<absl::StatusOr<AttendResult>> Step(
      std::span<const StepItem> items, const CallOptions& options = {}) const;

  // The server's limits, types and build.
  absl::StatusOr<v1::GetCapabilitiesResponse> GetCapabilities(
      const CallOptions& options = {}) const;

  // The standard gRPC health check of one service by its full name, or of the
  // whole server. NOT_FOUND if the server does not know the service.
  absl::StatusOr<Health> CheckHealth(const std::string& service = "",
                                     const CallOptions& options = {}) const;

 private:
  explicit Client(absl::StatusOr<Connection> connection);

  // What is known of the server.
  class Server {
   public:
    // Whether it has answered lately that it does not know StreamAttention.
    // Another one may stand there by now, or another replica may answer.
    bool KnowsNoStreams() const {
      return absl::ToUnixMicros(absl::Now()) < no_streams_until_;
    }
    void FoundNoStreams() {
      no_streams_until_ = absl::ToUnixMicros(absl::Now() + absl::Minutes(1));
    }

   private:
    std::atomic<int64_t> no_streams_until_{0};
  };
  absl::StatusOr<ComputeResult> TryCompute(const ComputeRequest& request,
                                           const CallOptions& options) const;
  // One try of ComputeAsync().
  static void StartTry(const Connection& connection,
                       const std::shared_ptr<Server>& server,
                       const std::shared_ptr<internal::SharedMemory>& memory,
                       const ComputeRequest& request,
                       const CallOptions& options,
                       std::function<void(absl::StatusOr<ComputeResult>)> done);
  // The same through shared memory, if it can be had.
  static void StartSharing(
      const Connection& connection, const std::shared_ptr<Server>& server,
      const std::shared_ptr<internal::SharedMemory>& memory,
      const ComputeRequest& request, const CallOptions& options,
      std::function<void(absl::StatusOr<ComputeResult>)> done);
  // The same without shared memory.
  static void StartSending(
      const Connection& connection, const std::shared_ptr<Server>& server,
      const ComputeRequest& request, const CallOptions& options,
      std::function<void(absl::StatusOr<ComputeResult>)> done);

  const std::shared_ptr<Server> server_ = std::make_shared<Server>();

  absl::StatusOr<Connection> connection_;
  // Null where nothing is shared.
  std::shared_ptr<internal::SharedMemory> shared_memory_;
  // Null where there is no connection.
  std::shared_ptr<internal::SessionClient> session_client_;
};

}  // namespace attention

#endif  // ATTENTION_CLIENT_H_
