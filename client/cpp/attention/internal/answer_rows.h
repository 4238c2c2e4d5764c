// The answer of a stream, put together from chunks of rows.
#ifndef ATTENTION_INTERNAL_ANSWER_ROWS_H_
#define ATTENTION_INTERNAL_ANSWER_ROWS_H_

#include <grpcpp/support/byte_buffer.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "attention/client.h"
#include "wire/tensor_fields.h"

namespace attention::internal {

// A tensor of the answer, filled along one of its axes.
struct TensorRows {
  std::vector<int64_t> shape;
  size_t axis = 0;
  std::span<std::byte> lent;  // data null: none

  // Unspecified: that of the first chunk.
  v1::DataType type = v1::DATA_TYPE_UNSPECIFIED;
  std::shared_ptr<std::byte> elements;
  size_t bytes = 0;
  int64_t filled = 0;  // along the axis
};

// Thread-compatible.
class AnswerRows {
 public:
  // Precondition: KeyChunks::Of(request). `max_bytes`: of all messages; -1
  // bounds them not.
  explicit AnswerRows(const ComputeRequest& request, int64_t max_bytes = -1);

  // Takes a StreamAttentionResponse. INTERNAL if it is malformed or does not
  // follow those before it, INVALID_ARGUMENT if the memory that the request
  // lends for the answer is too small, RESOURCE_EXHAUSTED in gRPC's words if
  // the answer becomes larger than `max_bytes`.
  absl::Status Add(const grpc::ByteBuffer& message);

  // RESOURCE_EXHAUSTED, as above, if the elements of the whole output alone are
  // more than can be taken.
  absl::Status CheckLimit() const;

  // Once the stream has ended well. INTERNAL if rows are missing.
  absl::StatusOr<ComputeResult> Finish() &&;

 private:
  absl::Status CheckLimit(int64_t bytes) const;
  static absl::Status Add(const std::string& name,
                          const wire::TensorFields& tensor, TensorRows* rows);
  static absl::StatusOr<Tensor> Take(const std::string& name, TensorRows rows);

  const int64_t max_bytes_;
  int64_t bytes_ = 0;
  TensorRows output_;
  std::optional<TensorRows> log_sum_exp_;
  std::optional<v1::Timing> timing_;
};

}  // namespace attention::internal

#endif  // ATTENTION_INTERNAL_ANSWER_ROWS_H_
