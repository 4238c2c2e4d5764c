#include "attention/sharded_session.h"

#include <algorithm>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "attention/internal/patience.h"
#include "attention/internal/retries.h"
#include "attention/internal/session_messages.h"
#include "attention/internal/shard_calls.h"
#include "attention/internal/shard_mask.h"
#include "attention/internal/shard_merge.h"
#include "attention/internal/shard_status.h"
#include "attention/internal/tensor_digest.h"
#include "attention/internal/unary_call.h"
#include "attention/status.h"
#include "kernel/shard.h"

namespace attention {
namespace {

using internal::DigestOf;
using internal::LengthConflictOf;
using internal::MaskColumns;
using internal::OfShard;
using internal::ShardCalls;
using internal::ShardMerge;
using internal::Twice;
using internal::UnknownLayer;
using internal::WithReason;
using internal::WrongField;

// An append of more bytes to one server is sent in several calls.
constexpr size_t kAppendBytes = size_t{8} << 20;

// Whether the tokens that a shard keeps are out of reach, now or for good.
bool IsLost(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsNotFound(status) ||
         absl::IsDeadlineExceeded(status);
}

// Whether a connection was lost before the answer, or could not be made.
bool HasNoAnswer(const absl::Status& status) {
  return absl::IsUnavailable(status) && ErrorReason(status).empty();
}

// Whether an append that ended so may have been done all the same.
bool MayBeDone(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) ||
         absl::IsCancelled(status) || absl::IsUnknown(status) ||
         absl::IsInternal(status);
}

// Runs work(0) to work(count - 1), each on a thread of its own but for one,
// and waits for all.
void RunAll(size_t count, const std::function<void(size_t)>& work) {
  std::vector<std::jthread> threads;  // joined also where work(0) throws
  threads.reserve(count);
  for (size_t i = 1; i < count; ++i) {
    try {
      threads.emplace_back(work, i);
    } catch (const std::system_error&) {
      work(i);
    }
  }
  if (count > 0) work(0);
}

// What `make` gives for each of `count` servers, which are all asked at once,
// in the time that `options` give to all of them together. If one fails that is
// the error, and `undo` says whether the sessions of the others are deleted, as
// far as there is time.
absl::StatusOr<std::vector<ClientSession>> MakeAll(
    size_t count, const CallOptions& options, bool undo,
    const std::function<
        absl::StatusOr<ClientSession>(size_t, const CallOptions&)>& make) {
  const absl::Time begun = absl::Now();
  std::vector<std::optional<absl::StatusOr<ClientSession>>> made(count);
  RunAll(count, [&](size_t i) {
    made[i].emplace(make(i, internal::InTimeLeft(options, begun)));
  });
  const auto failed = std::find_if(
      made.begin(), made.end(), [](const auto& each) { return !each->ok(); });
  std::vector<ClientSession> sessions;
  for (auto& each : made) {
    if (each->ok()) sessions.push_back(**std::move(each));
  }
  if (failed == made.end()) return sessions;
  if (undo) {
    RunAll(sessions.size(), [&](size_t i) {
      static_cast<void>(
          sessions[i].Delete(internal::InTimeLeft(options, begun)));
    });
  }
  return OfShard(failed - made.begin(), (*failed)->status());
}

bool IsPowerOfTwo(int64_t number) {
  return number > 0 && (number & (number - 1)) == 0;
}

absl::StatusOr<ShardLayout> LayoutOf(size_t clients,
                                     const ShardedOptions& sharding) {
  if (clients < 1 || clients > ShardLayout::kMaxCount) {
    return WrongField("clients", absl::StrCat("got ", clients, ", wanted 1 to ",
                                              ShardLayout::kMaxCount));
  }
  if (!IsPowerOfTwo(sharding.blocks_per_run) ||
      sharding.blocks_per_run > ShardLayout::kMaxRunBlocks) {
    return WrongField("blocks_per_run",
                      absl::StrCat("got ", sharding.blocks_per_run,
                                   ", wanted a power of two up to ",
                                   ShardLayout::kMaxRunBlocks));
  }
  return ShardLayout{.count = static_cast<int64_t>(clients),
                     .run = sharding.blocks_per_run * kKeyBlock};
}

// What servers say of their sessions is used to compute with.
absl::Status CheckShards(const std::vector<ClientSession>& shards) {
  const v1::SessionConfig& first = shards[0].config();
  for (size_t i = 0; i < shards.size(); ++i) {
    const v1::SessionConfig& config = shards[i].config();
    if (config.num_layers() < 1 || config.num_layers() > 1024 ||
        config.kv_heads() < 1 || config.head_size() < 1 ||
        config.value_head_size() < 1) {
      return OfShard(static_cast<int64_t>(i),
                     absl::InternalError("malformed answer: a session without "
                                         "layers, heads or a size"));
    }
    if (config.num_layers() != first.num_layers() ||
        config.kv_heads() != first.kv_heads() ||
        config.head_size() != first.head_size() ||
        config.value_head_size() != first.value_head_size() ||
        config.data_type() != first.data_type() ||
        config.value_is_key_prefix() != first.value_is_key_prefix()) {
      return OfShard(static_cast<int64_t>(i),
                     absl::FailedPreconditionError(
                         "its session has another configuration than the "
                         "first server's"));
    }
  }
  return absl::OkStatus();
}

// The layout is in it: with another one there is no such session.
std::string IdOf(const std::string& id, size_t shard,
                 const ShardLayout& layout) {
  return id.empty() ? ""
                    : absl::StrCat(id, "/", shard, "of", layout.count, "x",
                                   layout.run / kKeyBlock);
}

// (Hkv, n, size) with all of its bytes.
absl::Status CheckTokens(absl::string_view field, const TensorSpan& tensor,
                         int64_t heads, int64_t tokens, int64_t size) {
  if (tensor.shape.size() != 3 || tensor.shape[0] != heads ||
      tensor.shape[1] != tokens || tensor.shape[2] != size) {
    return WrongField(
        absl::StrCat(field, ".shape"),
        absl::StrCat("got (", absl::StrJoin(tensor.shape, ", "), "), wanted (",
                     heads, ", ", tokens, ", ", size, ")"));
  }
  if (!BytesFit(tensor.type, tensor.shape, tensor.bytes.size())) {
    return WrongField(absl::StrCat(field, ".data"),
                      absl::StrCat("got ", tensor.bytes.size(),
                                   " bytes, wanted those of the shape"));
  }
  return absl::OkStatus();
}

// Calls that have been started, and how each ended.
class Answers {
 public:
  explicit Answers(size_t count)
      : answers_(count, absl::StatusOr<grpc::ByteBuffer>(
                            absl::UnknownError("not asked"))) {}

