#include "client/python/native/lent_message.h"

#include <grpcpp/support/slice.h>

#include <cstddef>
#include <span>
#include <string>
#include <utility>

namespace attention::python {

namespace nb = nanobind;

namespace {

// To copy fewer bytes than this is cheaper than to count who has them.
constexpr size_t kCopiedBytes = size_t{32} << 10;

}  // namespace

LentMessage::LentMessage(const nb::list& pieces) {
  std::vector<grpc::Slice> slices;
  std::string copied;
  const auto end_copied = [&] {
    if (copied.empty()) return;
    slices.emplace_back(copied);
    copied.clear();
  };
  // A Py_buffer must stay where it was filled.
  buffers_.reserve(pieces.size());
  try {
    for (const nb::handle piece : pieces) {
      Py_buffer& buffer = buffers_.emplace_back();
      if (PyObject_GetBuffer(piece.ptr(), &buffer, PyBUF_ND) != 0) {
        buffers_.pop_back();
        throw nb::python_error();
      }
      const auto* const bytes = static_cast<const char*>(buffer.buf);
      const auto size = static_cast<size_t>(buffer.len);
      if (size < kCopiedBytes) {
        copied.append(bytes, size);
        PyBuffer_Release(&buffer);
        buffers_.pop_back();
        continue;
      }
      end_copied();
      slices.push_back(lease_.Lend(std::as_bytes(std::span(bytes, size))));
    }
  } catch (...) {
    slices.clear();
    for (Py_buffer& buffer : buffers_) PyBuffer_Release(&buffer);
    throw;
  }
  end_copied();
  message_ = grpc::ByteBuffer(slices.data(), slices.size());
}

LentMessage::LentMessage(LentMessage&& other) noexcept
    : buffers_(std::move(other.buffers_)), lease_(std::move(other.lease_)) {
  other.buffers_.clear();
  message_.Swap(&other.message_);
}

LentMessage::~LentMessage() {
  for (Py_buffer& buffer : buffers_) PyBuffer_Release(&buffer);
}

}  // namespace attention::python
