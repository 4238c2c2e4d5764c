// Whether answers are right.
#ifndef ATTENTION_CLIENT_CPP_CLI_BENCH_ANSWER_CHECK_H_
#define ATTENTION_CLIENT_CPP_CLI_BENCH_ANSWER_CHECK_H_

#include <grpcpp/support/byte_buffer.h>

#include <string>

#include "absl/status/status.h"
#include "client/cpp/cli/bench/workload.h"

namespace attention::cli {

// Holds the answers of one kind of call to the first of them. Keeps one
// answer's bytes. Not thread-safe.
class AnswerCheck {
 public:
  // Whether `answer` has the bytes of the first one seen, `timing` (field 6 of
  // ComputeAttentionResponse) left out; true for the first. Copies nothing but
  // that first one. Bytes that are no message are not the same.
  bool SameAsFirst(const grpc::ByteBuffer& answer);

  bool has_first() const { return has_first_; }
  // The first answer, its timing left out.
  const std::string& first() const { return first_; }

 private:
  std::string first_;
  bool has_first_ = false;
};

// Whether `answer`, a serialized ComputeAttentionResponse to calls of `kind`,
// is what textbook loops in double precision give, in up to eight rows spread
// over the output. The tolerance is the kernel's error bound (docs/numerics.md)
// made simpler and larger. Health: whether it says SERVING. On failure the
// status tells what was wrong where.
absl::Status CheckAnswer(const CallKind& kind, const Workload& workload,
                         const std::string& answer);

}  // namespace attention::cli

#endif  // ATTENTION_CLIENT_CPP_CLI_BENCH_ANSWER_CHECK_H_
