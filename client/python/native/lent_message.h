// A message over the memory of Python's objects.
#ifndef ATTENTION_CLIENT_PYTHON_NATIVE_LENT_MESSAGE_H_
#define ATTENTION_CLIENT_PYTHON_NATIVE_LENT_MESSAGE_H_

#include <grpcpp/support/byte_buffer.h>
#include <nanobind/nanobind.h>

#include <vector>

#include "attention/internal/lease.h"

namespace attention::python {

// Small pieces are copied. Of large ones it holds the buffers, so that nobody
// frees or resizes them, until it is destroyed, which must come after the lease
// has them back. Made and destroyed with the GIL; movable.
class LentMessage {
 public:
  // `pieces`: objects with C-contiguous buffers, one after another.
  explicit LentMessage(const nanobind::list& pieces);
  ~LentMessage();
  LentMessage(LentMessage&& other) noexcept;
  LentMessage& operator=(LentMessage&&) = delete;

  grpc::ByteBuffer& message() { return message_; }
  internal::Lease& lease() { return lease_; }

 private:
  std::vector<Py_buffer> buffers_;
  internal::Lease lease_;
  grpc::ByteBuffer message_;
};

}  // namespace attention::python

#endif  // ATTENTION_CLIENT_PYTHON_NATIVE_LENT_MESSAGE_H_
