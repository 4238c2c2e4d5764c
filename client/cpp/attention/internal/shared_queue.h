// Where calls end that nobody waits for.
#ifndef ATTENTION_INTERNAL_SHARED_QUEUE_H_
#define ATTENTION_INTERNAL_SHARED_QUEUE_H_

#include <grpcpp/completion_queue.h>

namespace attention::internal {

// What gRPC gives back when an operation has ended.
class QueueEvent {
 public:
  // The operation ended, well if `ok`. May destroy the object.
  virtual void Run(bool ok) = 0;

 protected:
  ~QueueEvent() = default;
};

// A queue whose tags are pointers to QueueEvents, and whose thread runs them.
// Not gRPC's own callbacks: on their threads the last reference to a channel
// must not be dropped, which waits for those very threads, and a call holds
// one. Neither ever ends, so that a process may exit with calls under way.
grpc::CompletionQueue& SharedQueue();

}  // namespace attention::internal

#endif  // ATTENTION_INTERNAL_SHARED_QUEUE_H_
