// Which calls come in, and when: within a budget of bytes, within a queue that
// is bounded in time, and until draining begins.
//
// A call's life here:
//   Enter()    its headers have come. Refused at once if it would wait too
//              long; else it waits, unread, until there is memory for it.
//   Admitted() its body may be read: the Ticket holds the memory for it.
//   Ticket     follows what the call holds and does, and gives everything back
//              when it is destroyed.
// A stream goes on being read while it works: docs/decisions/0013 says what is
// believed of it.
//
// Who bounds what. Every byte that a call makes the server hold is charged to
// its ticket before it is allocated, all tickets stay within `max_bytes`. A
// message whose size is not known is charged by what its connection receives
// (upload.h, Tick()); who then is one too many is sent away. A reserve is kept
// from large calls, so that small ones are served whatever the large ones hold,
// and connections with many calls make way for those with few.
//
// Tenants. Each may have limits of its own, on bytes and on work per second.
// Where calls have to wait, tenants take turns by weight: the next one in is of
// the tenant that has been let in for the least work in proportion. What is
// foretold of a call's wait takes of others no more than they will have had by
// then. Within a tenant all is as if it were alone.
#ifndef ATTENTION_SERVER_ADMISSION_ADMISSION_H_
#define ATTENTION_SERVER_ADMISSION_ADMISSION_H_

#include <array>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/admission/cost_model.h"
#include "server/admission/stream_pace.h"
#include "server/admission/upload.h"
#include "server/auth/tenant.h"

namespace attention::server {

// What a call's bytes are.
enum class MemoryKind : uint8_t {
  kRequest,  // the message as gRPC received it
  kTensors,  // its tensors, copied out of it
  kAnswer,
  kScratch,  // what computing takes beside
  kHeaders,  // its headers, and what every call takes
};
inline constexpr size_t kMemoryKinds = 5;

class Admission {
 public:
  struct Settings {
    // All as in Options.
    int64_t max_bytes = 0;
    int64_t max_request_bytes = 0;
    int64_t max_chunk_bytes = 0;
    absl::Duration max_queue = absl::InfiniteDuration();
    int64_t threads = 1;
    double min_upload_rate = 0;  // bytes per second
    double min_answer_rate = 0;
    absl::Duration stall_grace = absl::Seconds(10);
    // Bytes received so far on the connection of a peer; nothing if that can
    // not be told. Called with a lock held: must not call back.
    std::function<std::optional<int64_t>(const std::string& peer)>
        received_bytes;
  };

  // A call that comes in. Its functions are called on any thread and, but for
  // Hold(), without any lock; they must not block.
  class Entrant;
  class Ticket;

  struct Request {
    // The size of the message, if the caller has announced it.
    std::optional<int64_t> bytes;
    absl::Time deadline = absl::InfiniteFuture();
    std::string peer = {};
    // Held from here on, until the call is refused or its ticket is gone.
    int64_t header_bytes = 0;
    // Null: the one without a name and limits.
    TenantPtr tenant = {};
  };

  Admission(const Settings& settings, CostModel& costs);
  ~Admission();
  Admission(const Admission&) = delete;
  Admission& operator=(const Admission&) = delete;

  // Calls Admitted() or Refused() of `entrant`, once, now or later.
  void Enter(Entrant* entrant, const Request& request);
  // Takes back a call that waits. False if it does not: then one of the two
  // functions was called or is about to be.
  bool Withdraw(Entrant* entrant);

  // What is no call's comes out of the same budget: bodies and answers over
  // HTTP. Holds `bytes` for a tenant in place of `before`, which it held so
  // before. False, and nothing changes, where all of this would be more than
  // max_outside_bytes(), that of a tenant with an id more than half of them or
  // than `tenant_max_bytes`, or where calls leave no room for it now. To hold
  // less always succeeds.
  bool HoldOutside(int tenant, int64_t tenant_max_bytes, int64_t before,
                   int64_t bytes);
  // Half of the budget: what is held outside calls becomes calls, for which the
  // other half is.
  int64_t max_outside_bytes() const { return settings_.max_bytes / 2; }

  // Looks after time: reads that take long, answers that are not taken,
  // deadlines. `transport_bytes` is what the network layer holds, measured; 0
  // if that can not be told. Returns how long until it wants to be called
  // again. Not thread-safe with itself.
  absl::Duration Tick(absl::Time now, int64_t transport_bytes);

  // Whether Tick() would use `transport_bytes`.
  bool WantsTransportBytes() const;
  // Waits until the next Tick() is due: for `pause`, or less if reads begin
  // after none were under way. False once StopTicking() was called.
  bool WaitForTick(absl::Duration pause);
  void StopTicking();

