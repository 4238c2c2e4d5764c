// The streams on which a client sends its steps.
#ifndef ATTENTION_INTERNAL_STEP_STREAMS_H_
#define ATTENTION_INTERNAL_STEP_STREAMS_H_

#include <chrono>
#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

#include "attention/client.h"
#include "attention/connection.h"
#include "attention/internal/unary_call.h"

namespace attention::internal {

class StepStream;

// Each message has a stream to itself until it is answered: none waits for
// another's. Streams are kept open for the next messages. Thread-safe.
//
// What it holds: a stream for each call that is under way, which the callers
// bound, and at most kMostIdle between calls, which have no buffers. The
// destructor must not run while a call is under way; it waits at most
// kGoodbye for the streams to end, then cancels them.
class StepStreams {
 public:
  static constexpr size_t kMostIdle = 8;
  static constexpr std::chrono::milliseconds kGoodbye{100};

  explicit StepStreams(Connection connection);
  ~StepStreams();
  StepStreams(const StepStreams&) = delete;
  StepStreams& operator=(const StepStreams&) = delete;

  // One try to send `call.message`, a StepRequest, and have its answer. Nothing
  // refers to lent memory any more when it returns. Sends the message a second
  // time, on a new stream, if one that was kept has ended between messages:
  // each append in it must have a request id.
  UnaryAnswer Run(const CallOptions& options, UnaryCall& call);

 private:
  std::unique_ptr<StepStream> TakeIdle();
  void Keep(std::unique_ptr<StepStream> stream);

  const Connection connection_;
  std::mutex mutex_;
  // Guarded by mutex_. The last one was used last.
  std::vector<std::unique_ptr<StepStream>> idle_;
};

}  // namespace attention::internal

#endif  // ATTENTION_INTERNAL_STEP_STREAMS_H_
