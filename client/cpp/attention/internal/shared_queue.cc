#include "attention/internal/shared_queue.h"

#include <thread>

namespace attention::internal {

grpc::CompletionQueue& SharedQueue() {
  static auto* const queue = [] {
    auto* queue = new grpc::CompletionQueue;
    std::thread([queue] { RunEvents(*queue, false); }).detach();
    return queue;
  }();
  return *queue;
}

void RunEvents(grpc::CompletionQueue& queue, const bool& done) {
  void* tag;
  bool ok;
  while (!done && queue.Next(&tag, &ok)) static_cast<QueueEvent*>(tag)->Run(ok);
}

}  // namespace attention::internal
