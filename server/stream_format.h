// What the chunks of a stream must look like, by its header.
#ifndef ATTENTION_SERVER_STREAM_FORMAT_H_
#define ATTENTION_SERVER_STREAM_FORMAT_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernel/attention.h"
#include "sessions/page_set.h"
#include "sessions/page_writer.h"
#include "wire/stream_request.h"

namespace attention::server {

// Of one stream. Copyable; `geometry` refers to the header's key_starts.
class StreamFormat {
 public:
  // `inputs` and `options` have been planned (PlanAttention) without error, and
  // `inputs.key_starts` must outlive this.
  StreamFormat(const AttentionInputs& inputs, const AttentionOptions& options);

  const KeyValueGeometry& geometry() const { return geometry_; }
  // The axis of tokens in key and value, and of rows in the output.
  size_t length_axis() const { return length_axis_; }
  // Keys of the whole stream, as tokens are counted.
  int64_t tokens() const { return geometry_.tokens(); }
  // Columns of the mask that tokens have; 0 without a mask.
  int64_t MaskColumns(TokenRange tokens) const;
  bool has_bool_mask() const;
  // The mask of tokens that stand in pages, if there is one.
  std::optional<ConstTensorView> MaskOf(const PageSet& pages) const;

  // The tokens of a chunk that follows `begin` others. Errors: InvalidArgument
  // naming "chunk.FIELD", what came and what was wanted.
  absl::StatusOr<TokenRange> Check(const wire::ChunkFields& chunk,
                                   int64_t begin) const;

 private:
  // The shape with `length` on its axis of tokens.
  static std::string ShapeText(const Shape& shape, size_t axis,
                               absl::string_view length);
  absl::Status CheckOperand(absl::string_view field,
                            const wire::TensorFields& tensor,
                            const TensorSpec& wanted) const;
  absl::Status CheckMask(const wire::TensorFields& mask,
                         TokenRange tokens) const;

  TensorSpec key_, value_;  // with the header's new length
  size_t length_axis_ = 0;
  std::optional<TensorSpec> mask_;
  KeyValueGeometry geometry_;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_STREAM_FORMAT_H_
