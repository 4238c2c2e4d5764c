// Notices when files have been changed.
#ifndef ATTENTION_SERVER_AUTH_RELOADER_H_
#define ATTENTION_SERVER_AUTH_RELOADER_H_

#include <sys/types.h>

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/time.h"

namespace attention::server {

// Whether one of several files has been changed, replaced, removed or made.
// Files that are written in place, or one after the other, are let finish: a
// change counts once nothing has changed between two looks. Thread-compatible.
class FileChanges {
 public:
  // What is there now is not a change.
  explicit FileChanges(std::vector<std::string> paths);

  // Looks again. True once for each change.
  bool Look();
  // What the last Look() saw is no change any more.
  void Accept() { told_ = last_; }

 private:
  // What stat() says of a file; all zero if there is none.
  struct State {
    dev_t device = 0;
    ino_t inode = 0;
    int64_t size = 0;
    int64_t modified_ns = 0;
    int64_t changed_ns = 0;

    bool operator==(const State&) const = default;
  };
  std::vector<State> Now() const;

  const std::vector<std::string> paths_;
  std::vector<State> told_;  // at the start or when Look() last was true
  std::vector<State> last_;  // at the last look
};

// A thread that looks at files, and calls a function when they have changed.
class Reloader {
 public:
  explicit Reloader(absl::Duration interval) : interval_(interval) {}
  ~Reloader();
  Reloader(const Reloader&) = delete;
  Reloader& operator=(const Reloader&) = delete;

  // Call before the files are read, so that no change is missed. `reload` runs
  // on the thread, one at a time; it may block, which only holds up the other
  // files. False: it did not work, and is tried again at the next look. None
  // after the destructor. May be called until Start().
  void Watch(std::vector<std::string> paths, std::function<bool()> reload);

  // Starts the thread, if there is something to watch. Throws
  // std::system_error if there is none to be had. Once.
  void Start();

 private:
  struct Watched {
    FileChanges changes;
    std::function<bool()> reload;
    bool pending = false;  // it has failed
  };

  void Run();

  const absl::Duration interval_;
  std::vector<Watched> watched_;  // Of the thread once it runs.
  std::mutex mutex_;
  std::condition_variable stop_;
  bool stopping_ = false;  // guarded by mutex_
  std::thread thread_;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_AUTH_RELOADER_H_
