#include "server/http/work_lane.h"

#include <algorithm>
#include <new>
#include <system_error>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace attention::server {
namespace {

// What a piece of work counts at least, whatever its size.
constexpr int64_t kLeastBytes = 4 << 10;
constexpr double kLeastWeight = 1e-3;

}  // namespace

absl::StatusOr<std::unique_ptr<WorkLane>> WorkLane::Create() {
  std::unique_ptr<WorkLane> lane(new WorkLane());
  try {
    lane->thread_ = std::thread([self = lane.get()] { self->Run(); });
  } catch (const std::system_error& error) {
    return absl::UnavailableError(absl::StrCat(
        "cannot start a thread for calls over HTTP: ", error.what()));
  }
  return lane;
}

WorkLane::~WorkLane() {
  if (!thread_.joinable()) return;
  std::map<int, Turns> dropped;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    dropped.swap(tenants_);
    changed_.notify_all();
  }
  thread_.join();
}

void WorkLane::Post(Work work) {
  // Destroyed without the lock: it may own anything.
  Work late;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (stop_) {
      late = std::move(work);
      return;
    }
    Turns& turns = tenants_[work.tenant->id];
    if (turns.waiting.empty()) turns.had = std::max(turns.had, last_had_);
    turns.waiting.push_back(std::move(work));
    ++waiting_;
    changed_.notify_all();
  }
}

std::optional<WorkLane::Work> WorkLane::TakeExpired(absl::Time now) {
  for (auto& [id, turns] : tenants_) {
    std::deque<Work>& waiting = turns.waiting;
    const auto late =
        std::find_if(waiting.begin(), waiting.end(),
                     [&](const Work& work) { return work.deadline <= now; });
    if (late == waiting.end()) continue;
    Work work = std::move(*late);
    waiting.erase(late);
    --waiting_;
    return work;
  }
  return std::nullopt;
}

WorkLane::Work WorkLane::TakeNext() {
  Turns* next = nullptr;
  for (auto& [id, turns] : tenants_) {
    if (turns.waiting.empty()) continue;
    if (next == nullptr || turns.had < next->had) next = &turns;
  }
  Work work = std::move(next->waiting.front());
  next->waiting.pop_front();
  --waiting_;
  last_had_ = next->had;
  // A tenant without weight may only ask how the server is, which is little.
  next->had += static_cast<double>(std::max(work.bytes, kLeastBytes)) /
               std::max(work.tenant->weight, kLeastWeight);
  return work;
}

void WorkLane::Run() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return stop_ || waiting_ > 0; });
    if (stop_) return;
    std::optional<Work> work = TakeExpired(absl::Now());
    const bool expired = work.has_value();
    if (!expired) work = TakeNext();
    lock.unlock();
    try {
      if (!work->exchange->gone()) (expired ? work->expired : work->run)();
    } catch (const std::bad_alloc&) {
      work->exchange->Abort();
    }
    work.reset();
    lock.lock();
  }
}

}  // namespace attention::server
