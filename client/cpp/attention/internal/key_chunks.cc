#include "attention/internal/key_chunks.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>

#include "attention/internal/compute_messages.h"
#include "wire/message_writer.h"
#include "wire/tensor_fields.h"

namespace attention::internal {
namespace {

using v1::KeyValueChunk;
using v1::StreamAttentionRequest;

// Shorter runs are copied into one piece: a slice for each would cost more.
constexpr int64_t kLeastLentRun = int64_t{8} << 10;

// Of all sequences, in a chunk of its own if it has to be.
constexpr int64_t kMostTokenBytes = (int64_t{8} << 20) - (int64_t{4} << 10);

// Bytes of all of `view` per element of its axis.
int64_t BytesPerToken(const AxisView& view) {
  return view.outer * view.inner_bytes;
}

// Elements [begin, end) of the axis, as the `data` field of a Tensor message.
void AddData(const AxisView& view, int64_t begin, int64_t end, Lease& lease,
             wire::MessageWriter& tensor) {
  if (view.outer == 0) return;  // No elements: the shape says it all.
  const int64_t run = (end - begin) * view.inner_bytes;
  if (run >= kLeastLentRun) {
    std::vector<grpc::Slice> slices;
    slices.reserve(view.outer);
    for (int64_t o = 0; o < view.outer; ++o) {
      slices.push_back(lease.Lend(view.Run(o, begin, end)));
    }
    tensor.Borrow(v1::Tensor::kDataFieldNumber, std::move(slices));
    return;
  }
  grpc::Slice copy(static_cast<size_t>(run * view.outer));
  auto* to = const_cast<uint8_t*>(copy.begin());
  for (int64_t o = 0; o < view.outer; ++o, to += run) {
    std::memcpy(to, view.Run(o, begin, end).data(), run);
  }
  tensor.Borrow(v1::Tensor::kDataFieldNumber, std::move(copy));
}

std::vector<int64_t> WithLength(std::vector<int64_t> shape, size_t axis,
                                int64_t length) {
  shape[axis] = length;
  return shape;
}

void AddSlice(int field, const AxisView& view, int64_t begin, int64_t end,
              Lease& lease, wire::MessageWriter& message) {
  wire::MessageWriter tensor = wire::StartTensor(
      view.type, WithLength(view.shape, view.axis, end - begin));
  AddData(view, begin, end, lease, tensor);
  message.Message(field, std::move(tensor));
}

// Past tokens [begin, end), (B, Hkv, P, D), as a slice of `current`, in whose
// layout heads may stand after tokens.
void AddPastSlice(int field, const AxisView& past, const AxisView& current,
                  bool heads_after_tokens, int64_t kv_heads, int64_t begin,
                  int64_t end, Lease& lease, wire::MessageWriter& message) {
  wire::MessageWriter tensor = wire::StartTensor(
      current.type, WithLength(current.shape, current.axis, end - begin));
  if (!heads_after_tokens) {
    AddData(past, begin, end, lease, tensor);
  } else {
    const int64_t row = past.inner_bytes;
    grpc::Slice copy(static_cast<size_t>(past.outer * (end - begin) * row));
    auto* to = const_cast<uint8_t*>(copy.begin());
    for (int64_t b = 0; b < past.outer / kv_heads; ++b) {
      for (int64_t token = begin; token < end; ++token) {
        for (int64_t h = 0; h < kv_heads; ++h, to += row) {
          std::memcpy(to, past.Run(b * kv_heads + h, token, token + 1).data(),
                      row);
        }
      }
    }
    tensor.Borrow(v1::Tensor::kDataFieldNumber, std::move(copy));
  }
  message.Message(field, std::move(tensor));
}

// What the server's memory for a row is, in elements of at least FLOAT32: the
// query, and a partial for each open node of the tree over blocks of 256 keys.
int64_t StateBytes(const ComputeRequest& request, const LayoutAxes& axes,
                   int64_t keys) {
  const bool packed = axes.layout == v1::LAYOUT_PACKED;
  const v1::AttentionOptions& options = request.options;
  if (packed && (options.query_heads() <= 0 || options.kv_heads() <= 0)) {
    return 0;  // The server says what is wrong.
  }
  const double head_size =
      static_cast<double>(request.query.shape.back()) /
      static_cast<double>(packed ? options.query_heads() : 1);
  const double value_size =
      static_cast<double>(request.value.shape.back()) /
      static_cast<double>(packed ? options.kv_heads() : 1);
  const size_t element = ElementSize(request.query.type);
  if (element == 0 || head_size < 1) return 0;
  const double elements = static_cast<double>(request.query.bytes.size()) /
                          static_cast<double>(element);
  const double levels = 2 + std::log2(1 + static_cast<double>(keys) / 256);
  return static_cast<int64_t>(
      static_cast<double>(std::max(sizeof(float), element)) *
      (elements + elements / head_size * levels * (value_size + 2)));
}

// Past tensors of no keys are as none.
bool HasPast(const ComputeRequest& request) {
  const auto has = [](const std::optional<TensorSpan>& tensor) {
    return tensor && !(tensor->shape.size() == 4 && tensor->shape[2] == 0);
  };
  return has(request.past_key) || has(request.past_value);
}

// Whether the output's last axis has a length that can be counted.
bool OutputFits(const ComputeRequest& request, const LayoutAxes& axes) {
  const v1::AttentionOptions& options = request.options;
  if (axes.layout != v1::LAYOUT_PACKED || options.kv_heads() <= 0) return true;
  int64_t length;
  return !__builtin_mul_overflow(
      options.query_heads(), request.value.shape.back() / options.kv_heads(),
      &length);
}

bool SameButLength(const AxisView& a, const AxisView& b) {
  return a.type == b.type && a.inner_bytes == b.inner_bytes &&
         a.outer == b.outer;
}

}  // namespace

std::optional<AxisView> AxisView::Of(const TensorSpan& tensor, size_t axis) {
  if (axis >= tensor.shape.size() ||
      !BytesFit(tensor.type, tensor.shape, tensor.bytes.size())) {
    return std::nullopt;
  }
  AxisView view;
  view.bytes = tensor.bytes;
  view.type = tensor.type;
  view.shape = tensor.shape;
  view.axis = axis;
  view.length = tensor.shape[axis];
  view.inner_bytes = static_cast<int64_t>(ElementSize(tensor.type));
  if (tensor.bytes.empty()) {
    view.outer = 0;
    return view;
  }
  // Cannot overflow: there are bytes for all of it.
  for (size_t i = 0; i < axis; ++i) view.outer *= tensor.shape[i];
  for (size_t i = axis + 1; i < tensor.shape.size(); ++i) {
    view.inner_bytes *= tensor.shape[i];
  }
  return view;
}

std::optional<LayoutAxes> AxesOf(const ComputeRequest& request) {
  const size_t rank = request.query.shape.size();
  v1::Layout layout = request.options.layout();
  if (layout == v1::LAYOUT_UNSPECIFIED) {
    layout = rank == 2   ? v1::LAYOUT_MATRIX
             : rank == 3 ? v1::LAYOUT_PACKED
             : rank == 4 ? v1::LAYOUT_BHSD
                         : v1::LAYOUT_UNSPECIFIED;
  }
  switch (layout) {
    case v1::LAYOUT_MATRIX:
      return LayoutAxes{layout, 2, 0};
    case v1::LAYOUT_PACKED:
      return LayoutAxes{layout, 3, 1};
    case v1::LAYOUT_BHSD:
      return LayoutAxes{layout, 4, 2};
    case v1::LAYOUT_BSHD:
      return LayoutAxes{layout, 4, 1};
    case v1::LAYOUT_RAGGED:
      return LayoutAxes{layout, 3, 0};
    default:
      return std::nullopt;
  }
}

std::optional<KeyChunks> KeyChunks::Of(const ComputeRequest& request,
                                       int64_t chunk_bytes) {
  if (request.options.return_scores() != v1::SCORES_UNSPECIFIED) {
    return std::nullopt;
  }
  if (request.options.return_present()) return std::nullopt;
  const std::optional<LayoutAxes> axes = AxesOf(request);
  if (!axes || request.query.shape.size() != axes->rank ||
      request.key.shape.size() != axes->rank ||
      request.value.shape.size() != axes->rank) {
    return std::nullopt;
  }
  const auto key = AxisView::Of(request.key, axes->length_axis);
  const auto value = AxisView::Of(request.value, axes->length_axis);
  if (!key || !value || key->length != value->length || key->length == 0 ||
      key->bytes.empty() || value->bytes.empty() ||
      !OutputFits(request, *axes)) {
    return std::nullopt;
  }
  KeyChunks chunks;
  chunks.axes_ = *axes;
  chunks.key_ = *key;
  chunks.value_ = *value;
  chunks.keys_ = key->length;
  int64_t token_bytes = BytesPerToken(*key) + BytesPerToken(*value);
  chunks.total_bytes_ = key->length * token_bytes;
  if (HasPast(request)) {
    if (!request.past_key || !request.past_value) return std::nullopt;
    const auto past_key = AxisView::Of(*request.past_key, 2);
    const auto past_value = AxisView::Of(*request.past_value, 2);
    if (!past_key || !past_value || request.past_key->shape.size() != 4 ||
        request.past_value->shape.size() != 4 ||
        past_key->length != past_value->length || past_key->bytes.empty() ||
        past_value->bytes.empty()) {
      return std::nullopt;
    }
    chunks.kv_heads_ = request.past_key->shape[1];
    // Whatever the layout: the same bytes per token.
    if (chunks.kv_heads_ == 0 ||
        BytesPerToken(*past_key) != BytesPerToken(*key) ||
        BytesPerToken(*past_value) != BytesPerToken(*value) ||
        past_key->type != key->type || past_value->type != value->type ||
        request.past_value->shape[1] != chunks.kv_heads_) {
      return std::nullopt;
    }
    if (axes->layout == v1::LAYOUT_BHSD &&
        (!SameButLength(*past_key, *key) ||
         !SameButLength(*past_value, *value))) {
      return std::nullopt;
    }
    chunks.past_ = Past{*past_key, *past_value};
    chunks.past_length_ = past_key->length;
    chunks.keys_ += past_key->length;
    chunks.total_bytes_ += past_key->length * token_bytes;
  }
  if (request.mask) {
    if (request.mask->shape.empty() ||
        request.mask->type == v1::DATA_TYPE_BITS) {
      return std::nullopt;
    }
    const auto mask =
        AxisView::Of(*request.mask, request.mask->shape.size() - 1);
    if (!mask || mask->length > chunks.keys_) return std::nullopt;
    if (!mask->bytes.empty()) {
      token_bytes += BytesPerToken(*mask);
      chunks.total_bytes_ += static_cast<int64_t>(mask->bytes.size());
    }
    chunks.mask_ = *mask;
  }
  chunks.state_bytes_ = StateBytes(request, *axes, chunks.keys_);
  chunks.tokens_per_chunk_ = std::max<int64_t>(1, chunk_bytes / token_bytes);
  // Servers take no more by default.
  if (token_bytes > kMostTokenBytes) return std::nullopt;
  // Whole blocks of the server's, where that is possible.
  constexpr int64_t kBlock = 256;
  if (chunks.tokens_per_chunk_ > kBlock) {
    chunks.tokens_per_chunk_ -= chunks.tokens_per_chunk_ % kBlock;
  }
  return chunks;
}

std::optional<grpc::ByteBuffer> KeyChunks::Next(Lease& lease) {
  if (next_ == keys_) return std::nullopt;
  const int64_t begin = next_;
  // No chunk has past and new keys: they lie in different tensors.
  const bool past = begin < past_length_;
  const int64_t end =
      std::min(begin + tokens_per_chunk_, past ? past_length_ : keys_);
  next_ = end;
  wire::MessageWriter chunk;
  if (past) {
    const bool heads_after_tokens =
        axes_.layout == v1::LAYOUT_BSHD || axes_.layout == v1::LAYOUT_PACKED;
    AddPastSlice(KeyValueChunk::kKeyFieldNumber, past_->key, key_,
                 heads_after_tokens, kv_heads_, begin, end, lease, chunk);
    AddPastSlice(KeyValueChunk::kValueFieldNumber, past_->value, value_,
                 heads_after_tokens, kv_heads_, begin, end, lease, chunk);
  } else {
    AddSlice(KeyValueChunk::kKeyFieldNumber, key_, begin - past_length_,
             end - past_length_, lease, chunk);
    AddSlice(KeyValueChunk::kValueFieldNumber, value_, begin - past_length_,
             end - past_length_, lease, chunk);
  }
  if (mask_ && begin < mask_->length) {
    AddSlice(KeyValueChunk::kMaskFieldNumber, *mask_, begin,
             std::min(end, mask_->length), lease, chunk);
  }
  wire::MessageWriter message;
  message.Message(StreamAttentionRequest::kChunkFieldNumber, std::move(chunk));
  sent_bytes_ += static_cast<int64_t>(message.bytes());
  sent_bytes_ = std::min(sent_bytes_, total_bytes_);
  return std::move(message).Finish();
}

grpc::ByteBuffer EncodeHeader(const ComputeRequest& request, Lease& lease) {
  ComputeRequest header = request;
  // Type and shape alone.
  header.key.bytes = {};
  header.value.bytes = {};
  for (auto* tensor : {&header.mask, &header.past_key, &header.past_value}) {
    if (*tensor) (*tensor)->bytes = {};
  }
  wire::MessageWriter message;
  message.Message(StreamAttentionRequest::kHeaderFieldNumber,
                  WriteRequest(header, lease));
  return std::move(message).Finish();
}

}  // namespace attention::internal
