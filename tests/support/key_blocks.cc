#include "tests/support/key_blocks.h"

#include <algorithm>
#include <utility>

#include "absl/types/span.h"

namespace attention::test {
namespace {

// The layout that the shapes mean, with Hkv.
struct Geometry {
  Layout layout;
  int64_t kv_heads;
};

Geometry GeometryOf(const AttentionCase& request) {
  Layout layout = request.options.layout;
  const Shape& shape = request.key.shape();
  if (layout == Layout::kByRank) {
    layout = shape.size() == 2   ? Layout::kMatrix
             : shape.size() == 3 ? Layout::kPacked
                                 : Layout::kBHSD;
  }
  switch (layout) {
    case Layout::kMatrix:
      return {layout, 1};
    case Layout::kPacked:
      return {layout, request.options.kv_heads};
    case Layout::kBSHD:
      return {layout, shape[2]};
    default:
      return {layout, shape[1]};
  }
}

// Element (sequence, head, new key, column) of key or value.
double NewElement(const AttentionCase& request, const Tensor& tensor,
                  int64_t sequence, int64_t head, int64_t key, int64_t column) {
  const Geometry geometry = GeometryOf(request);
  const int64_t columns = tensor.shape().back();
  switch (geometry.layout) {
    case Layout::kMatrix:
      return tensor.Get(Shape{key, column});
    case Layout::kPacked:
      return tensor.Get(
          Shape{sequence, key, head * (columns / geometry.kv_heads) + column});
    case Layout::kBSHD:
      return tensor.Get(Shape{sequence, key, head, column});
    case Layout::kRagged:
      return tensor.Get(
          Shape{request.key_starts[sequence] + key, head, column});
    default:
      return tensor.Get(Shape{sequence, head, key, column});
  }
}

double Element(const AttentionCase& request, const Tensor& tensor,
               const std::optional<Tensor>& past, int64_t sequence,
               int64_t head, int64_t key, int64_t column) {
  if (!past) return NewElement(request, tensor, sequence, head, key, column);
  const int64_t past_length = past->shape()[2];
  if (key < past_length) return past->Get({sequence, head, key, column});
  return NewElement(request, tensor, sequence, head, key - past_length, column);
}

int64_t HeadSize(const AttentionCase& request, const Tensor& tensor) {
  const Geometry geometry = GeometryOf(request);
  const int64_t columns = tensor.shape().back();
  return geometry.layout == Layout::kPacked ? columns / geometry.kv_heads
                                            : columns;
}

// The distance between heads and between tokens of blocks of `tokens` tokens.
struct Strides {
  int64_t head;
  int64_t token;
};
Strides RandomStrides(Random& random, int64_t heads, int64_t size) {
  const int64_t padded = size + random.Pick<int64_t>({0, 0, 1, 3, 16});
  if (random.Chance(0.5)) {
    return {padded, padded * heads + random.Integer(0, 2)};
  }
  return {padded * kKeyBlock + random.Integer(0, 5), padded};
}

void Empty(ConstTensorView& view) {
  view.data = nullptr;
  view.strides.clear();
}

}  // namespace

AttentionInputs WithoutKeys(const AttentionCase& request) {
  AttentionInputs inputs = request.inputs();
  Empty(inputs.key);
  Empty(inputs.value);
  for (std::optional<ConstTensorView>* view :
       {&inputs.mask, &inputs.past_key, &inputs.past_value}) {
    if (*view) Empty(**view);
  }
  return inputs;
}

int64_t SequencesOf(const AttentionCase& request) {
  if (GeometryOf(request).layout == Layout::kMatrix) return 1;
  if (GeometryOf(request).layout == Layout::kRagged) {
    return static_cast<int64_t>(request.key_starts.size()) - 1;
  }
  return request.key.shape()[0];
}

int64_t KeysOf(const AttentionCase& request, int64_t sequence) {
  const Shape& shape = request.key.shape();
  const int64_t past = request.past_key ? request.past_key->shape()[2] : 0;
  switch (GeometryOf(request).layout) {
    case Layout::kRagged:
      return request.key_starts[sequence + 1] - request.key_starts[sequence];
    case Layout::kMatrix:
      return past + shape[0];
    case Layout::kPacked:
    case Layout::kBSHD:
      return past + shape[1];
    default:
      return past + shape[2];
  }
}

KeyBlocks::KeyBlocks(Random& random, const AttentionCase& request,
                     int64_t first, int64_t last, int64_t begin, int64_t end)
    : first_(first) {
  const int64_t heads = GeometryOf(request).kv_heads;
  const int64_t size = HeadSize(request, request.key);
  const int64_t value_size = HeadSize(request, request.value);
  blocks_.resize(last - first);
  int64_t longest = 0;
  for (int64_t sequence = first; sequence < last; ++sequence) {
    const int64_t stop = std::min(end, KeysOf(request, sequence));
    const Strides strides = RandomStrides(random, heads, size);
    const Strides value_strides = RandomStrides(random, heads, value_size);
    KeyValueView view;
    view.begin = std::min(begin, stop);
    view.length = stop - view.begin;
    view.key_row_stride = strides.token;
    view.value_row_stride = value_strides.token;
    longest = std::max(longest, view.length);
    for (int64_t key = view.begin; key < stop; key += kKeyBlock) {
      const int64_t count = std::min(kKeyBlock, stop - key);
      KeyValueView::Block block;
      const auto copy = [&](const Tensor& from,
                            const std::optional<Tensor>& past, int64_t columns,
                            const Strides& distance) {
        Tensor to(from.type(), {heads, count, columns},
                  Tensor::Placement{{distance.head, distance.token, 1}, 1, 0});
        for (int64_t h = 0; h < heads; ++h) {
          for (int64_t i = 0; i < count; ++i) {
            for (int64_t c = 0; c < columns; ++c) {
              to.Set(Shape{h, i, c},
                     Element(request, from, past, sequence, h, key + i, c));
            }
          }
        }
        tensors_.push_back(std::move(to));
        return tensors_.back().data();
      };
      block.key = copy(request.key, request.past_key, size, strides);
      block.value =
          copy(request.value, request.past_value, value_size, value_strides);
      block.key_head_stride = strides.head;
      block.value_head_stride = value_strides.head;
      blocks_[sequence - first].push_back(block);
    }
    view.blocks = blocks_[sequence - first];
    views_.push_back(view);
  }
  if (!request.mask) return;
  const Shape& shape = request.mask->shape();
  const int64_t axis = static_cast<int64_t>(shape.size()) - 1;
  const int64_t stop = std::min(begin + longest, shape.back());
  if (begin >= stop) return;
  mask_ = request.mask->Slice(static_cast<int>(axis), begin, stop);
}

AddedKeys KeyBlocks::added() const {
  AddedKeys keys;
  keys.views = views_;
  keys.first_sequence = first_;
  if (mask_) keys.mask = mask_->view();
  return keys;
}

}  // namespace attention::test
