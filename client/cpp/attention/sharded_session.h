// One sequence over several servers: for contexts that are longer than the
// memory of one. docs/sessions.md tells more.
//
//   std::vector<attention::Client> clients;  // one for each server
//   auto sequence = attention::ShardedSession::Create(clients, config);
//   if (!sequence.ok()) return sequence.status();
//   absl::StatusOr<int64_t> length = sequence->Append(layer, key, value);
//   absl::StatusOr<attention::ShardedResult> result =
//       sequence->Attend(layer, query);
//
// In CMake: attention::client_sharded.
//
// How it works. Tokens are dealt out to the servers in runs of blocks
// (attention.v1.Shard); each server keeps its own in an ordinary session. The
// query goes to all servers, each computes the partials of its runs, and this
// process merges them, and adds sinks: the answer has the bits of one server
// that has all tokens.
//
// Lengths and trying again. As a ClientSession, this object knows how long each
// layer is, and appends only where that is still so. An append may cover
// several servers: all of its tokens show at once, when every server has its
// own. If it fails before, the layer has the length it had, and is attended to
// as before; the append is said to be unfinished. To append the same tokens
// with the same object once more is safe: what is there is not appended again.
// Other tokens are refused (ABORTED, APPEND_UNFINISHED) until that is done, or
// Truncate() gives the tokens up.
//
// A server that is lost. Attend() fails with UNAVAILABLE (SHARD_LOST), whose
// MissingTokens() are the tokens that nobody answered for; or, with
// `allow_missing`, answers over the others, as if the missing ones were masked,
// and says which were missing. A server is lost that cannot be reached, that
// does not answer within the timeout, or that knows the session no more: its
// tokens are gone then. What any other error says of one server is the error of
// the call. Where no server at all answers within the timeout, it is
// DEADLINE_EXCEEDED. Each server is asked again by the rules of docs/retries.md
// before it counts as lost; but with `allow_missing` one that cannot be reached
// is asked again once, at once.
//
// Time. All servers are asked at once, and CallOptions::timeout is that of a
// call as a whole. With `allow_missing` an answer without a server that hangs
// comes when the timeout is over.
//
// Memory: this process holds the partials of one Attend() while it merges them,
// S * Hq * (Dv + 2) numbers for each run; no more is taken from any server.
// Long runs mean fewer, and are spread less evenly over the servers. Keys,
// values, queries and masks are lent, as for ClientSession.
//
// Threads: as ClientSession. Every call to several servers but Attend() uses a
// thread for each, which has ended when it returns.
#ifndef ATTENTION_SHARDED_SESSION_H_
#define ATTENTION_SHARDED_SESSION_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "attention/client.h"
#include "attention/session.h"
#include "attention/tensor.h"
#include "attention/v1/session.pb.h"

namespace attention {

struct ShardedOptions {
  // What the ids of the sessions begin with: that of shard i of N is
  // "ID/iofNxR", R being blocks_per_run. Empty: each server chooses, and Open()
  // cannot find the sequence.
  std::string id = {};
  // Blocks of 256 tokens, a power of two up to 2^20.
  int64_t blocks_per_run = 16;
};

struct ShardedAttendOptions : AttendOptions {
  // Answer also where servers are lost, unless all are; and return
  // log_sum_exp.
  bool allow_missing = false;
};

// The answer; `timing` is the longest of all servers'.
struct ShardedResult : AttendResult {
  // Tokens that nobody answered for, ascending; none without `allow_missing`.
  std::vector<TokenRange> missing;
};

// The tokens that a SHARD_LOST status is about, ascending; none of other
// statuses.
std::vector<TokenRange> MissingTokens(const absl::Status& status);

// Movable, not copyable; one that was moved from may only be destroyed and
// assigned to. May outlive the clients.
class ShardedSession {
 public:
  // Makes a session at each client's server, in this order: at least one
  // client, at most 1024. With an id, sessions that are there already are taken
  // over, as Open() does. If one server fails without an id, the others'
  // sessions are deleted, as far as there is time; what is left ends with its
  // lease.
  static absl::StatusOr<ShardedSession> Create(
      std::span<const Client> clients, const v1::SessionConfig& config,
      const ShardedOptions& sharding = {}, const CallOptions& options = {});

  // The sequence of that id, created over the same servers in the same order,
  // with the same blocks_per_run: NOT_FOUND otherwise.
  static absl::StatusOr<ShardedSession> Open(std::span<const Client> clients,
                                             const ShardedOptions& sharding,
                                             const CallOptions& options = {});

  ShardedSession(ShardedSession&& other) noexcept;
  ShardedSession& operator=(ShardedSession&& other) noexcept;
  ~ShardedSession();

  // Those of the servers' sessions.
  std::vector<std::string> ids() const;
  const v1::SessionConfig& config() const;
  // The tokens of a layer, as far as this object knows; -1 if there is no such
  // layer.
  int64_t length(int64_t layer = 0) const;
  // The tokens of a layer that a server keeps, ascending.
  std::vector<TokenRange> TokensOf(int64_t shard, int64_t layer = 0) const;

  // As ClientSession::Append(); returns the layer's length.
  absl::StatusOr<int64_t> Append(int64_t layer, const TensorSpan& key,
                                 const std::optional<TensorSpan>& value,
                                 const CallOptions& options = {});

  // Attends to the tokens of length(layer). Not with options.return_scores, nor
  // with mask_begin.
  absl::StatusOr<ShardedResult> Attend(int64_t layer, const TensorSpan& query,
                                       const ShardedAttendOptions& attend = {},
                                       const CallOptions& options = {}) const;

  // A new sequence with the tokens of this one, at the same servers. If one
  // fails the others' forks are deleted, as far as they can be reached in time;
  // what is left ends with its lease. ABORTED while an append is under way or
  // unfinished.
  absl::StatusOr<ShardedSession> Fork(const std::string& id = "",
                                      const CallOptions& options = {}) const;

  // Forgets the tokens of every layer from `length` on; INVALID_ARGUMENT if a
  // layer is shorter. The tokens are given up whether or not all servers can be
  // reached: those that could not be are asked again before the next append.
  absl::Status Truncate(int64_t length, const CallOptions& options = {});

  // Takes over the lengths that the servers have: of each layer as many tokens
  // as are there without a gap. Layers with an append of this object that is
  // under way or unfinished keep theirs.
  absl::Status Refresh(const CallOptions& options = {});

  // Ends the sessions of all servers. The first error of those that were not
  // ended.
  absl::Status Delete(const CallOptions& options = {});

 private:
  class State;
  explicit ShardedSession(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace attention

#endif  // ATTENTION_SHARDED_SESSION_H_
