#include "server/shared_memory/closer.h"

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>

namespace attention::server {

struct Closer::State {
  void Run() {
    std::unique_lock<std::mutex> lock(mutex);
    while (true) {
      some.wait(lock, [&] { return ended || !waiting.empty(); });
      if (waiting.empty()) return;
      {
        const Descriptor next = std::move(waiting.front());
        waiting.pop_front();
        lock.unlock();
      }
      lock.lock();
      --behind;
    }
  }

  std::mutex mutex;
  std::condition_variable some;
  // All guarded by mutex.
  std::deque<Descriptor> waiting;
  size_t behind = 0;  // the one that is being closed included
  bool ended = false;
};

Closer::Closer() : state_(std::make_shared<State>()) {
  std::thread([state = state_] { state->Run(); }).detach();
}

Closer::~Closer() {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  state_->ended = true;
  state_->some.notify_one();
}

void Closer::Close(std::vector<Descriptor> descriptors) {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  for (Descriptor& descriptor : descriptors) {
    if (!descriptor.valid()) continue;
    state_->waiting.push_back(std::move(descriptor));
    ++state_->behind;
  }
  state_->some.notify_one();
}

void Closer::Close(Descriptor descriptor) {
  std::vector<Descriptor> one;
  one.push_back(std::move(descriptor));
  Close(std::move(one));
}

size_t Closer::behind() const {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  return state_->behind;
}

}  // namespace attention::server
