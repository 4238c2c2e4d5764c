// A chunk of a stream, from its message to the pages.
#ifndef ATTENTION_SERVER_RPC_STREAM_CHUNK_H_
#define ATTENTION_SERVER_RPC_STREAM_CHUNK_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "base/buffer_pool.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/slice.h"
#include "server/stream_format.h"
#include "sessions/page_set.h"
#include "sessions/page_writer.h"
#include "wire/memory_meter.h"
#include "wire/slice_reader.h"
#include "wire/stream_request.h"

namespace attention::server {

// Owns the message. Decode() it, then copy its tokens in one or more rounds:
// Prepare() a range, Copy() each task, in any order and on any threads, then
// look at CheckMask().
class StreamChunk {
 public:
  // `format` must outlive this.
  StreamChunk(const StreamFormat& format, const grpc::ByteBuffer& message)
      : format_(format), message_(message) {}
  StreamChunk(const StreamChunk&) = delete;
  StreamChunk& operator=(const StreamChunk&) = delete;

  int64_t bytes() const { return static_cast<int64_t>(message_.Length()); }
  bool decoded() const { return decoded_; }

  // Finds the tensors, of tokens that follow `begin` others. What must be
  // allocated is taken from `meter`, and is held as long as this.
  // `most_numbers` as in wire/stream_request.h. Errors: InvalidArgument that
  // says what is wrong with the message; what the meter gives.
  absl::Status Decode(int64_t begin, BufferPool& pool, wire::MemoryMeter& meter,
                      size_t most_numbers);
  TokenRange tokens() const { return tokens_; }

  // Tasks to copy tokens `range` into `pages`, which must outlive them.
  int64_t Prepare(const PageSet& pages, TokenRange range);
  void Copy(int64_t number);
  // Whether what was copied of a bool mask is bools.
  absl::Status CheckMask() const;

 private:
  enum class Operand : uint8_t { kKey, kValue, kMask };
  struct Task {
    Operand operand;
    TokenRange range;
    PartRange part;  // of each token
    std::optional<int64_t> wrong_bool;
  };

  wire::SliceReader PayloadOf(wire::TensorFields& tensor, Operand operand);
  void AddTasks(Operand operand, TokenRange range, int64_t row_bytes);
  void AddMaskTasks(TokenRange range);

  const StreamFormat& format_;
  grpc::ByteBuffer message_;
  std::vector<grpc::Slice> slices_;
  wire::ChunkFields fields_;
  // Float values as slices, so that one reader reads both.
  std::array<grpc::Slice, 3> float_slices_;
  bool decoded_ = false;
  TokenRange tokens_;
  std::array<wire::SliceReader, 3> payloads_;
  const PageSet* pages_ = nullptr;
  std::vector<Task> tasks_;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_RPC_STREAM_CHUNK_H_
