#include "server/auth/reloader.h"

#include <sys/stat.h>

#include <new>
#include <utility>

namespace attention::server {
namespace {

int64_t Nanoseconds(const timespec& time) {
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

}  // namespace

FileChanges::FileChanges(std::vector<std::string> paths)
    : paths_(std::move(paths)), told_(Now()), last_(told_) {}

std::vector<FileChanges::State> FileChanges::Now() const {
  std::vector<State> states;
  for (const std::string& path : paths_) {
    struct stat file;
    State& state = states.emplace_back();
    if (stat(path.c_str(), &file) != 0) continue;
    state = {file.st_dev, file.st_ino, file.st_size, Nanoseconds(file.st_mtim),
             Nanoseconds(file.st_ctim)};
  }
  return states;
}

bool FileChanges::Look() {
  std::vector<State> now = Now();
  const bool calm = now == last_;
  last_ = std::move(now);
  if (!calm || last_ == told_) return false;
  told_ = last_;
  return true;
}

Reloader::~Reloader() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    stop_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
}

void Reloader::Watch(std::vector<std::string> paths,
                     std::function<bool()> reload) {
  watched_.push_back({FileChanges(std::move(paths)), std::move(reload)});
}

void Reloader::Start() {
  if (watched_.empty()) return;
  thread_ = std::thread([this] { Run(); });
}

void Reloader::Run() {
  const auto stopped = [this] {
    std::unique_lock<std::mutex> lock(mutex_);
    return stop_.wait_for(lock, absl::ToChronoNanoseconds(interval_),
                          [this] { return stopping_; });
  };
  while (!stopped()) {
    for (Watched& watched : watched_) {
      try {
        if (watched.changes.Look()) watched.pending = true;
        if (!watched.pending) continue;
        watched.changes.Accept();
        watched.pending = !watched.reload();
      } catch (const std::bad_alloc&) {  // NOLINT(bugprone-empty-catch)
        // What was there stays until the next look.
      }
    }
  }
}

}  // namespace attention::server
