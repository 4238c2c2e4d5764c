#include "attention/internal/tensor_message.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/types/span.h"
#include "attention/v1/attention.pb.h"
#include "wire/slice_reader.h"

namespace attention::internal {
namespace {

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

}  // namespace

void WriteTensor(int field, const TensorSpan& tensor, const SharedInput& place,
                 Lease& lease, wire::MessageWriter& message) {
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

absl::Status MalformedAnswer(const absl::Status& why) {
  return absl::InternalError(absl::StrCat("malformed answer: ", why.message()));
}

AnswerTensors::AnswerTensors(const grpc::ByteBuffer& message)
    : slices_(std::make_shared<std::vector<grpc::Slice>>()) {
  static_cast<void>(message.Dump(slices_.get()));
}

void AnswerTensors::Take(absl::string_view field,
                         const wire::TensorFields& tensor,
                         const SharedOutput& place, std::span<std::byte> memory,
                         Tensor* target) {
  if (!status_.ok()) return;
  const auto type = static_cast<v1::DataType>(tensor.data_type);
  std::vector<int64_t> shape(tensor.shape.begin(), tensor.shape.end());
  // The server writes all of the memory, or none.
  const bool shared = tensor.shared_memory.present && !place.region.empty();
  const size_t bytes = shared ? place.memory.size() : tensor.data.remaining();
  if (tensor.rank > wire::kMaxRank || !BytesFit(type, shape, bytes)) {
    status_ = Malformed(field, tensor);
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
        "outputs.", field, ": got ", memory.size(), " bytes, wanted ", bytes,
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

void AnswerTensors::Take(absl::string_view field,
                         const wire::TensorFields& tensor,
                         const SharedOutput& place, std::span<std::byte> memory,
                         std::optional<Tensor>* target) {
  if (tensor.present) Take(field, tensor, place, memory, &target->emplace());
}

}  // namespace attention::internal
