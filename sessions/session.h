// A session: the keys and values of one sequence, for each layer of a model,
// which stay between calls.
//
// Readers take a LayerSnapshot and append through an Append:
//
//   absl::StatusOr<Append> append = session->BeginAppend(layer, {.tokens = 1});
//   if (!append.ok()) return append.status();
//   WriteRows(*append, ...);  // of each head; session_writer.h
//   absl::Status status = std::move(*append).Publish();
//   absl::StatusOr<LayerSnapshot> keys = session->Read(layer);
//
// Invariants, beside those of Page:
//   1. A snapshot is references to pages and a length. Whatever happens to the
//      session afterwards (append, truncate, fork, delete, eviction), its rows
//      stay as they are, and in memory.
//   2. An append is seen whole or not at all. It is seen only if the layer has
//      the length then that it had when the append began.
//   3. At most one append per layer is under way. One that is not published
//      leaves nothing behind.
//   4. Rows are appended in place only where the page's claimed rows end with
//      the layer; else the page is copied.
//   5. A fork copies no rows: it shares the tables of pages.
//   6. A session that was deleted or has expired is gone: it can be neither
//      read nor changed nor renewed.
//   7. A layer with a window w keeps a suffix of its tokens, which begins with
//      a page. With r tokens to roll back, those before the last w + r of the
//      most tokens that it ever had since it was empty are released when an
//      append is published, whole pages of them; nothing else releases any. So
//      the last min(w, length) tokens are always there.
#ifndef ATTENTION_SESSIONS_SESSION_H_
#define ATTENTION_SESSIONS_SESSION_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/buffer_pool.h"
#include "kernel/key_values.h"
#include "sessions/lease_clock.h"
#include "sessions/memory_account.h"
#include "sessions/page.h"

namespace attention {

// The layer's length, in tokens, that an Aborted error is about; nothing for
// other errors.
std::optional<int64_t> TrueLength(const absl::Status& status);

// Such an error: of a layer of `length` tokens where `expected` were; or
// because of `what`.
absl::Status LengthConflict(int64_t length, int64_t expected);
absl::Status AppendConflict(int64_t length, absl::string_view what);

// The least length that a FailedPrecondition error of Truncate() is about;
// nothing for other errors.
std::optional<int64_t> LeastLength(const absl::Status& status);

// A FailedPrecondition error: a layer's tokens before `first` are released, and
// `what` needs them; and the first token kept that such an error is about.
absl::Status TokensReleased(int64_t first, absl::string_view what);
std::optional<int64_t> FirstToken(const absl::Status& status);

struct SessionConfig {
  int64_t num_layers = 1;
  PageFormat format;
  // How long it lives without being used.
  absl::Duration lease = absl::Seconds(60);
  // Of each layer, the last tokens that a query sees, its own among them; 0:
  // all. Empty: all in every layer.
  std::vector<int64_t> retain_window = {};
  // So many tokens are kept beside those of a window.
  int64_t rollback_tokens = 256;

  // 0 without a window.
  int64_t window(int64_t layer) const {
    return retain_window.empty() ? 0
                                 : retain_window[static_cast<size_t>(layer)];
  }

  friend bool operator==(const SessionConfig&, const SessionConfig&) = default;
};

// A layer as it was when it was read. Cheap to copy; keeps the pages.
class LayerSnapshot {
 public:
  int64_t length() const { return length_; }
  const PageFormat& format() const { return format_; }
  // As SessionConfig::window().
  int64_t window() const { return window_; }
  // The first token that is kept, a multiple of kKeyBlock; 0 without tokens.
  int64_t first_token() const {
    return table_ == nullptr ? 0 : table_->first * kKeyBlock;
  }

  // Tokens [first_token(), length()), which must not be less than none. Refers
  // to the snapshot.
  KeyValueView view() const;

  // Without the tokens from `length` on, which must be at most length(). May be
  // less than first_token().
  LayerSnapshot First(int64_t length) const;

