// A stream's answer: rows that finish one after another, as messages.
#ifndef ATTENTION_SERVER_ANSWER_ROWS_H_
#define ATTENTION_SERVER_ANSWER_ROWS_H_

#include <cstddef>
#include <cstdint>
#include <optional>

#include "attention/v1/attention.pb.h"
#include "base/buffer_pool.h"
#include "grpcpp/support/byte_buffer.h"
#include "kernel/attention.h"

namespace attention::server {

// The whole output, of which rows are sent in ascending order. Construct, look
// at sizes, Allocate(), let the kernel write, and Encode() what is finished.
// Thread-compatible; the kernel may write other rows meanwhile.
class AnswerRows {
 public:
  // `length_axis`: that of queries in the output. `float_values`: send every
  // tensor as float_values.
  AnswerRows(const AttentionPlan& plan, size_t length_axis, bool float_values);

  int64_t rows() const { return rows_; }
  // Rows of a message: about 1 MiB, and at least one.
  int64_t rows_per_message() const { return rows_per_message_; }
  // Upper bounds, in bytes, of a message and of the memory that is held beside
  // the output while one is sent; they saturate at the largest int64_t.
  int64_t message_bytes() const;
  int64_t held_bytes() const;

  // Throws std::bad_alloc.
  AttentionOutputs Allocate(BufferPool& pool);

  // A StreamAttentionResponse of rows [begin, end); without an output where
  // there are none but the answer has some. Throws std::bad_alloc.
  grpc::ByteBuffer Encode(int64_t begin, int64_t end,
                          const std::optional<v1::Timing>& timing,
                          BufferPool& pool) const;

 private:
  // One of the tensors: [outer, rows, inner bytes].
  struct Part {
    TensorSpec spec;
    size_t axis = 0;
    int64_t outer = 1;
    int64_t row_bytes = 0;  // of one row in one of `outer`
    Buffer memory = {};
  };
  static Part PartOf(const TensorSpec& spec, size_t axis);

  const bool float_values_;
  Part output_;
  std::optional<Part> log_sum_exp_;
  int64_t rows_ = 0;
  int64_t rows_per_message_ = 1;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_ANSWER_ROWS_H_
