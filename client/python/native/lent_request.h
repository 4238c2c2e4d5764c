// A request over the memory of Python's arrays.
#ifndef ATTENTION_CLIENT_PYTHON_NATIVE_LENT_REQUEST_H_
#define ATTENTION_CLIENT_PYTHON_NATIVE_LENT_REQUEST_H_

#include <nanobind/nanobind.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "attention/client.h"

namespace attention::python {

// Holds the arrays' buffers, so that nobody frees or resizes them, until it is
// destroyed. Made and destroyed with the GIL; movable.
class LentRequest {
 public:
  // `tensors`: those of wire.Request, (data type, array) or (data type, array,
  // shape) or None each;
  // `others`: the other fields as a serialized message.
  LentRequest(const nanobind::tuple& tensors, const nanobind::bytes& others);
  ~LentRequest();
  LentRequest(LentRequest&& other) noexcept;
  LentRequest& operator=(LentRequest&&) = delete;

  const ComputeRequest& request() const { return request_; }
  // Of all tensors.
  int64_t bytes() const { return bytes_; }

 private:
  TensorSpan Lend(nanobind::handle tensor);

  std::vector<Py_buffer> buffers_;
  int64_t bytes_ = 0;
  ComputeRequest request_;
};

}  // namespace attention::python

#endif  // ATTENTION_CLIENT_PYTHON_NATIVE_LENT_REQUEST_H_