 private:
  friend class Append;
  friend class Session;
  PageFormat format_;
  int64_t window_ = 0;
  int64_t length_ = 0;
  std::shared_ptr<const PageTable> table_;
};

// How much a layer has.
struct LayerExtent {
  int64_t length = 0;
  // The first token that is kept.
  int64_t first_token = 0;
  // The least length above 0 that it can be truncated to: shorter, tokens that
  // the window of the last query covers would be missing. 0 while it has all
  // tokens.
  int64_t least_length = 0;
};

class Append;

// Thread-safe.
class Session : public std::enable_shared_from_this<Session> {
 public:
  struct AppendRequest {
    int64_t tokens = 0;
    // The layer's length now; nothing: whatever it is.
    std::optional<int64_t> expected_length = std::nullopt;
    // Which append this is, so that the same one is not done twice; at most
    // kMaxRequestIdBytes. Empty: not told.
    std::string request_id = {};
  };

  static constexpr size_t kMaxRequestIdBytes = 64;
  // The most layers, and tokens of one layer.
  static constexpr int64_t kMaxLayers = 1024;
  static constexpr int64_t kMaxLength = int64_t{1} << 40;

  // What a session takes without tokens, in bytes.
  static int64_t Bytes(const SessionConfig& config);

  // `pool` has the memory of the pages, which `account` counts. Errors:
  // ResourceExhausted if the account has no room for Bytes(); Internal if the
  // system has no random numbers. Throws std::bad_alloc.
  static absl::StatusOr<std::shared_ptr<Session>> Create(
      const SessionConfig& config, std::shared_ptr<BufferPool> pool,
      std::shared_ptr<MemoryAccount> account, LeaseTime now);

  const SessionConfig& config() const { return config_; }

  // A random number, never 0: no other session has the same, whatever its id.
  uint64_t incarnation() const { return incarnation_; }

  // All errors of the functions below: NotFound if the session is gone;
  // OutOfRange if there is no such layer.

  absl::StatusOr<int64_t> length(int64_t layer) const;
  absl::StatusOr<LayerSnapshot> Read(int64_t layer) const;

  // Keeps room for `request.tokens` more tokens of a layer, which are then
  // written and published through the result. An append that was done already,
  // with the same request id, length and number of tokens, is done() at once.
  //
  // Errors: Aborted with TrueLength() if the layer has another length than
  // expected, if another append of it is under way, or if the request id was
  // used for another append lately; Unavailable if the same append is under way
  // (request id, length and number of tokens): it will be done() or, if that
  // one is given up, this one's to do; ResourceExhausted if the account has no
  // room; InvalidArgument beyond kMaxLength. Throws std::bad_alloc.
  absl::StatusOr<Append> BeginAppend(int64_t layer,
                                     const AppendRequest& request);

  // Forgets the tokens of every layer from `length` on. Errors, and nothing
  // changes: InvalidArgument if one is shorter; FailedPrecondition with
  // LeastLength() where that is more than `length`, unless this is 0. Throws
  // std::bad_alloc.
  absl::Status Truncate(int64_t length);

  // Of every layer, at one time. Errors: NotFound.
  absl::StatusOr<std::vector<LayerExtent>> layers() const;

  // A new session with the same keys and values; those of appends that are
  // under way are not among them. Takes no memory for rows. Other errors as for
  // Create(). Throws std::bad_alloc.
  absl::StatusOr<std::shared_ptr<Session>> Fork(LeaseTime now) const;

  // The lease begins anew. False if the session is gone, or its lease was over.
  bool Renew(LeaseTime now);
  LeaseTime expires() const;
  // Whether it is gone, or its lease was over.
  bool Expired(LeaseTime now) const;

  // A call that uses the session: the lease is renewed now, does not end while
  // the result lives, and begins anew afterwards. Null where Renew() is false.
  // Throws std::bad_alloc.
  std::shared_ptr<Session> Use(LeaseTime now);

  // The session is gone if its lease was over; or in any case. True if it was
  // not gone before, and is now. What nobody reads is freed with the session.
  bool DeleteIfExpired(LeaseTime now);
  bool Delete();

 private:
  friend class Append;
  class CallUse;

  Session(const SessionConfig& config, uint64_t incarnation,
          std::shared_ptr<BufferPool> pool,
          std::shared_ptr<MemoryAccount> account, MemoryCharge charge,
          LeaseTime now);

