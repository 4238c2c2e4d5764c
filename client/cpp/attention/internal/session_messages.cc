#include "attention/internal/session_messages.h"

#include <grpcpp/support/slice.h>
#include <grpcpp/support/status.h>

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "attention/internal/tensor_message.h"
#include "attention/status.h"
#include "attention/v1/session.pb.h"
#include "base/buffer_pool.h"
#include "wire/memory_meter.h"
#include "wire/message_writer.h"
#include "wire/session_response.h"
#include "wire/tensor_fields.h"

namespace attention::internal {
namespace {

using v1::AppendKeyValuesRequest;
using v1::AttendRequest;
using wire::MessageWriter;
using Item = v1::StepItem;

// A step's item begins as an append does.
static_assert(static_cast<int>(AppendKeyValuesRequest::kIdFieldNumber) ==
              Item::kIdFieldNumber);
static_assert(static_cast<int>(AppendKeyValuesRequest::kLayerFieldNumber) ==
              Item::kLayerFieldNumber);
static_assert(
    static_cast<int>(AppendKeyValuesRequest::kExpectedLengthFieldNumber) ==
    Item::kExpectedLengthFieldNumber);
static_assert(static_cast<int>(AppendKeyValuesRequest::kRequestIdFieldNumber) ==
              Item::kRequestIdFieldNumber);
static_assert(static_cast<int>(AppendKeyValuesRequest::kKeyFieldNumber) ==
              Item::kKeyFieldNumber);
static_assert(static_cast<int>(AppendKeyValuesRequest::kValueFieldNumber) ==
              Item::kValueFieldNumber);
static_assert(
    static_cast<int>(AppendKeyValuesRequest::kIncarnationFieldNumber) ==
    Item::kIncarnationFieldNumber);
// An attend too.
static_assert(static_cast<int>(AttendRequest::kIncarnationFieldNumber) ==
              Item::kIncarnationFieldNumber);
static_assert(static_cast<int>(AttendRequest::kIdFieldNumber) ==
              Item::kIdFieldNumber);
static_assert(static_cast<int>(AttendRequest::kLayerFieldNumber) ==
              Item::kLayerFieldNumber);
static_assert(static_cast<int>(AttendRequest::kExpectedLengthFieldNumber) ==
              Item::kExpectedLengthFieldNumber);

// The fields of an attend, which have other numbers in other messages.
struct AttendNumbers {
  int query;
  int mask;
  int options;
  int not_causal;
  int mask_begin;
  int indices;
  int sinks;
};
constexpr AttendNumbers kInAttend = {
    AttendRequest::kQueryFieldNumber,     AttendRequest::kMaskFieldNumber,
    AttendRequest::kOptionsFieldNumber,   AttendRequest::kNotCausalFieldNumber,
    AttendRequest::kMaskBeginFieldNumber, AttendRequest::kIndicesFieldNumber,
    AttendRequest::kSinksFieldNumber};
constexpr AttendNumbers kInStep = {
    Item::kQueryFieldNumber,     Item::kMaskFieldNumber,
    Item::kOptionsFieldNumber,   Item::kNotCausalFieldNumber,
    Item::kMaskBeginFieldNumber, Item::kIndicesFieldNumber,
    Item::kSinksFieldNumber};

void WriteWhere(const LayerRequest& request, MessageWriter& message) {
  message.Copy(Item::kIdFieldNumber, request.id);
  message.Integer(Item::kLayerFieldNumber, request.layer);
  if (request.expected_length) {
    message.OptionalInteger(Item::kExpectedLengthFieldNumber,
                            *request.expected_length);
  }
  message.Copy(Item::kRequestIdFieldNumber, request.request_id);
  message.Integer(Item::kIncarnationFieldNumber,
                  static_cast<int64_t>(request.incarnation));
}

void WriteKeyValues(const LayerRequest& request, Lease& lease,
                    MessageWriter& message) {
  if (request.key != nullptr) {
    WriteTensor(Item::kKeyFieldNumber, *request.key, {}, lease, message);
  }
  if (request.value != nullptr) {
    WriteTensor(Item::kValueFieldNumber, *request.value, {}, lease, message);
  }
}

void WriteAttend(const LayerRequest& request, const AttendNumbers& numbers,
                 Lease& lease, MessageWriter& message) {
  if (request.query == nullptr) return;
  WriteTensor(numbers.query, *request.query, {}, lease, message);
  const AttendOptions& attend = *request.attend;
  if (attend.mask) WriteTensor(numbers.mask, *attend.mask, {}, lease, message);
  if (attend.options.ByteSizeLong() > 0) {
    message.Message(numbers.options, attend.options);
  }
  message.Integer(numbers.not_causal, attend.not_causal ? 1 : 0);
  message.Integer(numbers.mask_begin, attend.mask_begin);
  if (attend.indices) {
    WriteTensor(numbers.indices, *attend.indices, {}, lease, message);
  }
  if (attend.sinks) {
    WriteTensor(numbers.sinks, *attend.sinks, {}, lease, message);
  }
}

// Whether its tokens can be cut: (H, n, size), with all of its bytes.
bool CanBeCut(const TensorSpan& tensor) {
  return tensor.shape.size() == 3 && tensor.shape[0] > 0 &&
         tensor.shape[1] > 0 &&
         BytesFit(tensor.type, tensor.shape, tensor.bytes.size());
}

// Tokens of a tensor that CanBeCut().
void WriteTokens(int field, const TensorSpan& tensor, const TokenRange& range,
                 Lease& lease, MessageWriter& message) {
  const auto heads = static_cast<size_t>(tensor.shape[0]);
  const size_t head_bytes = tensor.bytes.size() / heads;
  const size_t token_bytes = head_bytes / static_cast<size_t>(tensor.shape[1]);
  const auto begin = static_cast<size_t>(range.begin) * token_bytes;
  const auto bytes = static_cast<size_t>(range.end - range.begin) * token_bytes;
  std::vector<grpc::Slice> slices;
  slices.reserve(heads);
  for (size_t head = 0; head < heads; ++head) {
    const auto part = tensor.bytes.subspan(head * head_bytes + begin, bytes);
    slices.push_back(bytes < kLentBytes ? grpc::Slice(part.data(), part.size())
                                        : lease.Lend(part));
  }
  MessageWriter writer = wire::StartTensor(
      tensor.type,
      std::vector<int64_t>{tensor.shape[0], range.end - range.begin,
                           tensor.shape[2]});
  writer.Borrow(v1::Tensor::kDataFieldNumber, std::move(slices));
  message.Message(field, std::move(writer));
}

absl::StatusOr<AttendResult> ResultOf(const wire::AttendResultFields& fields,
                                      const ComputeOutputs& outputs,
                                      AnswerTensors& tensors) {
  AttendResult result;
  if (fields.output.present) {
    tensors.Take("output", fields.output, {}, outputs.output, &result.output);
  }
  tensors.Take("log_sum_exp", fields.log_sum_exp, {}, outputs.log_sum_exp,
               &result.log_sum_exp);
  tensors.Take("scores", fields.scores, {}, outputs.scores, &result.scores);
  if (!tensors.status().ok()) return tensors.status();
  result.timing = fields.timing;
  result.length = fields.length;
  return result;
}

// A number that is no code that this library knows is an error all the same.
grpc::StatusCode CodeOf(int32_t number) {
  return number > 0 && number <= grpc::StatusCode::UNAUTHENTICATED
             ? static_cast<grpc::StatusCode>(number)
             : grpc::StatusCode::UNKNOWN;
}

absl::Status StatusOf(const wire::AttendResultFields& fields) {
  return FromGrpcStatus(
      grpc::Status(CodeOf(fields.code), fields.message, fields.status_details));
}

}  // namespace

std::vector<TokenRange> RangesOf(const TensorSpan& key, const TensorSpan* value,
                                 size_t most_bytes) {
  const int64_t tokens = CanBeCut(key) ? key.shape[1] : 0;
  const size_t bytes =
      key.bytes.size() + (value == nullptr ? 0 : value->bytes.size());
  if (bytes <= most_bytes || tokens == 0 ||
      (value != nullptr && (!CanBeCut(*value) || value->shape[1] != tokens))) {
    return {{0, tokens}};
  }
  const auto token_bytes = bytes / static_cast<size_t>(tokens);
  const auto step =
      std::max<int64_t>(1, static_cast<int64_t>(most_bytes / token_bytes));
  std::vector<TokenRange> ranges;
  for (int64_t begin = 0; begin < tokens; begin += step) {
    ranges.push_back({begin, std::min(tokens, begin + step)});
  }
  return ranges;
}

grpc::ByteBuffer EncodeAppend(const LayerRequest& request, Lease& lease) {
  MessageWriter message;
  WriteWhere(request, message);
  WriteKeyValues(request, lease, message);
  return std::move(message).Finish();
}

grpc::ByteBuffer EncodeAppend(const LayerRequest& request,
                              const TokenRange& range, Lease& lease) {
  MessageWriter message;
  WriteWhere(request, message);
  WriteTokens(AppendKeyValuesRequest::kKeyFieldNumber, *request.key, range,
              lease, message);
  if (request.value != nullptr) {
    WriteTokens(AppendKeyValuesRequest::kValueFieldNumber, *request.value,
                range, lease, message);
  }
  return std::move(message).Finish();
}

grpc::ByteBuffer EncodeAttend(const LayerRequest& request, Lease& lease) {
  MessageWriter message;
  WriteWhere(request, message);
  WriteAttend(request, kInAttend, lease, message);
  if (request.shard != nullptr) {
    message.Message(AttendRequest::kShardFieldNumber, *request.shard);
  }
  return std::move(message).Finish();
}

grpc::ByteBuffer EncodeStep(std::span<const LayerRequest> items, Lease& lease) {
  MessageWriter message;
  for (const LayerRequest& item : items) {
    MessageWriter writer;
    WriteWhere(item, writer);
    WriteKeyValues(item, lease, writer);
    WriteAttend(item, kInStep, lease, writer);
    message.Message(v1::StepRequest::kItemsFieldNumber, std::move(writer));
  }
  return std::move(message).Finish();
}

absl::StatusOr<AttendResult> DecodeAttend(const grpc::ByteBuffer& message,
                                          const ComputeOutputs& outputs) {
  AnswerTensors tensors(message);
  wire::MemoryMeter meter;
  auto fields = wire::DecodeAttendResponse(tensors.slices(),
                                           *BufferPool::Create(0), meter);
  if (!fields.ok()) return MalformedAnswer(fields.status());
  return ResultOf(*fields, outputs, tensors);
}

absl::StatusOr<std::vector<StepOutcome>> DecodeStep(
    const grpc::ByteBuffer& message, std::span<const LayerRequest> items) {
  AnswerTensors tensors(message);
  wire::MemoryMeter meter;
  auto fields = wire::DecodeStepResponse(
      tensors.slices(), *BufferPool::Create(0), meter, items.size());
  if (!fields.ok()) return MalformedAnswer(fields.status());
  if (fields->results.size() != items.size()) {
    return MalformedAnswer(absl::InternalError(
        absl::StrCat("got ", fields->results.size(), " results, wanted ",
                     items.size(), ", one for each item")));
  }
  std::vector<StepOutcome> outcomes;
  outcomes.reserve(items.size());
  for (size_t i = 0; i < items.size(); ++i) {
    const wire::AttendResultFields& result = fields->results[i];
    if (result.code != 0) {
      outcomes.push_back({.result = StatusOf(result)});
      continue;
    }
    // What is wrong with one item is not with the next.
    AnswerTensors own = tensors;
    outcomes.push_back(
        {.result = ResultOf(result, items[i].attend->outputs, own),
         .done = true,
         .length = result.length});
    if (outcomes.back().result.ok()) {
      outcomes.back().result->timing = fields->timing;
    }
  }
  return outcomes;
}

}  // namespace attention::internal
