// Memory that is asked for before it is taken.
#ifndef ATTENTION_WIRE_MEMORY_METER_H_
#define ATTENTION_WIRE_MEMORY_METER_H_

#include <cstdint>
#include <functional>
#include <utility>

#include "absl/status/status.h"

namespace attention::wire {

// Counts what decoding a message takes, and asks whoever bounds it for more
// than was granted to begin with. Thread-compatible.
class MemoryMeter {
 public:
  // Grants so many bytes in all, or says why not.
  using Grant = std::function<absl::Status(int64_t bytes)>;

  // Grants everything.
  MemoryMeter() = default;
  // `granted` bytes are there without asking.
  MemoryMeter(int64_t granted, Grant grant)
      : granted_(granted), grant_(std::move(grant)) {}

  // To be called before so many bytes are taken; an error: they must not be.
  absl::Status Take(int64_t bytes) {
    if (grant_ && taken_ + bytes > granted_) {
      if (absl::Status status = grant_(taken_ + bytes); !status.ok()) {
        return status;
      }
      granted_ = taken_ + bytes;
    }
    taken_ += bytes;
    return absl::OkStatus();
  }

  // So many bytes were freed. What was granted for them stays granted.
  void Free(int64_t bytes) { taken_ -= bytes; }

  int64_t taken() const { return taken_; }

 private:
  int64_t granted_ = 0;
  int64_t taken_ = 0;
  Grant grant_;
};

}  // namespace attention::wire

#endif  // ATTENTION_WIRE_MEMORY_METER_H_