  std::function<void(absl::StatusOr<grpc::ByteBuffer>)> Begin(size_t number) {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++running_;
    return [this, number](absl::StatusOr<grpc::ByteBuffer> answer) {
      const std::lock_guard<std::mutex> lock(mutex_);
      answers_[number] = std::move(answer);
      // Under the lock: once it is let go this object may be gone.
      if (--running_ == 0) ended_.notify_all();
    };
  }
  void Wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    ended_.wait(lock, [&] { return running_ == 0; });
  }
  // After Wait().
  absl::StatusOr<grpc::ByteBuffer>& operator[](size_t number) {
    return answers_[number];
  }

 private:
  std::mutex mutex_;
  std::condition_variable ended_;
  int64_t running_ = 0;
  std::vector<absl::StatusOr<grpc::ByteBuffer>> answers_;
};

}  // namespace

class ShardedSession::State {
 public:
  State(const ShardLayout& layout, std::vector<ClientSession> shards)
      : layout_(layout),
        shards_(std::move(shards)),
        settling_(shards_.size()),
        owed_(shards_.size()),
        layers_(static_cast<size_t>(shards_[0].config().num_layers())) {
    TakeLengths();
  }

  const ShardLayout& layout() const { return layout_; }
  const std::vector<ClientSession>& shards() const { return shards_; }