  // Ends the calls that are between two messages: they have nothing to finish.
  void EndAwaiting();
  // Likewise; from here on calls are refused, those that wait too.
  void Drain();
  // Waits until draining and no call is in, or the deadline: that of the latest
  // SetDeadline(), also while waiting. False at the deadline.
  bool WaitUntilIdle();
  // Waits, for as long as it takes, until no call is in: for when the network
  // layer has ended all calls, and what they set going ends by itself.
  void WaitUntilEmpty();
  void SetDeadline(absl::Time deadline);

  struct Snapshot {
    std::array<int64_t, kMemoryKinds> bytes{};
    // Of kTensors, what is charged for messages that are still being read.
    int64_t reading_bytes = 0;
    // HoldOutside()
    int64_t outside_bytes = 0;
    int64_t waiting_calls = 0;
    int64_t calls = 0;  // with a ticket
    double queued_seconds = 0;
    bool draining = false;
  };
  Snapshot snapshot() const;
  // Calls that are in or wait.
  int64_t calls() const;
  // What the calls of a tenant hold, by its id.
  int64_t tenant_bytes(int tenant) const;

  // All bytes that calls transferred, for CostModel::RecordTotals().
  int64_t transferred_bytes() const;

 private:
  static constexpr size_t kRanks = 48;

  struct Entry;
  struct Peer;
  struct Share;
  using Entries = std::list<Entry>;
  using Peers = std::map<std::string, Peer>;
  using Shares = std::map<int, Share>;
  using Lock = std::unique_lock<std::mutex>;

  // All with the mutex held; those that are given the lock let go of it to call
  // an entrant.
  absl::Status Check(const Entry& entry, Lock& lock);
  absl::Status CheckShare(const Entry& entry) const;
  double SecondsAhead(const Entry& entry, double seconds) const;
  double SecondsInside(const Entry& entry, double seconds, double own) const;
  absl::Duration TimeFor(double seconds) const;
  bool MayStart(const Entry& entry);
  bool TooLate(const Entry& entry) const;
  int64_t WaitingBytes() const;
  int64_t busy_inside() const;
  int64_t LargeLimit() const;
  bool MayWait(const Entry& entry) const;
  bool HasRoom(const Entry& entry) const;
  Entry* OneTooManyWaiting(const Entry& entry);
  void TakeOut(Entry& entry, Entries& out);
  static bool ShareHolds(const Entry& entry, int64_t more);
  bool ShareHasRoom(const Entry& entry) const;
  int64_t BytesToRead(const Entry& entry) const;
  void Charge(Entry& entry, double seconds);
  absl::Status Foresee(Entry& entry, double seconds, double at_once,
                       double work) const;
  void MessageDone(const Entry& entry, int64_t bytes);
  void LookAtStream(Entry& entry, absl::Time now);
  void ForgetShares(absl::Time now);
  void Forget(Peers::iterator peer);
  void StartRead(Entry& entry);
  std::optional<int64_t> ReceivedOn(const std::string& peer) const;
  std::optional<int64_t> UnfinishedOn(const Entry& entry) const;
  void ChargeUpload(Entry& entry, int64_t bytes);
  void SetBytes(Entry& entry, MemoryKind kind, int64_t bytes);
  absl::Status Grow(Entry& entry, MemoryKind kind, int64_t bytes);
  void SetSeconds(Entry& entry, double seconds);
  void BeginRead(Entry& entry);
  void EndRead(Entry& entry);
  void LookAtRead(Entry& entry, absl::Time now);
  void MeasureSpeed(absl::Time now);
  // An answer, or a part of one, that is on its way `since` then; likewise.
  absl::Status Untaken(int64_t bytes, absl::Time since, absl::Time now) const;
  // Why the call has to go now; OK: it need not.
  absl::Status Overdue(const Entry& entry, absl::Time now) const;
  Entries::iterator OneTooMany(absl::Time now, int64_t transport_bytes);
  Entries::iterator StreamAboveItsLimit();
  void FreeSoon(const Entry& entry, int64_t* transport_bytes);
  Entry* StalledStream(absl::Time now);
  void ExpelAwaiting(absl::Time now, Lock& lock);
  void EndAwaiting(Lock& lock);
  bool HasWaitingWithoutRoom(absl::Time now) const;
  Entry* LateToWait(absl::Time now);
  Entry* NextToRead();
  Entry* NextOf(Share& share, int64_t few, bool* blocked);
  void AdmitWaiting(Lock& lock);
  void Refuse(Entry& entry, absl::Status status, Lock& lock);
  void Expel(Entry& entry, absl::Status status, absl::Time now, Lock& lock);
  void Release(Entries::iterator position);

