// A request cut along its keys, for StreamAttention.
#ifndef ATTENTION_INTERNAL_KEY_CHUNKS_H_
#define ATTENTION_INTERNAL_KEY_CHUNKS_H_

#include <grpcpp/support/byte_buffer.h>

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "attention/client.h"
#include "attention/internal/lease.h"

namespace attention::internal {

// Bytes of keys, values and mask per chunk, about: the fastest, for smaller
// ones cost more messages and larger ones fill no cache (./dev bench stream).
// Servers take 8 MiB by default.
inline constexpr int64_t kChunkBytes = int64_t{2} << 20;

// A tensor as [outer, length, inner] around one of its axes. The bytes are
// exactly those: of a tensor without elements there is no run, outer is 0.
struct AxisView {
  std::span<const std::byte> bytes;
  v1::DataType type = v1::DATA_TYPE_UNSPECIFIED;
  std::vector<int64_t> shape;
  size_t axis = 0;
  int64_t outer = 1;
  int64_t length = 0;
  int64_t inner_bytes = 0;

  // Nothing if the bytes are not those of the shape, or there is no such axis.
  static std::optional<AxisView> Of(const TensorSpan& tensor, size_t axis);

  // Elements [begin, end) of the axis, 0 <= begin <= end <= length, in part `o`
  // of [0, outer).
  std::span<const std::byte> Run(int64_t o, int64_t begin, int64_t end) const {
    return bytes.subspan((o * length + begin) * inner_bytes,
                         (end - begin) * inner_bytes);
  }
};

// The layout that a request means, and the axis that keys (and queries) lie
// along in it.
struct LayoutAxes {
  v1::Layout layout = v1::LAYOUT_UNSPECIFIED;
  size_t rank = 0;
  size_t length_axis = 0;
};
std::optional<LayoutAxes> AxesOf(const ComputeRequest& request);

// Refers to the request's memory, not to the request.
class KeyChunks {
 public:
  // Nothing where the request can not be streamed, or is not well-formed: the
  // server then tells what is wrong with it as one message.
  static std::optional<KeyChunks> Of(const ComputeRequest& request,
                                     int64_t chunk_bytes = kChunkBytes);

  // The next chunk as a StreamAttentionRequest, its large parts lent; nothing
  // after the last.
  std::optional<grpc::ByteBuffer> Next(Lease& lease);

  // About the memory, in bytes, that the server keeps for the rows of the query
  // while keys come: their open partials.
  int64_t state_bytes() const { return state_bytes_; }

  // Bytes of keys, values and mask: all, and in the chunks so far.
  int64_t total_bytes() const { return total_bytes_; }
  int64_t sent_bytes() const { return sent_bytes_; }

 private:
  // Past tensors, (B, Hkv, P, D) in every layout.
  struct Past {
    AxisView key;
    AxisView value;
  };

  LayoutAxes axes_;
  AxisView key_;
  AxisView value_;
  std::optional<AxisView> mask_;
  std::optional<Past> past_;
  int64_t kv_heads_ = 1;
  int64_t tokens_per_chunk_ = 1;
  int64_t past_length_ = 0;
  int64_t keys_ = 0;  // past ones included
  int64_t next_ = 0;
  int64_t state_bytes_ = 0;
  int64_t total_bytes_ = 0;
  int64_t sent_bytes_ = 0;
};

// The first message of the stream: what to compute, the query's data lent.
grpc::ByteBuffer EncodeHeader(const ComputeRequest& request, Lease& lease);

}  // namespace attention::internal

#endif  // ATTENTION_INTERNAL_KEY_CHUNKS_H_