  int64_t length(int64_t layer) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (layer < 0 || layer >= static_cast<int64_t>(layers_.size())) return -1;
    return layers_[static_cast<size_t>(layer)].length;
  }

  // The shard's tokens among the first `length` of the sequence.
  std::vector<TokenRange> RangesOf(int64_t shard, int64_t length) const {
    std::vector<TokenRange> ranges;
    const int64_t own = layout_.TokensOf(shard, length);
    for (int64_t token = 0; token < own; token += layout_.run) {
      const int64_t begin = layout_.PlaceOf(shard, token);
      ranges.push_back({begin, begin + std::min(layout_.run, own - token)});
    }
    return ranges;
  }

  absl::StatusOr<int64_t> Append(int64_t layer, const TensorSpan& key,
                                 const TensorSpan* value,
                                 const CallOptions& options);
  absl::StatusOr<ShardedResult> Attend(int64_t layer, const TensorSpan& query,
                                       const ShardedAttendOptions& attend,
                                       const CallOptions& options) const;
  absl::Status Truncate(int64_t length, const CallOptions& options);
  absl::Status Refresh(const CallOptions& options);
  absl::Status Delete(const CallOptions& options);
  // Makes the servers' sessions those of the sequence, with nothing more: for a
  // fork. Then the lengths of the layers.
  absl::StatusOr<std::vector<int64_t>> Whole(const CallOptions& options);
  // Before anybody else knows the object.
  void SetLengths(const std::vector<int64_t>& lengths) {
    for (size_t i = 0; i < lengths.size(); ++i) layers_[i].length = lengths[i];
  }

 private:
  // An append that some servers have and others may not.
  struct Unfinished {
    int64_t tokens = 0;
    size_t digest = 0;
  };
  struct Layer {
    int64_t length = 0;
    bool appending = false;
    std::optional<Unfinished> unfinished;
  };
  // The part of an append that goes to one server, in pieces, as tokens of the
  // append.
  struct ShardPart {
    size_t shard = 0;
    std::vector<TokenRange> pieces;
    bool changed = false;  // the server has, or may have, tokens of it
    absl::Status status;
  };

  std::vector<ShardPart> PartsOf(int64_t begin, int64_t tokens,
                                 size_t token_bytes) const;
  absl::Status BeginAppend(int64_t layer, int64_t tokens,
                           const std::function<size_t()>& digest,
                           int64_t* begin, bool* again);
  void RunPart(int64_t layer, const TensorSpan& key, const TensorSpan* value,
               int64_t begin, bool again, const CallOptions& options,
               ShardPart& part);
  absl::Status Settle(size_t shard, const CallOptions& options);
  absl::Status SettleAll(const CallOptions& options);
  void TakeLengths();

  const ShardLayout layout_;
  std::vector<ClientSession> shards_;
  // Of each server: held while it is asked to truncate, before the mutex.
  std::deque<internal::Turns> settling_;
  mutable std::mutex mutex_;
  // Both guarded by mutex_. The length that a shard is still to be truncated
  // to, in tokens of the sequence.
  std::vector<std::optional<int64_t>> owed_;
  std::vector<Layer> layers_;
};

// With mutex_ held, or before anybody else knows the object. The sequence ends
// where the first shard's next token would be. Of an append that is not done
// nothing is taken: it shows as a whole.
void ShardedSession::State::TakeLengths() {
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    if (layers_[layer].appending || layers_[layer].unfinished) continue;
    int64_t length = ShardLayout::kMaxLength;
    for (size_t shard = 0; shard < shards_.size(); ++shard) {
      const int64_t own = std::clamp<int64_t>(
          shards_[shard].length(static_cast<int64_t>(layer)), 0,
          ShardLayout::kMaxLength);
      length =
          std::min(length, layout_.PlaceOf(static_cast<int64_t>(shard), own));
    }
    layers_[layer].length = length;
  }
}

