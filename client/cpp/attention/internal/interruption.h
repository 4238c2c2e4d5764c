// A caller that waits for a call and may change its mind.
#ifndef ATTENTION_INTERNAL_INTERRUPTION_H_
#define ATTENTION_INTERNAL_INTERRUPTION_H_

#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>

#include <functional>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace attention::internal {

// Waits for the events of a call, and asks CallOptions::interrupted meanwhile,
// however many events there are. Thread-compatible; refers to its arguments.
class Interruption {
 public:
  Interruption(const std::function<bool()>& interrupted,
               grpc::ClientContext& context)
      : interrupted_(interrupted), context_(context) {}

  // As queue.Next(). Cancels the call, again and again, once it is interrupted.
  bool Next(grpc::CompletionQueue& queue, void** tag, bool* ok);
  // Whether it has cancelled the call.
  bool has_cancelled() const { return has_cancelled_; }

 private:
  static constexpr absl::Duration kAskEvery = absl::Milliseconds(50);

  const std::function<bool()>& interrupted_;
  grpc::ClientContext& context_;
  absl::Time ask_at_ = absl::Now() + kAskEvery;
  bool has_cancelled_ = false;
};

}  // namespace attention::internal

#endif  // ATTENTION_INTERNAL_INTERRUPTION_H_
