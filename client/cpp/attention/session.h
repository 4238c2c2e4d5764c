// Sessions: keys and values that stay in the server between calls, so that a
// decode step sends only the new token. docs/sessions.md tells what they are
// for.
//
//   attention::Client client("127.0.0.1:50051");
//   attention::v1::SessionConfig config;
//   config.set_num_layers(32);
//   config.set_kv_heads(8);
//   config.set_head_size(128);
//   auto session = client.CreateSession(config);
//   if (!session.ok()) return session.status();
//   for (int64_t layer = 0; layer < 32; ++layer) {  // the prompt
//     absl::StatusOr<int64_t> length =
//         session->Append(layer, key, value);  // (8, n, 128) each
//     if (!length.ok()) return length.status();
//   }
//   for (int64_t layer = 0; layer < 32; ++layer) {  // each new token
//     absl::StatusOr<attention::AttendResult> result =
//         session->Step(layer, new_key, new_value, query);  // (32, 1, 128)
//     if (!result.ok()) return result.status();
//     std::span<const float> output = result->output.elements<float>();
//   }
//
// Several sequences, in one message for a layer:
//
//   std::vector<attention::StepItem> items;
//   for (attention::ClientSession& sequence : sequences) {
//     items.push_back({&sequence, layer, key_of(sequence), value_of(sequence),
//                      query_of(sequence)});
//   }
//   for (const auto& result : client.Step(items)) {
//     if (!result.ok()) ...  // this item's alone
//   }
//
// Lengths. A ClientSession knows how long each layer is, from what the server
// answered to it, and appends only where that is still so. Else nothing is
// appended: ABORTED, and ConflictLength() of the status is the length that the
// layer has. It is up to the caller then what to do; Refresh() takes over the
// server's lengths.
//
// Trying again. Every append has a request id, by which the server knows it
// again. Where a call fails without an answer (DEADLINE_EXCEEDED, CANCELLED,
// UNAVAILABLE), nobody knows whether its tokens were appended. To append the
// same tokens to the same layer with the same ClientSession once more is safe:
// they are appended once, also where they are so many that they go in several
// calls. Other tokens get ABORTED if the first ones are there.
//
// The client itself tries again by the rules of docs/retries.md, as client.h
// says: every call where the server has refused it before doing anything, and
// all but forks where the connection was lost before the answer. Where the
// first try of an append still runs at the server (APPEND_UNDER_WAY), the
// client tries again from time to time within the timeout, until it knows what
// that came to. Where a stream on which Step() and Attend() send has ended
// between messages, as that of a server that drains, the message goes on
// another one at once.
//
// Leases. While a ClientSession lives, the client renews the session's lease:
// it asks for the session when nothing has used it for about a third of the
// lease. That is one thread per client, which begins with the first session.
// Once the server knows the session no more, every call fails with NOT_FOUND,
// without asking. A session with the same id is another one, which this object
// never touches: it names the `incarnation` of its own in every call.
//
// The destructor stops renewing, and does nothing else: the session lives on
// until its lease is over, and OpenSession() finds it. Delete() ends it.
//
// Windows. With `retain_window` in the configuration layers that look back no
// further than a window release the tokens before it, and are asked with
// `window.left` below it. Queries of many new tokens see what those release
// only in the Step() that appends them.
//
// Memory: as for Compute() (client.h). Keys, values, queries and masks are sent
// from where they are and must stay as they are until the call returns.
//
// Threads: a ClientSession may be used by any number of threads at once, but
// for moving and destroying it. While an append to a layer is under way,
// another one to it fails with ABORTED.
#ifndef ATTENTION_SESSION_H_
#define ATTENTION_SESSION_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "attention/client.h"
#include "attention/tensor.h"
#include "attention/v1/attention.pb.h"
#include "attention/v1/session.pb.h"

namespace attention {

namespace internal {
class SessionClient;
class SessionState;
class ShardCalls;
}  // namespace internal

// Tokens [begin, end) of a sequence.
struct TokenRange {
  int64_t begin = 0;
  int64_t end = 0;

  friend bool operator==(const TokenRange&, const TokenRange&) = default;
};

// How queries are attended to, by the rules of attention.v1.AttendRequest.
struct AttendOptions {
  // Broadcast to (1, Hq, S, T - mask_begin). As ComputeRequest::mask.
  std::optional<TensorSpan> mask = {};
  // (S, k) or (Hq, S, k). As ComputeRequest::indices.
  std::optional<TensorSpan> indices = {};
  // (Hq, S). As ComputeRequest::sinks.
  std::optional<TensorSpan> sinks = {};
  // Without `causal` queries are the last tokens of the sequence
  // (CAUSAL_BOTTOM_RIGHT); `layout`, `query_heads`, `kv_heads` and
  // `return_present` must be left out.
  v1::AttentionOptions options = {};
  // Every query sees every token, but for what `mask` and `options` hide.
  bool not_causal = false;
  // The token of the mask's first column: a multiple of 256, at most the first
  // token that a query sees.
  int64_t mask_begin = 0;
  // Memory for the elements of the answer, as ComputeRequest::outputs; of that,
  // `present_key` and `present_value` are ignored.
  ComputeOutputs outputs = {};
};

// The answer; what was not asked for is absent. Without a query `output` has no
// elements.
struct AttendResult {
  Tensor output;  // (Hq, S, Dv)
  std::optional<Tensor> log_sum_exp;
  std::optional<Tensor> scores;
  // Of a Step(): of all its items together.
  v1::Timing timing;
  // The layer's length: what was attended to.
  int64_t length = 0;
};

// A handle of one session. Movable, not copyable; one that was moved from may
// only be destroyed and assigned to. Several may be open of one session: each
// knows only its own appends. May outlive the client that made it.
//
// (Its name is not Session: an embedded server has a class of this name.)
class ClientSession {
 public:
  ClientSession(ClientSession&& other) noexcept;
  ClientSession& operator=(ClientSession&& other) noexcept;
  ~ClientSession();

