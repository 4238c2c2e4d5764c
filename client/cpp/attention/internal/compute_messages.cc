#include "attention/internal/compute_messages.h"

#include <cstdint>
#include <cstring>
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

void Encode(int field, const TensorSpan& tensor,
            const SharedPlaces::Input& place, Lease& lease,
            wire::MessageWriter& message) {
  wire::MessageWriter writer = wire::StartTensor(tensor.type, tensor.shape);
  const std::span<const std::byte> bytes = tensor.bytes;
  if (!place.region.empty()) {
    wire::WriteSharedMemory(v1::Tensor::kSharedMemoryFieldNumber, place.region,
                            place.offset, writer);
  } else if (bytes.size() < kLentBytes) {
    writer.Copy(v1::Tensor::kDataFieldNumber,
                {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  } else {
    writer.Borrow(v1::Tensor::kDataFieldNumber, lease.Lend(bytes));
  }
  message.Message(field, std::move(writer));
}

void EncodeOutputs(const SharedPlaces& places, wire::MessageWriter& message) {
  wire::MessageWriter outputs;
  const auto add = [&](int field, const SharedPlaces::Output& place) {
    if (place.region.empty()) return;
    wire::WriteSharedMemory(field, place.region, place.offset, outputs);
  };
  add(v1::OutputMemory::kOutputFieldNumber, places.output);
  add(v1::OutputMemory::kLogSumExpFieldNumber, places.log_sum_exp);
  add(v1::OutputMemory::kScoresFieldNumber, places.scores);
  add(v1::OutputMemory::kPresentKeyFieldNumber, places.present_key);
  add(v1::OutputMemory::kPresentValueFieldNumber, places.present_value);
  if (outputs.bytes() == 0) return;
  message.Message(ComputeAttentionRequest::kOutputsFieldNumber,
                  std::move(outputs));
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

  absl::StatusOr<ComputeResult> Decode(const ComputeOutputs& outputs,
                                       const SharedPlaces& places) {
    wire::MemoryMeter meter;
    absl::StatusOr<wire::ResponseFields> fields =
        wire::DecodeResponse(*slices_, *BufferPool::Create(0), meter);
    if (!fields.ok()) {
      return absl::InternalError(
          absl::StrCat("malformed answer: ", fields.status().message()));
    }
    ComputeResult result;
    Add("output", fields->output, places.output, outputs.output,
        &result.output);
    const auto add =
        [&](absl::string_view name, const wire::TensorFields& tensor,
            const SharedPlaces::Output& place, std::span<std::byte> memory,
            std::optional<Tensor>* target) {
          if (!tensor.present) return;
          Add(name, tensor, place, memory, &target->emplace());
        };
    add("log_sum_exp", fields->log_sum_exp, places.log_sum_exp,
        outputs.log_sum_exp, &result.log_sum_exp);
    add("scores", fields->scores, places.scores, outputs.scores,
        &result.scores);
    add("present_key", fields->present_key, places.present_key,
        outputs.present_key, &result.present_key);
    add("present_value", fields->present_value, places.present_value,
        outputs.present_value, &result.present_value);
    if (!status_.ok()) return status_;
    result.timing = std::move(fields->timing);
    return result;
  }

 private:
  void Add(absl::string_view name, const wire::TensorFields& tensor,
           const SharedPlaces::Output& place, std::span<std::byte> memory,
           Tensor* target) {
    if (!status_.ok()) return;
    const auto type = static_cast<v1::DataType>(tensor.data_type);
    std::vector<int64_t> shape(tensor.shape.begin(), tensor.shape.end());
    // The server writes all of the memory, or none.
    const bool shared = tensor.shared_memory.present && !place.region.empty();
    const size_t bytes = shared ? place.memory.size() : tensor.data.remaining();
    if (tensor.rank > wire::kMaxRank || !BytesFit(type, shape, bytes)) {
      status_ = Malformed(name, tensor);
      return;
    }
    std::shared_ptr<const std::byte> elements;
    if (memory.data() == nullptr && shared) {
      std::shared_ptr<std::byte[]> copy(new std::byte[bytes]);
      std::memcpy(copy.get(), place.memory.data(), bytes);
      elements = {copy, copy.get()};
    } else if (memory.data() == nullptr) {
      elements = Keep(tensor.data, ElementSize(type), slices_);
    } else if (memory.size() < bytes) {
      status_ = absl::InvalidArgumentError(absl::StrCat(
          "outputs.", name, ": got ", memory.size(), " bytes, wanted ", bytes,
          " for shape (", absl::StrJoin(shape, ", "), ") of ", TypeName(type)));
      return;
    } else {
      if (shared) {
        std::memcpy(memory.data(), place.memory.data(), bytes);
      } else {
        wire::SliceReader data = tensor.data;
        data.ReadBytes(memory.data(), bytes);
      }
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

wire::MessageWriter WriteRequest(const ComputeRequest& request, Lease& lease,
                                 const SharedPlaces& places) {
  wire::MessageWriter message;
  const auto add = [&](int field, const TensorSpan& tensor,
                       const SharedPlaces::Input& place) {
    Encode(field, tensor, place, lease, message);
  };
  add(ComputeAttentionRequest::kQueryFieldNumber, request.query, places.query);
  add(ComputeAttentionRequest::kKeyFieldNumber, request.key, places.key);
  add(ComputeAttentionRequest::kValueFieldNumber, request.value, places.value);
  if (request.mask) {
    add(ComputeAttentionRequest::kMaskFieldNumber, *request.mask, places.mask);
  }
  if (request.past_key) {
    add(ComputeAttentionRequest::kPastKeyFieldNumber, *request.past_key,
        places.past_key);
  }
  if (request.past_value) {
    add(ComputeAttentionRequest::kPastValueFieldNumber, *request.past_value,
        places.past_value);
  }
  message.Integers(ComputeAttentionRequest::kValidLengthsFieldNumber,
                   request.valid_lengths);
  message.Integers(ComputeAttentionRequest::kQueryStartsFieldNumber,
                   request.query_starts);
  message.Integers(ComputeAttentionRequest::kKeyStartsFieldNumber,
                   request.key_starts);
  message.Message(ComputeAttentionRequest::kOptionsFieldNumber,
                  request.options);
  EncodeOutputs(places, message);
  return message;
}

grpc::ByteBuffer EncodeRequest(const ComputeRequest& request, Lease& lease,
                               const SharedPlaces& places) {
  return WriteRequest(request, lease, places).Finish();
}

absl::StatusOr<ComputeResult> DecodeResponse(const grpc::ByteBuffer& message,
                                             const ComputeOutputs& outputs,
                                             const SharedPlaces& places) {
  return Decoder(message).Decode(outputs, places);
}

}  // namespace attention::internal
