#include "server/line_writer.h"

#include <poll.h>
#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstring>
#include <mutex>
#include <utility>

namespace attention::server {
namespace {

using Clock = std::chrono::steady_clock;

// How often a writer without room looks whether it was told to stop.
constexpr std::chrono::milliseconds kSlice{100};
// Where poll() promises room that write() does not find.
constexpr int kRetryMs = 10;
constexpr absl::string_view kCut = "...";

// Whether there is room, or an error that write() will name, within `limit`.
bool HasRoom(int fd, Clock::duration limit) {
  pollfd entry = {fd, POLLOUT, 0};
  const auto ms = std::chrono::ceil<std::chrono::milliseconds>(limit).count();
  return poll(&entry, 1, static_cast<int>(std::max<int64_t>(0, ms))) > 0;
}

// Whether a failed write() may be tried again; waits a little if it must.
bool MayRetry(int error) {
  if (error == EINTR) return true;
  if (error != EAGAIN && error != EWOULDBLOCK) return false;
  poll(nullptr, 0, kRetryMs);
  return true;
}

// The process's signals are for others, and SIGPIPE is for nobody: write() says
// EPIPE as well.
void BlockSignals() {
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, nullptr);
}

}  // namespace

// Lines between the callers and the thread.
//
// Invariants, under mutex_:
// 1. The ring holds whole lines with their ends: used_ bytes from head_ on.
// 2. passed_ counts the bytes ever taken out, so passed_ + used_ those ever put
//    in. Lines dropped for want of room stand at mark_ on that scale, for as
//    long as untold_ > 0: they are told when passed_ has reached it.
class LineWriter::Queue {
 public:
  explicit Queue(Settings settings)
      : settings_(std::move(settings)),
        capacity_(std::max(settings_.buffer_bytes, kMaxLineBytes + 1)),
        ring_(std::make_unique_for_overwrite<char[]>(capacity_)) {}

  void Put(absl::string_view line) noexcept {
    const bool cut = line.size() > kMaxLineBytes;
    if (cut) line = line.substr(0, kMaxLineBytes - kCut.size());
    const size_t bytes = line.size() + (cut ? kCut.size() : 0) + 1;
    std::lock_guard<std::mutex> lock(mutex_);
    if (bytes > capacity_ - used_) return Drop(1);
    Append(line);
    if (cut) Append(kCut);
    Append("\n");
    changed_.notify_one();
  }

  void CountDropped() noexcept {
    std::lock_guard<std::mutex> lock(mutex_);
    Drop(1);
    changed_.notify_one();
  }

  int64_t dropped() const noexcept { return dropped_; }

  // The thread's life.
  void Run() {
    BlockSignals();
    Batch batch;
    while (Take(batch)) {
      const size_t written = WriteOut(batch.bytes());
      Settle(batch, written);
    }
    std::lock_guard<std::mutex> lock(mutex_);
    ended_ = true;
    stopped_.notify_all();
  }

  // Whether the thread has ended. Called once.
  bool Stop() {
    std::unique_lock<std::mutex> lock(mutex_);
    stop_ = Clock::now();
    stopping_ = true;
    changed_.notify_one();
    const auto limit = absl::ToChronoMilliseconds(settings_.flush_time);
    return stopped_.wait_for(lock, limit + 2 * kSlice,
                             [this] { return ended_; });
  }

 private:
  // What one write() takes.
  struct Batch {
    char text[PIPE_BUF];
    size_t size = 0;
    // Dropped lines that the text tells of; 0 if it is lines of the queue.
    int64_t told = 0;

    absl::string_view bytes() const { return {text, size}; }
  };

  // The following four hold mutex_.

  void Append(absl::string_view bytes) noexcept {
    const size_t end = (head_ + used_) % capacity_;
    const size_t first = std::min(bytes.size(), capacity_ - end);
    std::memcpy(ring_.get() + end, bytes.data(), first);
    std::memcpy(ring_.get(), bytes.data() + first, bytes.size() - first);
    used_ += bytes.size();
  }

  void Drop(int64_t lines) noexcept {
    dropped_ += lines;
    if (untold_ == 0) mark_ = passed_ + used_;
    untold_ += lines;
  }

  // After a failed write, drops wait until a line has been written: to tell
  // them would fail as well.
  bool MustTell() const {
    return untold_ > 0 && passed_ >= mark_ && !failing_ &&
           settings_.dropped_line != nullptr;
  }

  // As many whole lines as fit.
  void TakeLines(Batch& batch) {
    const size_t most = std::min(used_, sizeof(batch.text));
    const size_t first = std::min(most, capacity_ - head_);
    std::memcpy(batch.text, ring_.get() + head_, first);
    std::memcpy(batch.text + first, ring_.get(), most - first);
    batch.size = absl::string_view(batch.text, most).rfind('\n') + 1;
    head_ = (head_ + batch.size) % capacity_;
    used_ -= batch.size;
    passed_ += batch.size;
    // An almost idle log stays in the pages it has touched.
    if (used_ == 0) head_ = 0;
  }