// Cuts at the ends of runs, and where a call would be too large.
std::vector<ShardedSession::State::ShardPart> ShardedSession::State::PartsOf(
    int64_t begin, int64_t tokens, size_t token_bytes) const {
  const auto most = std::max<int64_t>(
      1, static_cast<int64_t>(kAppendBytes / std::max<size_t>(1, token_bytes)));
  std::vector<ShardPart> parts;
  int64_t next = 0;
  while (next < tokens) {
    const int64_t place = begin + next;
    const auto shard = static_cast<size_t>(place / layout_.run % layout_.count);
    auto part = std::find_if(
        parts.begin(), parts.end(),
        [&](const ShardPart& found) { return found.shard == shard; });
    if (part == parts.end()) {
      part = parts.emplace(parts.end());
      part->shard = shard;
    }
    const int64_t end = std::min(
        {tokens, next + most, next + layout_.run - place % layout_.run});
    part->pieces.push_back({next, end});
    next = end;
  }
  return parts;
}

// Claims the layer. `again`: the same append has been begun before.
absl::Status ShardedSession::State::BeginAppend(
    int64_t layer, int64_t tokens, const std::function<size_t()>& digest,
    int64_t* begin, bool* again) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (layer < 0 || layer >= static_cast<int64_t>(layers_.size())) {
    return UnknownLayer(layer, layers_.size());
  }
  Layer& found = layers_[static_cast<size_t>(layer)];
  if (found.appending) {
    return LengthConflictOf(
        absl::StrCat("layer ", layer,
                     ": another append to it is under way in this client"),
        found.length);
  }
  *again = found.unfinished.has_value();
  if (*again && (found.unfinished->tokens != tokens ||
                 found.unfinished->digest != digest())) {
    return WithReason(
        absl::AbortedError(absl::StrCat(
            "layer ", layer, ": an append of ", found.unfinished->tokens,
            " tokens at ", found.length,
            " is unfinished: append the same tokens again, or truncate")),
        "APPEND_UNFINISHED", "length", absl::StrCat(found.length));
  }
  found.appending = true;
  *begin = found.length;
  return absl::OkStatus();
}

// Truncates a server that could not be reached when the sequence was.
absl::Status ShardedSession::State::Settle(size_t shard,
                                           const CallOptions& options) {
  const absl::Time begun = absl::Now();
  const auto turn = settling_[shard].Take(internal::Patience::Of(options));
  if (!turn) {
    return options.stop.stop_requested()
               ? absl::CancelledError("the call was cancelled")
               : absl::DeadlineExceededError(
                     "another call still truncates the session");
  }
  std::optional<int64_t> owed;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    owed = owed_[shard];
  }
  if (!owed) return absl::OkStatus();
  const absl::Status status = shards_[shard].Truncate(
      layout_.TokensOf(static_cast<int64_t>(shard), *owed),
      internal::InTimeLeft(options, begun));
  if (!status.ok()) return status;
  const std::lock_guard<std::mutex> lock(mutex_);
  // Another truncation may have come meanwhile.
  if (owed_[shard] == owed) owed_[shard].reset();
  return absl::OkStatus();
}

absl::Status ShardedSession::State::SettleAll(const CallOptions& options) {
  const absl::Time begun = absl::Now();
  std::vector<absl::Status> ended(shards_.size());
  RunAll(shards_.size(), [&](size_t i) {
    ended[i] = Settle(i, internal::InTimeLeft(options, begun));
  });
  for (size_t i = 0; i < ended.size(); ++i) {
    if (!ended[i].ok()) return OfShard(static_cast<int64_t>(i), ended[i]);
  }
  return absl::OkStatus();
}

