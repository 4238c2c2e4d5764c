// What a client shares with a server on its machine: memory that was allocated
// for that, and a pool of areas that other tensors are copied through.
#ifndef ATTENTION_INTERNAL_SHARED_MEMORY_H_
#define ATTENTION_INTERNAL_SHARED_MEMORY_H_

#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "attention/client.h"
#include "attention/connection.h"
#include "attention/internal/memory_file.h"
#include "attention/internal/patience.h"
#include "attention/internal/region_socket.h"

namespace attention::internal {

// The memory is mapped here from the beginning, and registered with the server
// when a call first uses it, again after the server has restarted. Thread-safe;
// no lock is held while the server is asked, and nothing but a call waits for
// its answer. Lives as long as its client or any memory that it allocated. A
// process that is forked off shares nothing: its areas would be those of its
// parent. It takes no lock either, which a thread that it lacks may hold.
class SharedMemory : public std::enable_shared_from_this<SharedMemory> {
 public:
  // Areas in use and unused ones, in bytes. Beyond it, calls send their bytes.
  static constexpr size_t kMostAreaBytes = size_t{1} << 30;
  static constexpr size_t kMostUnusedBytes = size_t{512} << 20;
  // Of one area. Larger requests are streamed: they would cost as much memory
  // again.
  static constexpr size_t kLargestArea = size_t{256} << 20;
  // A larger one is made for the second call that needs its size: for the first
  // one, new memory would cost more than to stream the request.
  static constexpr size_t kLargestAtOnce = size_t{4} << 20;
  // Unused ones are given back after this time.
  static constexpr absl::Duration kIdleTime = absl::Seconds(30);

  // Where elements lie, as the server is told.
  struct Place {
    std::string region;
    int64_t offset = 0;
  };

  // Whatever registers memory.
  struct Registration {
    std::string id;
    // Of the connection that it was registered on, or refused on (id empty).
    int64_t connection = 0;
    // Of a refusal: when it was, and how many regions had been dropped by then.
    absl::Time at = absl::InfinitePast();
    int64_t drops = 0;
  };

  // Memory of one call at a time.
  class Area {
   public:
    std::span<std::byte> bytes() const { return file_->bytes(); }
    const std::string& region() const { return registration_.id; }

   private:
    friend class SharedMemory;
    std::unique_ptr<MemoryFile> file_;
    Registration registration_;
    absl::Time unused_since_;
  };

  explicit SharedMemory(Connection connection)
      : connection_(std::move(connection)) {}
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  // Zeroed memory, aligned to 64 bytes; shared by `memory` where that is
  // possible, which may be null. Throws std::bad_alloc.
  static std::shared_ptr<std::byte> Allocate(
      const std::shared_ptr<SharedMemory>& memory, size_t bytes);

  // Whether there is a connection to share memory over, which is made if need
  // be: asks the server by a call, within `options` and a second.
  bool Connect(const CallOptions& options);
  // The same without a wait: begins to ask if it is not known.
  bool ConnectLater();

  // Of an answer; -1: no limit.
  int64_t max_receive_bytes() const { return connection_.max_receive_bytes(); }

  // Where `bytes` lie in memory of Allocate(), if the server may be told.
  std::optional<Place> Find(std::span<const std::byte> bytes,
                            const Patience& patience);
  // Whether they lie in memory of Allocate().
  bool Allocated(std::span<const std::byte> bytes);

  // An area of at least so many bytes; null: there is none to be had.
  std::unique_ptr<Area> TakeArea(size_t bytes, const Patience& patience);
  // Gives it back. `idle`: the server certainly does not use it any more; else
  // its memory is left to the server.
  void ReturnArea(std::unique_ptr<Area> area, bool idle);

  // The connection that the last places are of; what Lost() is to be told.
  int64_t connection();
  // The server did not know a region of that connection: another server may
  // answer by now. If it happens again and again, nothing is shared for a
  // while.
  void Lost(int64_t connection);
  // A call has used shared memory.
  void Worked();

 private:
  struct Allocation {
    std::unique_ptr<MemoryFile> file;
    Turns turns;
    Registration registration;  // with the turn
  };
  using Areas = std::vector<std::unique_ptr<Area>>;

  void Free(const std::byte* data);
  // By whoever uses what is registered.
  bool Register(const MemoryFile& file, Registration& registration,
                const Patience& patience);
  void Drop(const Registration& registration);
  // Gives back those that have been unused for long, now and again later.
  void Expire();
  void ExpireLater();

  // The rest needs mutex_. Areas that are not needed any more go to `gone`, to
  // be dropped and unmapped without it.
  bool Connected();
  void Disconnect();
  void Answered(const absl::StatusOr<std::string>& address);
  bool Refused(const Registration& registration) const;
  // Whether a call has needed an area of this size before, as far as is known.
  bool KnowsSize(size_t bytes);
  void TakeOldest(Areas& gone);
  void Shrink(size_t unused_bytes, Areas& gone);
  std::shared_ptr<Allocation> AllocationOf(std::span<const std::byte> bytes);

  // Whether this is not a process that was forked off.
  bool IsOwner() const { return getpid() == process_; }

  const Connection connection_;
  const pid_t process_ = getpid();
  std::mutex mutex_;
  // All guarded by mutex_.
  std::shared_ptr<RegionSocket> socket_;  // null: not connected
  int64_t connection_number_ = 0;
  // Until then the server is not asked again whether it shares memory.
  absl::Time ask_after_ = absl::InfinitePast();
  bool asking_ = false;
  int losses_ = 0;  // one after the other
  std::map<const std::byte*, std::shared_ptr<Allocation>> allocations_;
  int64_t drops_ = 0;  // of regions, so far
  // The last area that was refused, and its size.
  Registration refused_area_;
  size_t refused_bytes_ = 0;
  std::deque<size_t> sizes_;  // that calls needed an area of, newest last
  bool expiring_ = false;     // Expire() will be called
  Areas unused_;              // oldest first
  size_t unused_bytes_ = 0;
  size_t area_bytes_ = 0;  // of all areas
};

}  // namespace attention::internal

#endif  // ATTENTION_INTERNAL_SHARED_MEMORY_H_
