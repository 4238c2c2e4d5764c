#include "server/stream_format.h"

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/convert.h"

namespace attention::server {
namespace {

Layout LayoutOf(const AttentionInputs& inputs,
                const AttentionOptions& options) {
  if (options.layout != Layout::kByRank) return options.layout;
  switch (inputs.query.shape.size()) {
    case 2:
      return Layout::kMatrix;
    case 3:
      return Layout::kPacked;
    default:
      return Layout::kBHSD;
  }
}

size_t LengthAxis(Layout layout) {
  switch (layout) {
    case Layout::kMatrix:
    case Layout::kRagged:
      return 0;
    case Layout::kPacked:
    case Layout::kBSHD:
      return 1;
    default:
      return 2;
  }
}

std::string Tokens(int64_t count) {
  return absl::StrCat(count, count == 1 ? " token" : " tokens");
}

int64_t ElementBytes(DataType type) {
  return static_cast<int64_t>(SizeOf(type));
}

}  // namespace

StreamFormat::StreamFormat(const AttentionInputs& inputs,
                           const AttentionOptions& options)
    : key_{inputs.key.type, inputs.key.shape},
      value_{inputs.value.type, inputs.value.shape} {
  const Layout layout = LayoutOf(inputs, options);
  length_axis_ = LengthAxis(layout);
  KeyValueGeometry& g = geometry_;
  const Shape& key = key_.shape;
  const Shape& value = value_.shape;
  switch (layout) {
    case Layout::kMatrix:
      break;
    case Layout::kPacked:
      g.kv_heads = options.kv_heads;
      break;
    case Layout::kBSHD:
      g.kv_heads = key[2];
      break;
    default:  // BHSD, RAGGED
      g.kv_heads = key[1];
      break;
  }
  g.key_size = key.back();
  g.value_size = value.back();
  if (layout == Layout::kPacked) {
    g.key_size /= g.kv_heads;
    g.value_size /= g.kv_heads;
  }
  g.key_element_bytes = ElementBytes(key_.type);
  g.value_element_bytes = ElementBytes(value_.type);
  g.heads_first = layout == Layout::kBHSD;
  if (layout == Layout::kRagged) {
    g.key_starts = inputs.key_starts;
    g.sequences = static_cast<int64_t>(inputs.key_starts.size()) - 1;
  } else {
    g.sequences = layout == Layout::kMatrix ? 1 : key[0];
    g.length =
        key[length_axis_] + (inputs.past_key ? inputs.past_key->shape[2] : 0);
  }
  if (inputs.mask) {
    mask_ = TensorSpec{inputs.mask->type, inputs.mask->shape};
    g.mask_length = mask_->shape.back();
    const absl::Span<const int64_t> rows =
        absl::MakeConstSpan(mask_->shape).first(mask_->shape.size() - 1);
    // Without sequences there are no rows to mask.
    g.mask_rows = g.sequences == 0 ? 0 : NumElements(rows).value_or(0);
    g.mask_element_bytes = ElementBytes(mask_->type);
  }
}

int64_t StreamFormat::MaskColumns(TokenRange tokens) const {
  if (!mask_) return 0;
  return std::clamp<int64_t>(geometry_.mask_length - tokens.begin, 0,
                             tokens.end - tokens.begin);
}

bool StreamFormat::has_bool_mask() const {
  return mask_ && mask_->type == DataType::kBool;
}

std::optional<ConstTensorView> StreamFormat::MaskOf(
    const PageSet& pages) const {
  if (!mask_) return std::nullopt;
  ConstTensorView view{.type = mask_->type,
                       .shape = mask_->shape,
                       .strides = Shape(mask_->shape.size(), 1),
                       .data = pages.mask()};
  view.shape.back() = pages.mask_columns();
  int64_t stride = pages.mask_stride();
  for (size_t axis = view.shape.size() - 1; axis-- > 0;) {
    view.strides[axis] = stride;
    stride *= view.shape[axis];
  }
  return view;
}

std::string StreamFormat::ShapeText(const Shape& shape, size_t axis,
                                    absl::string_view length) {
  std::vector<std::string> dims;
  dims.reserve(shape.size());
  for (size_t i = 0; i < shape.size(); ++i) {
    dims.push_back(i == axis ? std::string(length) : absl::StrCat(shape[i]));
  }
  return absl::StrCat("(", absl::StrJoin(dims, ", "), ")");
}

absl::Status StreamFormat::CheckOperand(absl::string_view field,
                                        const wire::TensorFields& tensor,
                                        const TensorSpec& wanted) const {
  const absl::StatusOr<TensorSpec> spec = CheckTensor(field, tensor);
  if (!spec.ok()) return spec.status();
  if (spec->type != wanted.type) {
    return FieldError(
        absl::StrCat(field, ".data_type"),
        absl::StrCat("got ", Name(spec->type), ", wanted the header's ",
                     Name(wanted.type)));
  }
  Shape shape = spec->shape;
  if (shape.size() == wanted.shape.size()) {
    shape[length_axis_] = wanted.shape[length_axis_];
  }
  if (shape == wanted.shape) return absl::OkStatus();
  return FieldError(
      absl::StrCat(field, ".shape"),
      absl::StrCat("got ", ToString(spec->shape), ", wanted the header's ",
                   ShapeText(wanted.shape, length_axis_, "n"),
                   " with any number of tokens n"));
}

absl::StatusOr<TokenRange> StreamFormat::Check(const wire::ChunkFields& chunk,
                                               int64_t begin) const {
  absl::Status status = CheckOperand("chunk.key", chunk.key, key_);
  if (!status.ok()) return status;
  const int64_t count = chunk.key.shape[length_axis_];
  const int64_t left = tokens() - begin;
  if (count > left) {
    return FieldError(
        "chunk.key.shape",
        absl::StrCat("got ", Tokens(count), ", wanted at most ", left, ": ",
                     begin, " of ", tokens(), " have come"));
  }
  if (count == 0 && tokens() > 0) {
    return FieldError("chunk.key.shape", "got 0 tokens, wanted at least 1");
  }
  status = CheckOperand("chunk.value", chunk.value, value_);
  if (!status.ok()) return status;
  if (chunk.value.shape[length_axis_] != count) {
    return FieldError(
        "chunk.value.shape",
        absl::StrCat("got ", Tokens(chunk.value.shape[length_axis_]),
                     ", wanted chunk.key's ", count));
  }
  const TokenRange range = {begin, begin + count};
  status = CheckMask(chunk.mask, range);
  if (!status.ok()) return status;
  return range;
}

absl::Status StreamFormat::CheckMask(const wire::TensorFields& mask,
                                     TokenRange tokens) const {
  constexpr absl::string_view kField = "chunk.mask";
  if (!mask_) {
    if (!mask.present) return absl::OkStatus();
    return FieldError(kField, "got one, wanted none: the header has none");
  }
  const int64_t columns = MaskColumns(tokens);
  if (!mask.present) {
    if (columns == 0) return absl::OkStatus();
    return FieldError(
        kField, absl::StrCat("missing, wanted shape ",
                             ShapeText(mask_->shape, mask_->shape.size() - 1,
                                       absl::StrCat(columns))));
  }
  const absl::StatusOr<TensorSpec> spec = CheckTensor(kField, mask);
  if (!spec.ok()) return spec.status();
  if (spec->type != mask_->type) {
    return FieldError(
        absl::StrCat(kField, ".data_type"),
        absl::StrCat("got ", Name(spec->type), ", wanted the header's ",
                     Name(mask_->type)));
  }
  Shape wanted = mask_->shape;
  wanted.back() = columns;
  if (spec->shape == wanted) return absl::OkStatus();
  return FieldError(absl::StrCat(kField, ".shape"),
                    absl::StrCat("got ", ToString(spec->shape), ", wanted ",
                                 ToString(wanted)));
}

}  // namespace attention::server
