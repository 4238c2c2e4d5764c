// Memory of a BufferPool as a slice that gRPC sends.
#ifndef ATTENTION_WIRE_BUFFER_SLICE_H_
#define ATTENTION_WIRE_BUFFER_SLICE_H_

#include <cstddef>

#include "base/buffer_pool.h"
#include "grpcpp/support/slice.h"

namespace attention::wire {

// Bytes [begin, end) of `buffer` as a slice, which owns the memory from here on
// and gives it back when gRPC has sent it.
grpc::Slice ToSlice(Buffer buffer, size_t begin, size_t end);

}  // namespace attention::wire

#endif  // ATTENTION_WIRE_BUFFER_SLICE_H_
