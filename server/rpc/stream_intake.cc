#include "server/rpc/stream_intake.h"

#include <algorithm>
#include <utility>

#include "server/admission/refusals.h"
#include "server/status.h"
#include "wire/memory_meter.h"

namespace attention::server {

StreamIntake::StreamIntake(const StreamFormat& format, BufferPool& buffers,
                           int64_t sets, int64_t float_bytes,
                           size_t most_numbers)
    : format_(format),
      buffers_(buffers),
      float_bytes_(float_bytes),
      most_numbers_(most_numbers) {
  const KeyValueGeometry& geometry = format.geometry();
  free_.reserve(sets);
  full_.reserve(sets);
  for (int64_t i = 0; i < sets; ++i) {
    free_.push_back(std::make_unique<PageSet>(
        geometry, buffers.Allocate(PageSet::Bytes(geometry))));
  }
}

void StreamIntake::Add(const grpc::ByteBuffer& message) {
  next_ = std::make_unique<StreamChunk>(format_, message);
}

bool StreamIntake::BeginRound() {
  if (!chunk_) chunk_ = std::move(next_);
  if (!chunk_) return false;
  if (!filled_ && position_ < format_.tokens() && !free_.empty()) {
    filled_ = std::move(free_.back());
    free_.pop_back();
    filled_->Begin(position_);
  }
  // It waits until the kernel is done with a page set.
  if (chunk_->decoded() && !filled_) return false;
  stage_ = 0;
  range_ = {position_, position_};
  return true;
}

int64_t StreamIntake::NextStage() {
  if (stage_++ > 0) return 0;
  status_ = chunk_->decoded() ? absl::OkStatus() : Decode();
  if (!status_.ok() || !filled_) return 0;
  range_.end = std::min(chunk_->tokens().end, filled_->end());
  return chunk_->Prepare(*filled_, range_);
}

absl::Status StreamIntake::Decode() {
  // Only what comes in many parts can need more than a message has.
  wire::MemoryMeter meter(float_bytes_, [this](int64_t bytes) {
    return FloatsTooLarge(bytes, float_bytes_);
  });
  return chunk_->Decode(position_, buffers_, meter, most_numbers_);
}

absl::StatusOr<const PageSet*> StreamIntake::EndRound() {
  if (!status_.ok()) return status_;
  const PageSet* full = nullptr;
  if (filled_) {
    if (absl::Status wrong = chunk_->CheckMask(); !wrong.ok()) return wrong;
    position_ = range_.end;
    if (position_ == filled_->end()) {
      full = filled_.get();
      full_.push_back(std::move(filled_));
    }
  }
  if (position_ == chunk_->tokens().end) {
    if (absl::Status wrong = EndChunk(); !wrong.ok()) return wrong;
  }
  return full;
}

absl::Status StreamIntake::EndChunk() {
  // A chunk of no tokens, where there are none, comes once.
  if (chunk_->tokens().begin == chunk_->tokens().end &&
      std::exchange(empty_chunk_came_, true)) {
    return FieldError("chunk", "got a second one of 0 tokens, wanted none");
  }
  chunk_.reset();
  chunk_fits_ = false;
  return absl::OkStatus();
}

std::unique_ptr<PageSet> StreamIntake::TakeFullSet() {
  std::unique_ptr<PageSet> set = std::move(full_.front());
  full_.erase(full_.begin());
  return set;
}

}  // namespace attention::server
