#include "attention/internal/workers.h"

#include <condition_variable>
#include <deque>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

namespace attention::internal {
namespace {

// More copy no faster.
constexpr int kMostWorkers = 4;

class Workers {
 public:
  void Run(std::function<void()> work) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (idle_ > work_.size() || !StartAnother()) {
        if (workers_ > 0) {
          work_.push_back(std::move(work));
          some_.notify_one();
          return;
        }
      } else {
        work_.push_back(std::move(work));
        return;
      }
    }
    work();
  }

 private:
  // False: there are enough, or there can be no more. With the lock.
  bool StartAnother() {
    if (workers_ == kMostWorkers) return false;
    try {
      std::thread([this] { Work(); }).detach();
    } catch (const std::system_error&) {
      return false;
    }
    ++workers_;
    return true;
  }

  [[noreturn]] void Work() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      ++idle_;
      some_.wait(lock, [&] { return !work_.empty(); });
      --idle_;
      std::function<void()> work = std::move(work_.front());
      work_.pop_front();
      lock.unlock();
      work();
      work = nullptr;  // What it holds may be much.
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable some_;
  // All guarded by mutex_.
  std::deque<std::function<void()>> work_;
  size_t idle_ = 0;
  int workers_ = 0;
};

}  // namespace

void RunOnWorker(std::function<void()> work) {
  static auto* const workers = new Workers;
  workers->Run(std::move(work));
}

}  // namespace attention::internal