  const std::string& id() const;
  // Tells the session from others that had or will have its id
  // (attention.v1.Session).
  uint64_t incarnation() const;
  // With every default filled in.
  const v1::SessionConfig& config() const;
  // The tokens of a layer, as far as this object knows; -1 if the session has
  // no such layer.
  int64_t length(int64_t layer = 0) const;

  // Adds tokens to a layer: `key` is (Hkv, n, D), `value` (Hkv, n, Dv), or
  // nothing where the session stores none. Returns the layer's length.
  //
  // More than 8 MiB are sent in several calls, one after another, each of which
  // is done whole or not at all. If one fails, those before it stay: length()
  // counts their tokens, and the status says how many they are. The caller may
  // append the same tokens once more, all of them: what is there is not sent
  // again. Or truncate; or append something else, which goes behind those that
  // are there.
  absl::StatusOr<int64_t> Append(int64_t layer, const TensorSpan& key,
                                 const std::optional<TensorSpan>& value,
                                 const CallOptions& options = {});

  // Attends to all tokens that a layer has when the call begins, whoever has
  // appended them. `query` is (Hq, S, D), of the type that the session stores.
  absl::StatusOr<AttendResult> Attend(int64_t layer, const TensorSpan& query,
                                      const AttendOptions& attend = {},
                                      const CallOptions& options = {}) const;

  // The same without blocking, as Client::ComputeAsync(): with a future, which
  // does not block when it is destroyed, or a callback, which is called once,
  // on a thread of the library's or this one, and must not wait for
  // asynchronous calls. The memory of query, mask and outputs must stay until
  // then, the object need not. Slower than Attend(), since it opens a stream of
  // its own.
  std::future<absl::StatusOr<AttendResult>> AttendAsync(
      int64_t layer, const TensorSpan& query, const AttendOptions& attend = {},
      const CallOptions& options = {}) const;
  void AttendAsync(
      int64_t layer, const TensorSpan& query, const AttendOptions& attend,
      const CallOptions& options,
      std::function<void(absl::StatusOr<AttendResult>)> done) const;

  // Appends, then attends to all tokens, the new ones too, in one message: both
  // or, on an error, neither, but for an answer that does not fit into
  // `attend.outputs`: then the tokens are appended, and length() counts them.
  // What is larger than a message that the server takes must be appended
  // before.
  absl::StatusOr<AttendResult> Step(int64_t layer, const TensorSpan& key,
                                    const std::optional<TensorSpan>& value,
                                    const TensorSpan& query,
                                    const AttendOptions& attend = {},
                                    const CallOptions& options = {});

  // A new session with the tokens of this one, which takes no memory for them
  // until the two part. An empty id: the server chooses one.
  absl::StatusOr<ClientSession> Fork(const std::string& id = "",
                                     const CallOptions& options = {}) const;
  // `count` of them, at most 128: all or none.
  absl::StatusOr<std::vector<ClientSession>> ForkMany(
      int count, const CallOptions& options = {}) const;

  // Forgets the tokens of every layer from `length` on. INVALID_ARGUMENT, and
  // nothing is changed, if a layer is shorter; FAILED_PRECONDITION
  // (TOKENS_RELEASED) if one with a window would lack tokens of it.
  absl::Status Truncate(int64_t length, const CallOptions& options = {});

  // Takes over the lengths that the server has.
  absl::Status Refresh(const CallOptions& options = {});

  // Ends the session. OK also if it has ended before.
  absl::Status Delete(const CallOptions& options = {});

 private:
  friend class internal::SessionClient;
  friend class internal::ShardCalls;
  ClientSession(std::shared_ptr<internal::SessionClient> client,
                std::shared_ptr<internal::SessionState> state);
  void Release();

  std::shared_ptr<internal::SessionClient> client_;
  std::shared_ptr<internal::SessionState> state_;
};

// A part of Client::Step(): an append where it has a key, an attend where it
// has a query, or both, as ClientSession::Step().
struct StepItem {
  // Of the client that steps.
  ClientSession* session = nullptr;
  int64_t layer = 0;
  std::optional<TensorSpan> key = {};
  std::optional<TensorSpan> value = {};
  std::optional<TensorSpan> query = {};
  AttendOptions attend = {};
};

}  // namespace attention

#endif  // ATTENTION_SESSION_H_