void ShardedSession::State::RunPart(int64_t layer, const TensorSpan& key,
                                    const TensorSpan* value, int64_t begin,
                                    bool again, const CallOptions& options,
                                    ShardPart& part) {
  const absl::Time begun = absl::Now();
  part.status = Settle(part.shard, options);
  if (!part.status.ok()) return;
  ClientSession& session = shards_[part.shard];
  // What the server has of this append already.
  const int64_t had = session.length(layer) -
                      layout_.TokensOf(static_cast<int64_t>(part.shard), begin);
  int64_t done = 0;
  if (had != 0 && !(again && had > 0)) {
    part.status = LengthConflictOf(
        absl::StrCat("layer ", layer, ": the server has ",
                     session.length(layer), " tokens, which are ",
                     had < 0 ? -had : had, had < 0 ? " fewer" : " more",
                     " than the sequence has there"),
        begin);
    return;
  }
  part.changed = had > 0;
  for (const TokenRange& piece : part.pieces) {
    done += piece.end - piece.begin;
    if (done <= had) continue;
    const absl::StatusOr<int64_t> length =
        ShardCalls::AppendRange(session, layer, key, value, piece,
                                internal::InTimeLeft(options, begun));
    if (!length.ok()) {
      part.status = length.status();
      part.changed = part.changed || MayBeDone(part.status);
      return;
    }
    part.changed = true;
  }
}

