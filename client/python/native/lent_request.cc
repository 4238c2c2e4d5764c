#include "client/python/native/lent_request.h"

#include <stdexcept>
#include <utility>

namespace attention::python {

namespace nb = nanobind;

namespace {

constexpr size_t kTensors = 8;

}  // namespace

LentRequest::LentRequest(const nb::tuple& tensors, const nb::bytes& others) {
  v1::ComputeAttentionRequest fields;
  if (tensors.size() != kTensors ||
      !fields.ParseFromArray(others.c_str(), static_cast<int>(others.size()))) {
    throw std::invalid_argument("wanted the fields of wire.Request");
  }
  // A Py_buffer must stay where it was filled.
  buffers_.reserve(kTensors);
  try {
    request_.query = Lend(tensors[0]);
    request_.key = Lend(tensors[1]);
    request_.value = Lend(tensors[2]);
    const auto optional = [&](size_t i) -> std::optional<TensorSpan> {
      if (tensors[i].is_none()) return std::nullopt;
      return Lend(tensors[i]);
    };
    request_.mask = optional(3);
    request_.past_key = optional(4);
    request_.past_value = optional(5);
    request_.indices = optional(6);
    request_.sinks = optional(7);
  } catch (...) {
    for (Py_buffer& buffer : buffers_) PyBuffer_Release(&buffer);
    throw;
  }
  const auto list = [](const auto& numbers) {
    return std::vector<int64_t>(numbers.begin(), numbers.end());
  };
  request_.valid_lengths = list(fields.valid_lengths());
  request_.query_starts = list(fields.query_starts());
  request_.key_starts = list(fields.key_starts());
  request_.options = std::move(*fields.mutable_options());
}

LentRequest::LentRequest(LentRequest&& other) noexcept
    : buffers_(std::move(other.buffers_)),
      bytes_(other.bytes_),
      request_(std::move(other.request_)) {
  other.buffers_.clear();
}

LentRequest::~LentRequest() {
  for (Py_buffer& buffer : buffers_) PyBuffer_Release(&buffer);
}

TensorSpan LentRequest::Lend(nb::handle tensor) {
  const auto type_and_array = nb::cast<nb::tuple>(tensor);
  const int type = nb::cast<int>(type_and_array[0]);
  const nb::object array = type_and_array[1];
  std::optional<std::vector<int64_t>> shape;
  if (type_and_array.size() > 2) {
    shape.emplace();
    for (const nb::handle dim : type_and_array[2]) {
      shape->push_back(nb::cast<int64_t>(dim));
    }
  }
  Py_buffer& buffer = buffers_.emplace_back();
  // C-contiguous, or an error.
  if (PyObject_GetBuffer(array.ptr(), &buffer, PyBUF_ND) != 0) {
    buffers_.pop_back();
    throw nb::python_error();
  }
  bytes_ += buffer.len;
  return {static_cast<v1::DataType>(type),
          shape
              ? *std::move(shape)
              : std::vector<int64_t>(buffer.shape, buffer.shape + buffer.ndim),
          {static_cast<const std::byte*>(buffer.buf),
           static_cast<size_t>(buffer.len)}};
}

}  // namespace attention::python
