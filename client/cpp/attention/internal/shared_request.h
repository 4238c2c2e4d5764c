// A request whose tensors go to the server through shared memory, and whose
// answer comes back so.
#ifndef ATTENTION_INTERNAL_SHARED_REQUEST_H_
#define ATTENTION_INTERNAL_SHARED_REQUEST_H_

#include <grpcpp/support/status.h>

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "attention/client.h"
#include "attention/internal/compute_messages.h"
#include "attention/internal/shared_memory.h"
#include "attention/internal/unary_call.h"

namespace attention::internal {

// Tensors that lie in memory of SharedMemory::Allocate() are used there. Others
// are copied through an area, and so are answers: an area that a call was given
// up on is never used again, so that what the server may still write to it is
// nobody's. That could not be said of the caller's own memory. Small tensors
// stay in the messages. Keeps what it needs; the request's own memory must stay
// until the call is over.
class SharedRequest {
 public:
  // Tensors of fewer bytes together cost less in a message: those that are
  // copied to the server, and those of the answer.
  static constexpr size_t kLeastCopied = size_t{64} << 10;
  static constexpr size_t kLeastAnswer = size_t{64} << 10;

  // Null where there is nothing to share, or no memory for it. After
  // SharedMemory::Connect(). Copies, and may ask the server.
  static std::unique_ptr<SharedRequest> Of(std::shared_ptr<SharedMemory> memory,
                                           const ComputeRequest& request,
                                           const Patience& patience);
  ~SharedRequest();
  SharedRequest(const SharedRequest&) = delete;
  SharedRequest& operator=(const SharedRequest&) = delete;

  const SharedPlaces& places() const { return places_; }

  // The call has ended so, and `result` has been read from its answer. False:
  // the server did not know the memory, and the call should be tried again.
  bool Ended(const absl::Status& status);

 private:
  explicit SharedRequest(std::shared_ptr<SharedMemory> memory)
      : memory_(std::move(memory)), connection_(memory_->connection()) {}
  bool Place(const ComputeRequest& request, const Patience& patience);

  const std::shared_ptr<SharedMemory> memory_;
  const int64_t connection_;
  SharedPlaces places_;
  std::unique_ptr<SharedMemory::Area> area_;
};

// Whether the request might be shared: else the server need not be asked
// whether it shares memory.
bool WorthSharing(SharedMemory& memory, const ComputeRequest& request);

}  // namespace attention::internal

#endif  // ATTENTION_INTERNAL_SHARED_REQUEST_H_