absl::StatusOr<int64_t> ShardedSession::State::Append(
    int64_t layer, const TensorSpan& key, const TensorSpan* value,
    const CallOptions& options) {
  const v1::SessionConfig& config = shards_[0].config();
  const int64_t tokens = key.shape.size() == 3 ? key.shape[1] : -1;
  absl::Status status =
      CheckTokens("key", key, config.kv_heads(), std::max<int64_t>(tokens, 0),
                  config.head_size());
  if (status.ok() && config.value_is_key_prefix() && value != nullptr) {
    status =
        WrongField("value", "got it, wanted none: the session stores none");
  }
  if (status.ok() && !config.value_is_key_prefix()) {
    status = value == nullptr ? WrongField("value", "missing")
                              : CheckTokens("value", *value, config.kv_heads(),
                                            tokens, config.value_head_size());
  }
  if (!status.ok()) return status;
  int64_t begin = 0;
  bool again = false;
  status = BeginAppend(
      layer, tokens, [&] { return DigestOf(key, value); }, &begin, &again);
  if (!status.ok()) return status;

  const size_t bytes =
      key.bytes.size() + (value == nullptr ? 0 : value->bytes.size());
  std::vector<ShardPart> parts = PartsOf(
      begin, tokens, bytes / static_cast<size_t>(std::max<int64_t>(1, tokens)));
  RunAll(parts.size(), [&](size_t i) {
    RunPart(layer, key, value, begin, again, options, parts[i]);
  });

  const ShardPart* failed = nullptr;
  bool changed = false;
  for (const ShardPart& part : parts) {
    if (failed == nullptr && !part.status.ok()) failed = &part;
    changed = changed || part.changed;
  }
  std::optional<Unfinished> unfinished;
  if (failed != nullptr && changed) {
    unfinished = {.tokens = tokens, .digest = DigestOf(key, value)};
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  Layer& found = layers_[static_cast<size_t>(layer)];
  found.appending = false;
  found.unfinished = unfinished;
  if (failed == nullptr) {
    found.length = begin + tokens;
    return found.length;
  }
  return OfShard(static_cast<int64_t>(failed->shard), failed->status,
                 unfinished ? "; the append is unfinished: append the same "
                              "tokens again, or truncate"
                            : "");
}

absl::StatusOr<ShardedResult> ShardedSession::State::Attend(
    int64_t layer, const TensorSpan& query, const ShardedAttendOptions& attend,
    const CallOptions& options) const {
  const int64_t length = this->length(layer);
  if (length < 0) {
    return UnknownLayer(layer, layers_.size());
  }
  AttendOptions whole = attend;
  if (attend.allow_missing) whole.options.set_return_log_sum_exp(true);
  absl::StatusOr<ShardMerge> merge =
      ShardMerge::Plan(shards_[0].config(), layout_, length, query, whole);
  if (!merge.ok()) return internal::Detailed(merge.status());

  // What is added once is not asked for. An empty sequence is asked of the
  // first server, which finds what else is wrong.
  AttendOptions of_shard = whole;
  of_shard.options.clear_sinks();
  of_shard.sinks.reset();
  of_shard.options.clear_return_log_sum_exp();
  of_shard.outputs = {};
  const size_t count = shards_.size();
  std::vector<v1::Shard> places(count);
  std::vector<AttendOptions> asked(count, of_shard);
  std::vector<std::unique_ptr<MaskColumns>> masks(count);
  for (size_t i = 0; i < count; ++i) {
    places[i].set_index(static_cast<int64_t>(i));
    places[i].set_count(layout_.count);
    places[i].set_blocks_per_run(layout_.run / kKeyBlock);
    places[i].set_total_length(length);
    if (whole.mask && count > 1 && !whole.mask->shape.empty()) {
      masks[i] = std::make_unique<MaskColumns>(*whole.mask, layout_,
                                               static_cast<int64_t>(i));
      asked[i].mask = masks[i]->span;
    }
  }
  const auto is_asked = [&](size_t shard) {
    return shard == 0 || merge->RunsOf(static_cast<int64_t>(shard)) > 0;
  };
  Answers answers(count);
  const absl::Time begun = absl::Now();
  // With `allow_missing` nobody waits for a server that cannot be reached: its
  // connection is made anew at once, and once only.
  const Twice twice = attend.allow_missing ? Twice::kHarmful : Twice::kHarmless;
  for (int tries = 0; tries < (attend.allow_missing ? 2 : 1); ++tries) {
    const CallOptions in_time = internal::InTimeLeft(options, begun);
    for (size_t i = 0; i < count; ++i) {
      if (!is_asked(i) || (tries > 0 && !HasNoAnswer(answers[i].status()))) {
        continue;
      }
      ShardCalls::AttendAsync(shards_[i], layer, query, asked[i], places[i],
                              twice, in_time, answers.Begin(i));
    }
    answers.Wait();
  }

  absl::Status lost;
  std::vector<TokenRange> missing;
  bool any = false;
  bool all_late = true;  // of those that are lost
  for (size_t i = 0; i < count; ++i) {
    if (!is_asked(i)) continue;
    const auto shard = static_cast<int64_t>(i);
    absl::Status status = answers[i].status();
    if (status.ok()) status = merge->Take(shard, *answers[i]);
    if (status.ok()) {
      any = true;
      continue;
    }
    if (!IsLost(status)) return OfShard(shard, status);
    if (lost.ok()) lost = OfShard(shard, status);
    all_late = all_late && absl::IsDeadlineExceeded(status);
    merge->Miss(shard);
    const std::vector<TokenRange> ranges = RangesOf(shard, length);
    missing.insert(missing.end(), ranges.begin(), ranges.end());
  }
  std::sort(missing.begin(), missing.end(),
            [](const TokenRange& a, const TokenRange& b) {
              return a.begin < b.begin;
            });
  // Not the servers are to blame where no one of them had time enough.
  if (!lost.ok() && !any && all_late) return lost;
  if (!lost.ok() && (!attend.allow_missing || !any)) {
    return internal::ShardLost(layer, missing, lost);
  }
  absl::StatusOr<AttendResult> merged = merge->Finish(attend.outputs);
  if (!merged.ok()) return merged.status();
  ShardedResult result;
  static_cast<AttendResult&>(result) = *std::move(merged);
  result.missing = std::move(missing);
  return result;
}

absl::Status ShardedSession::State::Truncate(int64_t length,
                                             const CallOptions& options) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (size_t i = 0; i < layers_.size(); ++i) {
      if (layers_[i].appending) {
        return LengthConflictOf(
            absl::StrCat("layer ", i,
                         ": an append to it is under way in this client"),
            layers_[i].length);
      }
      if (length < 0 || length > layers_[i].length) {
        return WrongField(
            "length",
            absl::StrCat("got ", length, ", wanted 0 to ", layers_[i].length,
                         ", the length of layer ", i));
      }
    }
    for (Layer& layer : layers_) {
      layer.length = length;
      layer.unfinished.reset();
    }
    for (auto& owed : owed_) owed = std::min(owed.value_or(length), length);
  }
  return SettleAll(options);
}

