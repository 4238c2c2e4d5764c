#include "attention/internal/shared_queue.h"

#include <thread>

namespace attention::internal {
namespace {

void RunEvents(grpc::CompletionQueue& queue) {
  void* tag;
  bool ok;
  while (queue.Next(&tag, &ok)) static_cast<QueueEvent*>(tag)->Run(ok);
}

}  // namespace

grpc::CompletionQueue& SharedQueue() {
  static auto* const queue = [] {
    auto* queue = new grpc::CompletionQueue;
    std::thread([queue] { RunEvents(*queue); }).detach();
    return queue;
  }();
  return *queue;
}

}  // namespace attention::internal
