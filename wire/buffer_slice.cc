#include "wire/buffer_slice.h"

#include <utility>

namespace attention::wire {

grpc::Slice ToSlice(Buffer buffer, size_t begin, size_t end) {
  std::byte* data = buffer.data() + begin;
  auto* owner = new Buffer(std::move(buffer));
  return grpc::Slice(
      data, end - begin,
      [](void* owner) { delete static_cast<Buffer*>(owner); }, owner);
}

}  // namespace attention::wire
