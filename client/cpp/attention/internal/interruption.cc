#include "attention/internal/interruption.h"

namespace attention::internal {

bool Interruption::Next(grpc::CompletionQueue& queue, void** tag, bool* ok) {
  if (!interrupted_) return queue.Next(tag, ok);
  while (true) {
    const auto next = queue.AsyncNext(tag, ok, absl::ToChronoTime(ask_at_));
    if (const absl::Time now = absl::Now(); now >= ask_at_) {
      if (interrupted_()) {
        has_cancelled_ = true;
        context_.TryCancel();
      }
      ask_at_ = now + kAskEvery;
    }
    if (next == grpc::CompletionQueue::TIMEOUT) continue;
    return next == grpc::CompletionQueue::GOT_EVENT;
  }
}

}  // namespace attention::internal
