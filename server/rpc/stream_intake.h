// What a stream's client sends, from messages to full page sets.
#ifndef ATTENTION_SERVER_RPC_STREAM_INTAKE_H_
#define ATTENTION_SERVER_RPC_STREAM_INTAKE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/buffer_pool.h"
#include "grpcpp/support/byte_buffer.h"
#include "server/rpc/stream_chunk.h"
#include "server/stream_format.h"
#include "sessions/page_set.h"
#include "sessions/page_writer.h"

namespace attention::server {

// Copies chunks into page sets, in rounds:
//   while (intake.BeginRound()) {
//     while (const int64_t tasks = intake.NextStage()) ...  // Copy() each
//     intake.EndRound();
//   }
// Thread-compatible, but that NextStage() and Copy() may run while the other
// functions are called, except for BeginRound() and EndRound(); Copy() also
// beside itself.
//
// Invariants:
//   1. There are at most two messages: one that waits, and one that is copied.
//   2. Tokens [0, position()) have been copied. Full sets hold the last of
//      them, in order, but for those in the set that is filled.
class StreamIntake {
 public:
  // `format` and `buffers` must outlive this. A chunk's float_values may take
  // `float_bytes` to be joined; `most_numbers` as in wire/stream_request.h.
  // Throws std::bad_alloc, as the functions below may, after which there is
  // nothing left to do but to destroy this.
  StreamIntake(const StreamFormat& format, BufferPool& buffers, int64_t sets,
               int64_t float_bytes, size_t most_numbers);

  // Takes a message, where WantsMessage().
  void Add(const grpc::ByteBuffer& message);
  // Whether none waits and the one before it, if any, has room.
  bool WantsMessage() const { return !next_ && (!chunk_ || chunk_fits_); }
  // Whether all that came has been copied.
  bool empty() const { return !chunk_ && !next_; }
  int64_t position() const { return position_; }

  // Begins to copy, if there is something and room for it; else false.
  bool BeginRound();
  // Of the message that is copied.
  int64_t bytes() const { return chunk_->bytes(); }
  // The round's tasks; then 0.
  int64_t NextStage();
  void Copy(int64_t task) { chunk_->Copy(task); }
  // Once NextStage() has returned tasks: whether they end the chunk, so that
  // another message may come beside them. To be told with SetChunkFits().
  bool EndsChunk() const { return range_.end == chunk_->tokens().end; }
  void SetChunkFits() { chunk_fits_ = true; }
  // Ends the round. The set that is full by it, or null. Errors: what is wrong
  // with the chunk.
  absl::StatusOr<const PageSet*> EndRound();

  bool has_full_set() const { return !full_.empty(); }
  std::unique_ptr<PageSet> TakeFullSet();
  void GiveBack(std::unique_ptr<PageSet> set) {
    free_.push_back(std::move(set));
  }

 private:
  absl::Status Decode();
  absl::Status EndChunk();

  const StreamFormat& format_;
  BufferPool& buffers_;
  const int64_t float_bytes_;
  const size_t most_numbers_;
  std::unique_ptr<StreamChunk> next_;  // has come, is not decoded
  std::unique_ptr<StreamChunk> chunk_;
  bool chunk_fits_ = false;  // there is room for all of it
  bool empty_chunk_came_ = false;
  // Of the round.
  int stage_ = 0;
  absl::Status status_;
  TokenRange range_;
  int64_t position_ = 0;
  std::vector<std::unique_ptr<PageSet>> free_, full_;
  std::unique_ptr<PageSet> filled_;  // from position_ on
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_RPC_STREAM_INTAKE_H_