absl::StatusOr<std::vector<int64_t>> ShardedSession::State::Whole(
    const CallOptions& options) {
  absl::Status status = SettleAll(options);
  if (!status.ok()) return status;
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<int64_t> lengths;
  lengths.reserve(layers_.size());
  for (const Layer& layer : layers_) {
    if (layer.appending || layer.unfinished) {
      return WithReason(
          absl::AbortedError(absl::StrCat(
              "layer ", lengths.size(), ": an append to it is ",
              layer.appending ? "under way in this client"
                              : "unfinished: append the same tokens again, or "
                                "truncate")),
          "APPEND_UNFINISHED", "length", absl::StrCat(layer.length));
    }
    lengths.push_back(layer.length);
  }
  return lengths;
}

absl::Status ShardedSession::State::Refresh(const CallOptions& options) {
  const absl::Time begun = absl::Now();
  // Else tokens that were given up would come back.
  const absl::Status settled = SettleAll(options);
  if (!settled.ok()) return settled;
  std::vector<absl::Status> ended(shards_.size());
  RunAll(shards_.size(), [&](size_t i) {
    ended[i] = shards_[i].Refresh(internal::InTimeLeft(options, begun));
  });
  for (size_t i = 0; i < ended.size(); ++i) {
    if (!ended[i].ok()) return OfShard(static_cast<int64_t>(i), ended[i]);
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  TakeLengths();
  return absl::OkStatus();
}

absl::Status ShardedSession::State::Delete(const CallOptions& options) {
  const absl::Time begun = absl::Now();
  std::vector<absl::Status> ended(shards_.size());
  RunAll(shards_.size(), [&](size_t i) {
    ended[i] = shards_[i].Delete(internal::InTimeLeft(options, begun));
  });
  for (size_t i = 0; i < ended.size(); ++i) {
    if (!ended[i].ok()) return OfShard(static_cast<int64_t>(i), ended[i]);
  }
  return absl::OkStatus();
}

ShardedSession::ShardedSession(std::unique_ptr<State> state)
    : state_(std::move(state)) {}
ShardedSession::ShardedSession(ShardedSession&& other) noexcept = default;
ShardedSession& ShardedSession::operator=(ShardedSession&& other) noexcept =
    default;
ShardedSession::~ShardedSession() = default;

absl::StatusOr<ShardedSession> ShardedSession::Create(
    std::span<const Client> clients, const v1::SessionConfig& config,
    const ShardedOptions& sharding, const CallOptions& options) {
  const absl::StatusOr<ShardLayout> layout = LayoutOf(clients.size(), sharding);
  if (!layout.ok()) return layout.status();
  for (const int64_t window : config.retain_window()) {
    if (window == 0) continue;
    return WrongField("config.retain_window",
                      absl::StrCat("got ", window,
                                   ", wanted none: servers that share a "
                                   "sequence keep all of its tokens"));
  }
  // Sessions that were asked for by name may have been there before.
  absl::StatusOr<std::vector<ClientSession>> shards =
      MakeAll(clients.size(), options, /*undo=*/sharding.id.empty(),
              [&](size_t i, const CallOptions& in_time) {
                return clients[i].CreateSession(
                    config, IdOf(sharding.id, i, *layout), in_time);
              });
  if (!shards.ok()) return shards.status();
  const absl::Status status = CheckShards(*shards);
  if (!status.ok()) return status;
  return ShardedSession(std::make_unique<State>(*layout, *std::move(shards)));
}

absl::StatusOr<ShardedSession> ShardedSession::Open(
    std::span<const Client> clients, const ShardedOptions& sharding,
    const CallOptions& options) {
  const absl::StatusOr<ShardLayout> layout = LayoutOf(clients.size(), sharding);
  if (!layout.ok()) return layout.status();
  if (sharding.id.empty()) return WrongField("id", "missing");
  absl::StatusOr<std::vector<ClientSession>> shards = MakeAll(
      clients.size(), options, /*undo=*/false,
      [&](size_t i, const CallOptions& in_time) {
        return clients[i].OpenSession(IdOf(sharding.id, i, *layout), in_time);
      });
  if (!shards.ok()) return shards.status();
  const absl::Status status = CheckShards(*shards);
  if (!status.ok()) return status;
  return ShardedSession(std::make_unique<State>(*layout, *std::move(shards)));
}

std::vector<std::string> ShardedSession::ids() const {
  std::vector<std::string> ids;
  for (const ClientSession& shard : state_->shards()) ids.push_back(shard.id());
  return ids;
}

const v1::SessionConfig& ShardedSession::config() const {
  return state_->shards()[0].config();
}

int64_t ShardedSession::length(int64_t layer) const {
  return state_->length(layer);
}

std::vector<TokenRange> ShardedSession::TokensOf(int64_t shard,
                                                 int64_t layer) const {
  if (shard < 0 || shard >= state_->layout().count) return {};
  return state_->RangesOf(shard, std::max<int64_t>(0, length(layer)));
}

absl::StatusOr<int64_t> ShardedSession::Append(
    int64_t layer, const TensorSpan& key,
    const std::optional<TensorSpan>& value, const CallOptions& options) {
  return state_->Append(layer, key, value ? &*value : nullptr, options);
}

absl::StatusOr<ShardedResult> ShardedSession::Attend(
    int64_t layer, const TensorSpan& query, const ShardedAttendOptions& attend,
    const CallOptions& options) const {
  return state_->Attend(layer, query, attend, options);
}

absl::StatusOr<ShardedSession> ShardedSession::Fork(
    const std::string& id, const CallOptions& options) const {
  const absl::Time begun = absl::Now();
  const absl::StatusOr<std::vector<int64_t>> lengths = state_->Whole(options);
  if (!lengths.ok()) return lengths.status();
  const std::vector<ClientSession>& shards = state_->shards();
  absl::StatusOr<std::vector<ClientSession>> forks =
      MakeAll(shards.size(), internal::InTimeLeft(options, begun),
              /*undo=*/true, [&](size_t i, const CallOptions& in_time) {
                return shards[i].Fork(IdOf(id, i, state_->layout()), in_time);
              });
  if (!forks.ok()) return forks.status();
  const absl::Status status = CheckShards(*forks);
  if (!status.ok()) return status;
  auto state = std::make_unique<State>(state_->layout(), *std::move(forks));
  state->SetLengths(*lengths);
  return ShardedSession(std::move(state));
}

absl::Status ShardedSession::Truncate(int64_t length,
                                      const CallOptions& options) {
  return state_->Truncate(length, options);
}

absl::Status ShardedSession::Refresh(const CallOptions& options) {
  return state_->Refresh(options);
}

absl::Status ShardedSession::Delete(const CallOptions& options) {
  return state_->Delete(options);
}

}  // namespace attention
