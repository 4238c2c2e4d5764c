// Memory of a caller that gRPC sends from without a copy.
#ifndef ATTENTION_INTERNAL_LEASE_H_
#define ATTENTION_INTERNAL_LEASE_H_

#include <grpcpp/support/slice.h>

#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <span>

namespace attention::internal {

// Counts the slices that it lends, until whoever has them lets go.
//
// A call that has ended does not mean that: what was handed to the transport
// before the call was cancelled or its deadline passed is still written to the
// connection, and a call keeps what it may have to send again until it is
// destroyed. So the owner of the memory destroys call and message first, then
// waits here.
//
// Movable, not copyable; thread-compatible. Slices may be given back on any
// thread, also after the lease is gone.
class Lease {
 public:
  Lease();
  Lease(Lease&&) = default;
  Lease& operator=(Lease&&) = default;

  // A slice of `bytes`, which must stay as they are while it or a copy or a
  // part of it is held.
  grpc::Slice Lend(std::span<const std::byte> bytes);

  // Slices not given back yet.
  int lent() const;

  // Until all are given back.
  void Wait() const;
  // The same, but no longer than this. Whether they are.
  bool WaitFor(std::chrono::milliseconds time) const;

  // Runs `then` when all are given back, at once if they are; else on a thread
  // of its own. Not inside of gRPC, which gives slices back where a callback
  // must not be run.
  void WhenReturned(const std::function<void()>& then) &&;

 private:
  struct Count;
  std::shared_ptr<Count> count_;
};

}  // namespace attention::internal

#endif  // ATTENTION_INTERNAL_LEASE_H_
