#include "attention/internal/compute_messages.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "base/buffer_pool.h"
#include "wire/compute_response.h"
#include "wire/memory_meter.h"
#include "wire/message_writer.h"
#include "wire/tensor_fields.h"

namespace attention::internal {
namespace {

using v1::ComputeAttentionRequest;

void Encode(int field, const TensorSpan& tensor, Lease& lease,
            wire::MessageWriter& message) {
  wire::MessageWriter writer = wire::StartTensor(tensor.type, tensor.shape);
  const std::span<const std::byte> bytes = tensor.bytes;
  if (bytes.size() < kLentBytes) {
    writer.Copy(v1::Tensor::kDataFieldNumber,
                {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  } else {
    writer.Borrow(v1::Tensor::kDataFieldNumber, lease.Lend(bytes));
  }
  message.Message(field, std::move(writer));
}

absl::Status Malformed(absl::string_view field,
                       const wire::TensorFields& tensor) {
  return absl::InternalError(absl::StrCat(
      "malformed answer: ", field, " has ", tensor.data.remaining(),
      " bytes of type ", TypeName(static_cast<v1::DataType>(tensor.data_type)),
      ", which do not fit its shape"));
}

// The bytes where they are, if that is possible; else copied. `slices` hold
// them.
std::shared_ptr<const std::byte> Keep(
    wire::SliceReader data, size_t alignment,
    const std::shared_ptr<const std::vector<grpc::Slice>>& slices) {
  const absl::Span<const uint8_t> first = data.FirstPiece();
  if (first.size() == data.remaining() &&
      reinterpret_cast<uintptr_t>(first.data()) % alignment == 0) {
    return {slices, reinterpret_cast<const std::byte*>(first.data())};
  }
  // Not a vector: its bytes would be written twice.
  std::shared_ptr<std::byte[]> copy(new std::byte[data.remaining()]);
  data.ReadBytes(copy.get(), data.remaining());
  return {copy, copy.get()};
}

class Decoder {
 public:
  explicit Decoder(const grpc::ByteBuffer& message)
      : slices_(std::make_shared<std::vector<grpc::Slice>>()) {
    static_cast<void>(message.Dump(slices_.get()));
  }

  absl::StatusOr<ComputeResult> Decode(const ComputeOutputs& outputs) {
    wire::MemoryMeter meter;
    absl::StatusOr<wire::ResponseFields> fields =
        wire::DecodeResponse(*slices_, *BufferPool::Create(0), meter);
    if (!fields.ok()) {
      return absl::InternalError(
          absl::StrCat("malformed answer: ", fields.status().message()));
    }
    ComputeResult result;
    Add("output", fields->output, outputs.output, &result.output);
    const auto add =
        [&](absl::string_view name, const wire::TensorFields& tensor,
            std::span<std::byte> memory, std::optional<Tensor>* target) {
          if (tensor.present) Add(name, tensor, memory, &target->emplace());
        };
    add("log_sum_exp", fields->log_sum_exp, outputs.log_sum_exp,
        &result.log_sum_exp);
    add("scores", fields->scores, outputs.scores, &result.scores);
    add("present_key", fields->present_key, outputs.present_key,
        &result.present_key);
    add("present_value", fields->present_value, outputs.present_value,
        &result.present_value);
    if (!status_.ok()) return status_;
    result.timing = std::move(fields->timing);
    return result;
  }

 private:
  void Add(absl::string_view name, const wire::TensorFields& tensor,
           std::span<std::byte> memory, Tensor* target) {
    if (!status_.ok()) return;
    const auto type = static_cast<v1::DataType>(tensor.data_type);
    std::vector<int64_t> shape(tensor.shape.begin(), tensor.shape.end());
    const size_t bytes = tensor.data.remaining();
    if (tensor.rank > wire::kMaxRank ||
        !BytesFit(type, shape, tensor.data.remaining())) {
      status_ = Malformed(name, tensor);
      return;
    }
    std::shared_ptr<const std::byte> elements;
    if (memory.data() == nullptr) {
      elements = Keep(tensor.data, ElementSize(type), slices_);
    } else if (memory.size() < bytes) {
      status_ = absl::InvalidArgumentError(absl::StrCat(
          "outputs.", name, ": got ", memory.size(), " bytes, wanted ", bytes,
          " for shape (", absl::StrJoin(shape, ", "), ") of ", TypeName(type)));
      return;
    } else {
      wire::SliceReader data = tensor.data;
      data.ReadBytes(memory.data(), bytes);
      elements = {std::shared_ptr<void>(), memory.data()};  // Not owned.
    }
    *target =
        Tensor::FromShared(type, std::move(elements), bytes, std::move(shape))
            .value();
  }

  const std::shared_ptr<std::vector<grpc::Slice>> slices_;
  absl::Status status_;
};

}  // namespace

grpc::ByteBuffer EncodeRequest(const ComputeRequest& request, Lease& lease) {
  wire::MessageWriter message;
  const auto add = [&](int field, const TensorSpan& tensor) {
    Encode(field, tensor, lease, message);
  };
  add(ComputeAttentionRequest::kQueryFieldNumber, request.query);
  add(ComputeAttentionRequest::kKeyFieldNumber, request.key);
  add(ComputeAttentionRequest::kValueFieldNumber, request.value);
  if (request.mask) {
    add(ComputeAttentionRequest::kMaskFieldNumber, *request.mask);
  }
  if (request.past_key) {
    add(ComputeAttentionRequest::kPastKeyFieldNumber, *request.past_key);
  }
  if (request.past_value) {
    add(ComputeAttentionRequest::kPastValueFieldNumber, *request.past_value);
  }
  message.Integers(ComputeAttentionRequest::kValidLengthsFieldNumber,
                   request.valid_lengths);
  message.Integers(ComputeAttentionRequest::kQueryStartsFieldNumber,
                   request.query_starts);
  message.Integers(ComputeAttentionRequest::kKeyStartsFieldNumber,
                   request.key_starts);
  message.Message(ComputeAttentionRequest::kOptionsFieldNumber,
                  request.options);
  return std::move(message).Finish();
}

absl::StatusOr<ComputeResult> DecodeResponse(const grpc::ByteBuffer& message,
                                             const ComputeOutputs& outputs) {
  return Decoder(message).Decode(outputs);
}

}  // namespace attention::internal