  // Waits for something to write; false when told to stop and nothing is left.
  bool Take(Batch& batch) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock,
                  [this] { return stopping_ || used_ > 0 || MustTell(); });
    batch.told = 0;
    if (MustTell()) {
      batch.told = std::exchange(untold_, 0);
      lock.unlock();
      Describe(batch);
      return true;
    }
    if (used_ == 0) return false;
    TakeLines(batch);
    return true;
  }

  void Describe(Batch& batch) {
    batch.size = 0;
    try {
      const std::string line = settings_.dropped_line(batch.told);
      batch.size = std::min(line.size(), kMaxLineBytes);
      std::memcpy(batch.text, line.data(), batch.size);
      batch.text[batch.size++] = '\n';
    } catch (...) {
      // No memory: Settle() counts the lines as not told.
      batch.size = 0;
    }
  }

  // How many of `bytes` were written. What is left of the others is lost.
  size_t WriteOut(absl::string_view bytes) {
    if (torn_ && WriteSome("\n") == 0) return 0;
    torn_ = false;
    size_t written = 0;
    while (written < bytes.size()) {
      const size_t count = WriteSome(bytes.substr(written));
      if (count == 0) break;
      written += count;
    }
    // The next line must not continue half a line.
    torn_ = written > 0 && bytes[written - 1] != '\n';
    return written;
  }

  // 0 if it failed, or is out of time.
  size_t WriteSome(absl::string_view bytes) {
    for (;;) {
      if (!AwaitRoom()) return 0;
      const ssize_t count = write(settings_.fd, bytes.data(), bytes.size());
      if (count > 0) {
        progress_ = Clock::now();
        return static_cast<size_t>(count);
      }
      if (count < 0 && !MayRetry(errno)) return 0;
    }
  }

  // False when told to stop and out of time.
  bool AwaitRoom() {
    for (;;) {
      const Clock::duration left = TimeLeft();
      if (left <= Clock::duration::zero()) return false;
      if (HasRoom(settings_.fd, std::min<Clock::duration>(left, kSlice))) {
        return true;
      }
    }
  }

  Clock::duration TimeLeft() {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!stopping_) return Clock::duration::max();
    const auto end = stop_ + absl::ToChronoNanoseconds(settings_.flush_time);
    const auto stalled = std::max(stop_, progress_) +
                         absl::ToChronoNanoseconds(settings_.stall_time);
    return std::min(end, stalled) - Clock::now();
  }

  // Accounts for the part of `batch` that was not written.
  void Settle(const Batch& batch, size_t written) {
    const bool whole = written == batch.size && written > 0;
    std::lock_guard<std::mutex> lock(mutex_);
    failing_ = !whole;
    if (whole) return;
    if (batch.told > 0) {
      if (untold_ == 0) mark_ = passed_;
      untold_ += batch.told;
    } else {
      const absl::string_view lost = batch.bytes().substr(written);
      Drop(std::count(lost.begin(), lost.end(), '\n'));
    }
  }

  const Settings settings_;
  const size_t capacity_;
  const std::unique_ptr<char[]> ring_;

  std::mutex mutex_;
  std::condition_variable changed_, stopped_;
  // Guarded by mutex_.
  size_t head_ = 0, used_ = 0;
  uint64_t passed_ = 0, mark_ = 0;
  int64_t untold_ = 0;
  bool failing_ = false, stopping_ = false, ended_ = false;
  Clock::time_point stop_;
  // Written under mutex_, read anywhere.
  std::atomic<int64_t> dropped_{0};
  // Of the thread alone.
  Clock::time_point progress_ = Clock::now();
  bool torn_ = false;
};

LineWriter::LineWriter(Settings settings)
    : queue_(std::make_shared<Queue>(std::move(settings))),
      thread_([queue = queue_] { queue->Run(); }) {}

LineWriter::~LineWriter() {
  if (queue_->Stop()) {
    thread_.join();
  } else {
    thread_.detach();
  }
}

void LineWriter::Write(absl::string_view line) noexcept { queue_->Put(line); }

void LineWriter::CountDropped() noexcept { queue_->CountDropped(); }

int64_t LineWriter::dropped() const noexcept { return queue_->dropped(); }

bool WriteWithin(int fd, absl::string_view text,
                 absl::Duration limit) noexcept {
  const auto end = Clock::now() + absl::ToChronoNanoseconds(limit);
  while (!text.empty()) {
    const Clock::duration left = end - Clock::now();
    if (left <= Clock::duration::zero()) return false;
    if (!HasRoom(fd, left)) continue;
    const ssize_t count =
        write(fd, text.data(), std::min<size_t>(text.size(), PIPE_BUF));
    if (count > 0) text.remove_prefix(static_cast<size_t>(count));
    if (count < 0 && !MayRetry(errno)) return false;
  }
  return true;
}

}  // namespace attention::server
