#include "tests/support/stream_client.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "kernel/data_type.h"
#include "wire/data_type.h"

namespace attention::testing {
namespace {

int64_t ElementBytes(v1::DataType type) {
  return static_cast<int64_t>(SizeOf(wire::FromWire(type).value()));
}

void Set(const test::Tensor& from, v1::Tensor* to) {
  to->set_data_type(wire::ToWire(from.type()));
  for (int64_t dim : from.shape()) to->add_shape(dim);
  to->set_data(static_cast<const char*>(from.data()),
               from.size() * ElementBytes(to->data_type()));
}

// Elements of all axes before `axis`, and bytes of one step along it.
std::pair<int64_t, int64_t> Strides(const v1::Tensor& tensor, int axis) {
  int64_t outer = 1, step = ElementBytes(tensor.data_type());
  for (int i = 0; i < tensor.shape_size(); ++i) {
    (i < axis ? outer : step) *= i == axis ? 1 : tensor.shape(i);
  }
  return {outer, step};
}

// (B, Hkv, P, size) in a layout.
v1::Tensor InLayout(const v1::Tensor& past, v1::Layout layout) {
  if (layout == v1::LAYOUT_BHSD) return past;
  const int64_t b = past.shape(0), h = past.shape(1), p = past.shape(2),
                d = past.shape(3);
  v1::Tensor result;
  result.set_data_type(past.data_type());
  if (layout == v1::LAYOUT_MATRIX) {
    for (int64_t dim : {p, d}) result.add_shape(dim);
  } else if (layout == v1::LAYOUT_PACKED) {
    for (int64_t dim : {b, p, h * d}) result.add_shape(dim);
  } else {
    for (int64_t dim : {b, p, h, d}) result.add_shape(dim);
  }
  const int64_t row = d * ElementBytes(past.data_type());
  for (int64_t i = 0; i < b; ++i) {
    for (int64_t t = 0; t < p; ++t) {
      for (int64_t j = 0; j < h; ++j) {
        result.mutable_data()->append(
            past.data().substr(((i * h + j) * p + t) * row, row));
      }
    }
  }
  return result;
}

}  // namespace

v1::ComputeAttentionRequest RequestOf(const test::AttentionCase& c) {
  v1::ComputeAttentionRequest request;
  Set(c.query, request.mutable_query());
  Set(c.key, request.mutable_key());
  Set(c.value, request.mutable_value());
  if (c.mask) Set(*c.mask, request.mutable_mask());
  if (c.past_key) Set(*c.past_key, request.mutable_past_key());
  if (c.past_value) Set(*c.past_value, request.mutable_past_value());
  if (c.indices) Set(*c.indices, request.mutable_indices());
  if (c.sinks) Set(*c.sinks, request.mutable_sinks());
  const auto add = [](const std::vector<int64_t>& from, auto* to) {
    to->Add(from.begin(), from.end());
  };
  add(c.valid_lengths, request.mutable_valid_lengths());
  add(c.query_starts, request.mutable_query_starts());
  add(c.key_starts, request.mutable_key_starts());
  const AttentionOptions& from = c.options;
  v1::AttentionOptions& to = *request.mutable_options();
  to.set_layout(static_cast<v1::Layout>(from.layout));
  to.set_query_heads(from.query_heads);
  to.set_kv_heads(from.kv_heads);
  if (from.scale) to.set_scale(*from.scale);
  to.set_softcap(from.softcap);
  to.set_causal(static_cast<v1::Causal>(from.causal));
  to.mutable_window()->set_left(from.window_left);
  to.mutable_window()->set_right(from.window_right);
  to.set_chunk_size(from.chunk_size);
  to.mutable_alibi_slopes()->Add(from.alibi_slopes.begin(),
                                 from.alibi_slopes.end());
  to.mutable_sinks()->Add(from.sinks.begin(), from.sinks.end());
  to.set_math_mode(from.math_mode == MathMode::kFast
                       ? v1::MATH_MODE_FAST
                       : v1::MATH_MODE_REPRODUCIBLE);
  if (from.softmax_precision) {
    to.set_softmax_precision(wire::ToWire(*from.softmax_precision));
  }
  to.set_return_log_sum_exp(from.return_log_sum_exp);
  to.set_return_scores(static_cast<v1::Scores>(from.return_scores));
  to.set_return_present(from.return_present);
  return request;
}

v1::Tensor Cut(const v1::Tensor& tensor, int axis, int64_t begin, int64_t end) {
  v1::Tensor result;
  result.set_data_type(tensor.data_type());
  *result.mutable_shape() = tensor.shape();
  result.set_shape(axis, end - begin);
  const auto [outer, step] = Strides(tensor, axis);
  for (int64_t i = 0; i < outer; ++i) {
    result.mutable_data()->append(tensor.data(),
                                  (i * tensor.shape(axis) + begin) * step,
                                  (end - begin) * step);
  }
  return result;
}

v1::Tensor Joined(const std::vector<v1::Tensor>& tensors, int axis) {
  v1::Tensor result = tensors.front();
  result.clear_data();
  int64_t length = 0;
  for (const v1::Tensor& tensor : tensors) length += tensor.shape(axis);
  result.set_shape(axis, length);
  const int64_t outer = Strides(result, axis).first;
  for (int64_t i = 0; i < outer; ++i) {
    for (const v1::Tensor& tensor : tensors) {
      const size_t bytes = tensor.data().size() / outer;
      result.mutable_data()->append(tensor.data(), i * bytes, bytes);
    }
  }
  return result;
}

StreamOf::StreamOf(const v1::ComputeAttentionRequest& request)
    : request_(request) {
  layout_ = request.options().layout();
  if (layout_ == v1::LAYOUT_UNSPECIFIED) {
    layout_ = request.query().shape_size() == 2   ? v1::LAYOUT_MATRIX
              : request.query().shape_size() == 3 ? v1::LAYOUT_PACKED
                                                  : v1::LAYOUT_BHSD;
  }
  switch (layout_) {
    case v1::LAYOUT_MATRIX:
    case v1::LAYOUT_RAGGED:
      axis_ = 0;
      break;
    case v1::LAYOUT_BHSD:
      axis_ = 2;
      break;
    default:
      axis_ = 1;
  }
  v1::ComputeAttentionRequest& header = *header_.mutable_header();
  header = request;
  for (v1::Tensor* tensor :
       {header.mutable_key(), header.mutable_value(),
        header.has_mask() ? header.mutable_mask() : nullptr,
        header.has_past_key() ? header.mutable_past_key() : nullptr,
        header.has_past_value() ? header.mutable_past_value() : nullptr}) {
    if (tensor != nullptr) tensor->clear_data();
  }
  if (request.has_past_key()) {
    *request_.mutable_key() =
        Joined({InLayout(request.past_key(), layout_), request.key()}, axis_);
    *request_.mutable_value() = Joined(
        {InLayout(request.past_value(), layout_), request.value()}, axis_);
  }
  tokens_ = request_.key().shape(axis_);
}

v1::StreamAttentionRequest StreamOf::Header() const { return header_; }

v1::StreamAttentionRequest StreamOf::Chunk(int64_t begin, int64_t end) const {
  v1::StreamAttentionRequest message;
  v1::KeyValueChunk& chunk = *message.mutable_chunk();
  *chunk.mutable_key() = Cut(request_.key(), axis_, begin, end);
  *chunk.mutable_value() = Cut(request_.value(), axis_, begin, end);
  if (request_.has_mask()) {
    const int axis = request_.mask().shape_size() - 1;
    const int64_t columns = request_.mask().shape(axis);
    if (begin < columns) {
      *chunk.mutable_mask() =
          Cut(request_.mask(), axis, begin, std::min(end, columns));
    }
  }
  return message;
}

v1::ComputeAttentionResponse StreamOf::Answer(
    const std::vector<v1::StreamAttentionResponse>& messages) const {
  v1::ComputeAttentionResponse answer;
  std::vector<v1::Tensor> outputs, sums;
  for (const v1::StreamAttentionResponse& message : messages) {
    if (message.has_output()) outputs.push_back(message.output());
    if (message.has_log_sum_exp()) sums.push_back(message.log_sum_exp());
  }
  if (!outputs.empty()) *answer.mutable_output() = Joined(outputs, axis_);
  if (!sums.empty()) {
    const int axis =
        layout_ == v1::LAYOUT_RAGGED ? 0 : sums.front().shape_size() - 1;
    *answer.mutable_log_sum_exp() = Joined(sums, axis);
  }
  return answer;
}

StreamResult SendStream(
    const std::shared_ptr<grpc::Channel>& channel,
    const std::vector<v1::StreamAttentionRequest>& messages) {
  grpc::ClientContext context;
  const auto stream =
      v1::AttentionService::NewStub(channel)->StreamAttention(&context);
  StreamResult result;
  std::thread reader([&] {
    v1::StreamAttentionResponse message;
    while (stream->Read(&message)) result.messages.push_back(message);
  });
  for (const v1::StreamAttentionRequest& message : messages) {
    if (!stream->Write(message)) break;
  }
  stream->WritesDone();
  reader.join();
  result.status = stream->Finish();
  return result;
}

std::vector<v1::StreamAttentionRequest> MessagesOf(
    const StreamOf& stream, const std::function<int64_t(int64_t)>& length) {
  std::vector<v1::StreamAttentionRequest> messages = {stream.Header()};
  for (int64_t begin = 0; begin < stream.tokens();) {
    const int64_t end = std::min(stream.tokens(), begin + length(begin));
    messages.push_back(stream.Chunk(begin, end));
    begin = end;
  }
  return messages;
}

}  // namespace attention::testing