  struct Done {
    std::string request_id;
    int64_t begin = 0;
    int64_t end = 0;
    bool taken_back = false;  // by Truncate()
  };
  struct Layer {
    int64_t length = 0;
    // Null without tokens.
    std::shared_ptr<const PageTable> table;
    // The append that is under way.
    struct UnderWay {
      std::string request_id;
      int64_t tokens = 0;
    };
    std::optional<UnderWay> under_way;
    // The last appends that told an id, the oldest replaced first.
    std::array<Done, 4> done;
    size_t next_done = 0;
  };

  // With mutex_ held.
  LayerExtent ExtentOf(size_t layer) const;
  absl::Status Check(int64_t layer) const;
  absl::Status CheckTruncate(int64_t length) const;
  absl::Status CheckAppend(const Layer& layer, const AppendRequest& request,
                           std::optional<Done>* done) const;

  // The rest of BeginAppend(), without the lock.
  absl::Status Prepare(Append& append) const;
  void Release(Append& append) const;
  absl::Status Publish(Append& append);
  void GiveUp(Append& append) noexcept;

  const SessionConfig config_;
  const uint64_t incarnation_;
  const std::shared_ptr<BufferPool> pool_;
  const std::shared_ptr<MemoryAccount> account_;
  const MemoryCharge charge_;

  // With lease_mutex_ held.
  bool ExpiredLocked(LeaseTime now) const;
  void RenewLocked(LeaseTime now);
  // The session is gone from here on; if `now` is told, only where its lease
  // was over. True if it was not gone before.
  bool End(std::optional<LeaseTime> now);

  mutable std::mutex lease_mutex_;
  LeaseTime expires_;
  bool lease_ended_ = false;
  int64_t uses_ = 0;

  mutable std::mutex mutex_;
  bool gone_ = false;  // since the lease has ended
  std::vector<Layer> layers_;
};

// Tokens [begin(), end()) of a layer, to be written. Movable; given up when it
// is destroyed before it was published.
class Append {
 public:
  Append(Append&&) = default;
  // Of an append that is under way: give it up first.
  Append& operator=(Append&&) = delete;
  ~Append();

  int64_t begin() const { return begin_; }
  int64_t end() const { return end_; }
  const PageFormat& format() const { return session_->config().format; }

  // Whether it was done before: there is nothing to write, and what was written
  // then is to be found in Read().
  bool done() const { return done_; }

  // Where the rows of token `token` and those after it go, of one head; and how
  // many tokens follow one another there, before end().
  struct Rows {
    std::byte* key = nullptr;
    std::byte* value = nullptr;
    int64_t tokens = 0;
    // One a token, of scaled rows.
    uint8_t* key_scales = nullptr;
    uint8_t* value_scales = nullptr;
  };
  Rows RowsAt(int64_t head, int64_t token) const;

  // The layer as it will be once this is published, and with the tokens that
  // are released then: for who has written all rows. Not of an append that was
  // done before.
  LayerSnapshot Written() const;

  // Shows the tokens to readers. Errors: NotFound if the session is gone;
  // Aborted with TrueLength() if the layer was truncated meanwhile.
  absl::Status Publish() &&;

 private:
  friend class Session;
  Append(std::shared_ptr<Session> session, int64_t layer, int64_t begin,
         int64_t end)
      : session_(std::move(session)), layer_(layer), begin_(begin), end_(end) {}

  std::shared_ptr<Session> session_;  // null once it is over
  int64_t layer_ = 0;
  int64_t begin_ = 0;
  int64_t end_ = 0;
  bool done_ = false;
  std::string request_id_;
  // The layer's, when it began; with the new pages; and without those that are
  // released.
  std::shared_ptr<const PageTable> before_;
  std::shared_ptr<const PageTable> after_;
  std::shared_ptr<const PageTable> kept_;
  // Rows claimed of a page that others may have too.
  std::shared_ptr<Page> claimed_;
};

}  // namespace attention

#endif  // ATTENTION_SESSIONS_SESSION_H_
