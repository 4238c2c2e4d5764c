#include "attention/internal/lease.h"

#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

namespace attention::internal {

struct Lease::Count {
  void Return() {
    const std::lock_guard<std::mutex> lock(mutex);
    if (--lent == 0) returned.notify_all();
  }
  void Wait() {
    std::unique_lock<std::mutex> lock(mutex);
    returned.wait(lock, [this] { return lent == 0; });
  }
  bool WaitFor(std::chrono::milliseconds time) {
    std::unique_lock<std::mutex> lock(mutex);
    return returned.wait_for(lock, time, [this] { return lent == 0; });
  }

  std::mutex mutex;
  std::condition_variable returned;
  int lent = 0;
};

Lease::Lease() : count_(std::make_shared<Count>()) {}

grpc::Slice Lease::Lend(std::span<const std::byte> bytes) {
  // Each slice shares the count: the last one may outlive the lease.
  auto holder = std::make_unique<std::shared_ptr<Count>>(count_);
  {
    const std::lock_guard<std::mutex> lock(count_->mutex);
    ++count_->lent;
  }
  // gRPC only reads it.
  return grpc::Slice(
      const_cast<std::byte*>(bytes.data()), bytes.size(),
      [](void* holder) {
        const std::unique_ptr<std::shared_ptr<Count>> owned(
            static_cast<std::shared_ptr<Count>*>(holder));
        (*owned)->Return();
      },
      holder.release());
}

int Lease::lent() const {
  const std::lock_guard<std::mutex> lock(count_->mutex);
  return count_->lent;
}

void Lease::Wait() const { count_->Wait(); }

bool Lease::WaitFor(std::chrono::milliseconds time) const {
  return count_->WaitFor(time);
}

void Lease::WhenReturned(const std::function<void()>& then) && {
  if (lent() == 0) return then();
  // Rare: a call of which a part waits to be written when it has ended.
  try {
    std::thread([count = count_, then] {
      count->Wait();
      then();
    }).detach();
  } catch (const std::system_error&) {  // No more threads: use this one.
    Wait();
    then();
  }
}

}  // namespace attention::internal
