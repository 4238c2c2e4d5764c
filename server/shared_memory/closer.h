// Closes what clients sent.
#ifndef ATTENTION_SERVER_SHARED_MEMORY_CLOSER_H_
#define ATTENTION_SERVER_SHARED_MEMORY_CLOSER_H_

#include <cstddef>
#include <memory>
#include <vector>

#include "base/descriptor.h"

namespace attention::server {

// Closes descriptors on a thread that nobody waits for: to close the last one
// of a socket that lingers, or of a file in user space, can take for as long as
// its maker likes. Thread-safe.
class Closer {
 public:
  // Descriptors that it may be behind with: above it is to be given no more.
  static constexpr size_t kMostBehind = 1024;

  // Throws std::system_error if there can be no thread.
  Closer();
  // Leaves the rest to the thread, which ends after it.
  ~Closer();
  Closer(const Closer&) = delete;
  Closer& operator=(const Closer&) = delete;

  void Close(std::vector<Descriptor> descriptors);
  void Close(Descriptor descriptor);

  // Not closed yet.
  size_t behind() const;

 private:
  struct State;

  const std::shared_ptr<State> state_;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_SHARED_MEMORY_CLOSER_H_
