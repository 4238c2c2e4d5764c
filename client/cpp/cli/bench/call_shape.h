// The sizes of a call to measure, and their text on the command line.
#ifndef ATTENTION_CLIENT_CPP_CLI_BENCH_CALL_SHAPE_H_
#define ATTENTION_CLIENT_CPP_CLI_BENCH_CALL_SHAPE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace attention::cli {

// Query (B, Hq, S, D), key (B, Hkv, T, D), value (B, Hkv, T, Dv), output
// (B, Hq, S, Dv): layout BHSD. A value.
struct CallShape {
  int64_t batch = 1;             // B
  int64_t query_heads = 1;       // Hq
  int64_t kv_heads = 1;          // Hkv
  int64_t queries = 1;           // S
  int64_t keys = 1;              // T
  int64_t head_size = 64;        // D
  int64_t value_head_size = 64;  // Dv

  int64_t query_elements() const {
    return batch * query_heads * queries * head_size;
  }
  int64_t key_elements() const { return batch * kv_heads * keys * head_size; }
  int64_t value_elements() const {
    return batch * kv_heads * keys * value_head_size;
  }

  bool operator==(const CallShape&) const = default;
};

// A shape, and how often it is drawn in proportion to the others; above 0.
struct WeightedShape {
  CallShape shape;
  double weight = 1;
};

// "B,Hq,Hkv,S,T,D[,Dv]" or names in any order: "S=128,T=128,H=8,D=64", H
// being both Hq and Hkv. Left out: B=1, H=1, T=S, D=64, Dv=D. S must be given.
// INVALID_ARGUMENT says what is wrong: sizes below 1, heads that do not
// divide, tensors too large for a message (2 GiB in 8-byte elements).
absl::StatusOr<CallShape> ParseShape(absl::string_view text);

// "SHAPE:WEIGHT,SHAPE:WEIGHT", each SHAPE as above; at least one.
absl::StatusOr<std::vector<WeightedShape>> ParseMix(absl::string_view text);

// The names form, without what is as left out: "S=128,T=128,H=8,D=64".
std::string FormatShape(const CallShape& shape);

}  // namespace attention::cli

#endif  // ATTENTION_CLIENT_CPP_CLI_BENCH_CALL_SHAPE_H_