  const Settings settings_;
  const int64_t reserve_;
  const Upload::Settings uploads_;
  const StreamPace::Settings streams_;
  CostModel& costs_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::condition_variable tick_;
  // All guarded by mutex_.
  Peers peers_;     // those with calls here
  Shares shares_;   // of tenants by id: those with calls here, and some others
  Entries inside_;  // with a ticket
  std::vector<Share*> turns_;  // of NextToRead(); has room for all shares
  int64_t waiting_calls_ = 0;  // not read yet, of all shares
  // That of the share whose call was let in last, as it was then: whose calls
  // begin to wait has been let in for no less.
  double share_time_ = 0;
  std::array<int64_t, kMemoryKinds> bytes_{};
  int64_t total_bytes_ = 0;
  int64_t outside_bytes_ = 0;          // of total_bytes_, HoldOutside()
  std::map<int, int64_t> outside_of_;  // of those, each tenant's by id
  int64_t unknown_bytes_ = 0;  // of total_bytes_, uploads of unknown size
  int64_t excess_bytes_ = 0;   // of the network layer, above what is charged
  int64_t young_reads_ = 0;
  int64_t awaiting_calls_ = 0;  // inside
  bool room_wanted_ = false;    // some call was refused more, since Tick()
  int64_t busy_calls_ = 0;      // inside, with seconds to go
  // Thread-seconds, as foretold, that are worked off in a second: as many as
  // there are threads, if nothing else takes the cores. Measured from
  // speed_since_ on, while calls wait for others to be worked off.
  double speed_;
  absl::Time speed_since_;
  double done_seconds_ = 0;
  int64_t done_calls_ = 0;
  bool held_back_ = false;        // some call was, since speed_since_
  bool measuring_speed_ = false;  // some call was shortly before, too
  int64_t transferred_bytes_ = 0;
  absl::Time next_waiting_look_;
  absl::Time next_stream_expulsion_;
  bool ticker_idle_ = false;
  bool tick_wanted_ = false;
  bool stop_ticking_ = false;
  int64_t arrivals_ = 0;
  int64_t last_arrivals_ = 0;  // at the last tick
  bool draining_ = false;
  absl::Time deadline_ = absl::InfiniteFuture();
};

// A call's place inside. Movable; a moved-from or default one is empty. The
// functions of an empty ticket do nothing. Thread-compatible.
class Admission::Ticket {
 public:
  Ticket() = default;
  Ticket(Ticket&& other) noexcept { *this = std::move(other); }
  Ticket& operator=(Ticket&& other) noexcept;
  ~Ticket() { Release(); }

  // The message came, of so many bytes. May refuse to let it stay.
  absl::Status ReadDone(int64_t bytes);
  // A call that takes one message after another begins anew: it holds nothing
  // but its headers and is about to read a message, which need not come before
  // `deadline`. Until it comes, ReadDone(), the call may be sent away: when it
  // is late, when memory is short and when draining begins. An error: it must
  // go now.
  absl::Status AwaitNext(absl::Time deadline);
  // Holds so many bytes of a kind from here on. More than before may be
  // refused, and then nothing changes.
  absl::Status Hold(MemoryKind kind, int64_t bytes);
  // What the call will take in all, in thread-seconds and in multiply-adds, now
  // that that is known. Refused if it can not end before its deadline, would
  // wait too long, or if its tenant has used up its work.
  absl::Status Expect(double seconds, double work);

  // A call whose messages follow one another while it works is a stream. What
  // it will take in all, and at most at once. Only what has come stands before
  // other calls (Arrived()), not what its client has still to send.
  absl::Status ExpectStream(double seconds, double seconds_at_once,
                            double work);
  // The next message is awaited: from here on its client may be too slow. It
  // came, of so many bytes; 0: the end of the stream did.
  void AwaitMessage();
  void MessageCame(int64_t bytes);
  // So many thread-seconds of work have come, or were worked off.
  void Arrived(double seconds);
  void WorkedOff(double seconds);
  // A part of the answer, of so many bytes, is on its way; 0: it was taken.
  void Answering(int64_t bytes);

  // The answer, of so many bytes, is on its way.
  void Sending(int64_t bytes);
  // An error is.
  void Failing();
  // The entrant may be destroyed from here on: it is not called any more. What
  // it holds stays charged.
  void Leave();
  void Release();

 private:
  friend class Admission;
  Admission* admission_ = nullptr;
  Entries::iterator entry_;
};

class Admission::Entrant {
 public:
  virtual void Admitted(Ticket ticket) = 0;
  virtual void Refused(absl::Status status) = 0;
  // The call has to go: it came or is taken too slowly, or memory is needed.
  // Comes again if the call is still there once its status should have been
  // taken, as an answer is. May come after the call has ended, but not after it
  // let go of its ticket, but for one that is under way: so it is called
  // between Hold() and Drop().
  virtual void Expel(absl::Status status) = 0;
  // Between the two the entrant must not be destroyed. Hold() is called with a
  // lock held.
  virtual void Hold() = 0;
  virtual void Drop() = 0;

 protected:
  ~Entrant() = default;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_ADMISSION_ADMISSION_H_
