#include "attention/internal/shared_request.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "attention/internal/key_chunks.h"
#include "attention/status.h"

namespace attention::internal {
namespace {

// A tensor of fewer bytes stays in the message, whatever others do.
constexpr size_t kLeastTensor = size_t{4} << 10;
// Of tensors in an area: what the kernel reads fastest.
constexpr size_t kAlignment = 64;

size_t Aligned(size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

struct Input {
  const TensorSpan* tensor;
  SharedPlaces::Input* place;
};

std::vector<Input> InputsOf(const ComputeRequest& request,
                            SharedPlaces& places) {
  std::vector<Input> inputs = {{&request.query, &places.query},
                               {&request.key, &places.key},
                               {&request.value, &places.value}};
  const auto add = [&](const std::optional<TensorSpan>& tensor,
                       SharedPlaces::Input& place) {
    if (tensor) inputs.push_back({&*tensor, &place});
  };
  add(request.mask, places.mask);
  add(request.past_key, places.past_key);
  add(request.past_value, places.past_value);
  add(request.indices, places.indices);
  add(request.sinks, places.sinks);
  return inputs;
}

// Bytes of the answer's tensors that may be large; 0 where they are not asked
// for, or the request makes no sense.
struct AnswerBytes {
  size_t output = 0;
  size_t scores = 0;
  size_t present_key = 0;
  size_t present_value = 0;
};

// More than any server answers, and few enough to be added.
constexpr size_t kTooMany = size_t{1} << 60;

size_t Product(size_t a, size_t b, size_t c) {
  size_t product;
  return __builtin_mul_overflow(a, b, &product) ||
                 __builtin_mul_overflow(product, c, &product)
             ? kTooMany
             : std::min(product, kTooMany);
}

AnswerBytes AnswerBytesOf(const ComputeRequest& request) {
  AnswerBytes bytes;
  const std::optional<LayoutAxes> axes = AxesOf(request);
  const size_t element = ElementSize(request.query.type);
  if (!axes || element == 0 || request.query.shape.size() != axes->rank ||
      request.key.shape.size() != axes->rank ||
      request.value.shape.size() != axes->rank) {
    return bytes;
  }
  const bool packed = axes->layout == v1::LAYOUT_PACKED;
  const v1::AttentionOptions& options = request.options;
  const int64_t query_heads = packed ? options.query_heads() : 1;
  const int64_t kv_heads = packed ? options.kv_heads() : 1;
  if (query_heads <= 0 || kv_heads <= 0) return bytes;
  const int64_t head_size = request.query.shape.back() / query_heads;
  const int64_t value_size = request.value.shape.back() / kv_heads;
  if (head_size <= 0 || value_size <= 0) return bytes;
  const size_t rows =
      request.query.bytes.size() / element / static_cast<size_t>(head_size);
  bytes.output = Product(rows, static_cast<size_t>(value_size), element);
  if (options.return_scores() != v1::SCORES_UNSPECIFIED) {
    int64_t keys = request.key.shape[axes->length_axis];
    if (request.past_key && request.past_key->shape.size() == 4) {
      // The server refuses what it cannot count.
      if (__builtin_add_overflow(keys, request.past_key->shape[2], &keys)) {
        return bytes;
      }
    }
    bytes.scores =
        Product(rows, static_cast<size_t>(std::max<int64_t>(0, keys)), element);
  }
  if (options.return_present()) {
    const auto past = [](const std::optional<TensorSpan>& tensor) {
      return tensor ? tensor->bytes.size() : 0;
    };
    bytes.present_key = request.key.bytes.size() + past(request.past_key);
    bytes.present_value = request.value.bytes.size() + past(request.past_value);
  }
  return bytes;
}

size_t Sum(const AnswerBytes& bytes) {
  return bytes.output + bytes.scores + bytes.present_key + bytes.present_value;
}

// Whether a call that ended so has certainly left its memory alone: it was
// answered, or refused before it began.
bool LeftMemory(const absl::Status& status) {
  if (status.ok()) return true;
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kPermissionDenied:
      return true;
    case absl::StatusCode::kResourceExhausted: {
      const std::string reason = ErrorReason(status);
      constexpr std::array<const char*, 9> kBeforeItBegan = {
          "QUEUE_FULL",       "DEADLINE_TOO_CLOSE", "REQUEST_TOO_LARGE",
          "ANSWER_TOO_LARGE", "MEMORY_TOO_LARGE",   "HEADERS_TOO_LARGE",
          "TENANT_TOO_LARGE", "TENANT_BYTES",       "TENANT_WORK"};
      return std::find(kBeforeItBegan.begin(), kBeforeItBegan.end(), reason) !=
             kBeforeItBegan.end();
    }
    default:
      return false;
  }
}

}  // namespace

bool WorthSharing(SharedMemory& memory, const ComputeRequest& request) {
  SharedPlaces unused;
  size_t copied = 0;
  for (const Input& input : InputsOf(request, unused)) {
    const std::span<const std::byte> bytes = input.tensor->bytes;
    if (bytes.size() >= kLeastTensor && memory.Allocated(bytes)) return true;
    copied += bytes.size();
  }
  return copied >= SharedRequest::kLeastCopied ||
         Sum(AnswerBytesOf(request)) >= SharedRequest::kLeastAnswer;
}

std::unique_ptr<SharedRequest> SharedRequest::Of(
    std::shared_ptr<SharedMemory> memory, const ComputeRequest& request,
    const Patience& patience) {
  std::unique_ptr<SharedRequest> shared(new SharedRequest(std::move(memory)));
  if (!shared->Place(request, patience)) return nullptr;
  return shared;
}

bool SharedRequest::Place(const ComputeRequest& request,
                          const Patience& patience) {
  bool any = false;
  std::vector<Input> copied;
  size_t copied_bytes = 0;
  for (const Input& input : InputsOf(request, places_)) {
    const std::span<const std::byte> bytes = input.tensor->bytes;
    // As bytes of a message the server sees what is wrong with them.
    if (!BytesFit(input.tensor->type, input.tensor->shape, bytes.size())) {
      return false;
    }
    if (bytes.size() < kLeastTensor) continue;
    auto place = memory_->Find(bytes, patience);
    const auto element = static_cast<int64_t>(ElementSize(input.tensor->type));
    if (place && place->offset % element == 0) {
      *input.place = {std::move(place->region), place->offset};
      any = true;
      continue;
    }
    copied.push_back(input);
    copied_bytes += Aligned(bytes.size());
  }
  if (copied_bytes < kLeastCopied) {
    copied.clear();
    copied_bytes = 0;
  }
  AnswerBytes answer = AnswerBytesOf(request);
  // In a message gRPC looks after its size.
  const int64_t most = memory_->max_receive_bytes();
  if (Sum(answer) < kLeastAnswer ||
      (most >= 0 && Sum(answer) > static_cast<size_t>(most))) {
    answer = {};
  }
  const size_t area_bytes =
      copied_bytes + Aligned(answer.output) + Aligned(answer.scores) +
      Aligned(answer.present_key) + Aligned(answer.present_value);
  if (area_bytes == 0) return any;
  area_ = memory_->TakeArea(area_bytes, patience);
  if (area_ == nullptr) {
    // What has its place stays there, if the rest fits into a message.
    return any && copied_bytes <= SharedMemory::kLargestArea;
  }
  size_t next = 0;
  for (const Input& input : copied) {
    const std::span<const std::byte> bytes = input.tensor->bytes;
    std::memcpy(area_->bytes().data() + next, bytes.data(), bytes.size());
    *input.place = {area_->region(), static_cast<int64_t>(next)};
    next += Aligned(bytes.size());
  }
  const auto reserve = [&](size_t bytes, SharedPlaces::Output& place) {
    if (bytes == 0) return;
    place.region = area_->region();
    place.offset = static_cast<int64_t>(next);
    place.memory = area_->bytes().subspan(next, bytes);
    next += Aligned(bytes);
  };
  reserve(answer.output, places_.output);
  reserve(answer.scores, places_.scores);
  reserve(answer.present_key, places_.present_key);
  reserve(answer.present_value, places_.present_value);
  return true;
}

bool SharedRequest::Ended(const absl::Status& status) {
  if (area_ != nullptr) {
    memory_->ReturnArea(std::move(area_), LeftMemory(status));
  }
  if (status.ok()) memory_->Worked();
  if (!absl::IsNotFound(status) || ErrorReason(status) != "REGION_UNKNOWN") {
    return true;
  }
  memory_->Lost(connection_);
  return false;
}

SharedRequest::~SharedRequest() {
  if (area_ != nullptr) memory_->ReturnArea(std::move(area_), /*idle=*/false);
}

}  // namespace attention::internal
