// Fuzzes the messages of a stream: from bytes to pages and through the kernel.
// What a message makes the server allocate must have been asked for, what is
// wrong must be said as such, and what is right has the bits of the whole.
#include <fuzzer/FuzzedDataProvider.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "attention/v1/attention.pb.h"
#include "base/buffer_pool.h"
#include "base/executor.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/slice.h"
#include "kernel/accumulator.h"
#include "kernel/attention.h"
#include "server/convert.h"
#include "server/rpc/stream_chunk.h"
#include "server/stream_format.h"
#include "sessions/page_set.h"
#include "wire/memory_meter.h"
#include "wire/stream_request.h"

namespace attention::server {
namespace {

// What a stream may take: little enough that an input soon asks for too much.
constexpr int64_t kBudget = int64_t{16} << 20;
// Small enough that an input takes milliseconds.
constexpr AttentionLimits kLimits = {.head_size = 256,
                                     .heads = 64,
                                     .batch = 256,
                                     .batch_heads = 1024,
                                     .work = 1e8};
constexpr size_t kMostNumbers = 257;

void Check(bool condition, const char* what, const absl::Status& status) {
  if (condition) return;
  std::fprintf(stderr, "%s: %s\n", what, status.ToString().c_str());
  std::abort();
}

BufferPool& Pool() {
  static const auto pool = BufferPool::Create(0);
  return *pool;
}

Executor& Threads() {
  static auto* const executor = new Executor(0);
  return *executor;
}

// What a client may send is a bad request, or too much.
void CheckRefusal(const absl::Status& status) {
  Check(absl::IsInvalidArgument(status) || absl::IsResourceExhausted(status),
        "code", status);
}

wire::MemoryMeter Meter() {
  return wire::MemoryMeter(0, [](int64_t bytes) {
    return bytes > kBudget ? absl::ResourceExhaustedError("")
                           : absl::OkStatus();
  });
}

// One stream as the server plays it, a message at a time.
class Stream {
 public:
  // False: the stream has ended, with an error.
  bool Take(const std::string& message) {
    const grpc::Slice slice(message);
    if (!format_) return TakeHeader(slice);
    StreamChunk chunk(*format_, grpc::ByteBuffer(&slice, 1));
    wire::MemoryMeter meter = Meter();
    absl::Status status = chunk.Decode(position_, Pool(), meter, kMostNumbers);
    while (status.ok() && position_ < chunk.tokens().end) {
      const TokenRange range = {position_,
                                std::min(chunk.tokens().end, pages_->end())};
      const int64_t tasks = chunk.Prepare(*pages_, range);
      for (int64_t i = 0; i < tasks; ++i) chunk.Copy(i);
      status = chunk.CheckMask();
      if (!status.ok()) break;
      position_ = range.end;
      if (position_ == pages_->end()) Add();
    }
    if (!status.ok()) CheckRefusal(status);
    return status.ok();
  }

  // The output, once all tokens have come.
  std::optional<std::string> Finish() {
    if (!accumulator_ || position_ < format_->tokens()) return std::nullopt;
    const absl::Status status = accumulator_->Finish(Threads());
    Check(status.ok(), "finish", status);
    return output_;
  }

 private:
  bool TakeHeader(const grpc::Slice& slice) {
    slices_ = {slice};
    wire::MemoryMeter meter = Meter();
    auto fields =
        wire::DecodeStreamRequest(slices_, Pool(), meter, kMostNumbers);
    if (!fields.ok()) return Refuse(fields.status());
    if (!std::holds_alternative<wire::RequestFields>(*fields)) return false;
    auto request = ToStreamedKernel(
        std::get<wire::RequestFields>(*std::move(fields)), Pool(), meter);
    if (!request.ok()) return Refuse(request.status());
    request_ = *std::move(request);
    for (PayloadCopy& copy : request_.copies) copy.Run();
    auto plan = PlanAttention(request_.inputs, request_.options, kLimits);
    if (!plan.ok()) return Refuse(plan.status());
    plan_ = *std::move(plan);
    format_.emplace(request_.inputs, request_.options);
    const KeyValueGeometry& g = format_->geometry();
    const int64_t bytes[] = {PageSet::Bytes(g), PageSet::TableBytes(g),
                             g.TokenBytes(), plan_->output.num_bytes(),
                             Accumulator::Bytes(*plan_, 1)};
    for (int64_t part : bytes) {
      Check(part >= 0, "bytes", absl::OkStatus());
      if (part > kBudget) return false;
    }
    output_.resize(plan_->output.num_bytes());
    if (plan_->log_sum_exp) sums_.resize(plan_->log_sum_exp->num_bytes());
    auto accumulator = Accumulator::Create(
        *plan_, {.output = output_.data(), .log_sum_exp = sums_.data()});
    // Scores and present keys are refused before there is one.
    if (!accumulator.ok()) return Refuse(accumulator.status());
    accumulator_ = *std::move(accumulator);
    if (format_->tokens() == 0) return true;
    pages_.emplace(g, Pool().Allocate(PageSet::Bytes(g)));
    pages_->Begin(0);
    return true;
  }

  static bool Refuse(const absl::Status& status) {
    CheckRefusal(status);
    return false;
  }

  void Add() {
    const absl::Status status =
        accumulator_->Add({.views = pages_->views(),
                           .first_sequence = pages_->first_sequence(),
                           .mask = format_->MaskOf(*pages_)},
                          Threads());
    Check(status.ok(), "add", status);
    if (position_ < format_->tokens()) pages_->Begin(position_);
  }

  std::vector<grpc::Slice> slices_;
  KernelRequest request_;
  std::optional<AttentionPlan> plan_;
  std::optional<StreamFormat> format_;
  std::string output_, sums_;
  std::optional<Accumulator> accumulator_;
  std::optional<PageSet> pages_;
  int64_t position_ = 0;
};

// A valid stream of MATRIX, PACKED, BSHD or BHSD, whose chunks are bent where
// the input says so.
class Author {
 public:
  explicit Author(FuzzedDataProvider& source) : source_(source) {}

  void Play() {
    Draw();
    Stream stream;
    v1::StreamAttentionRequest header;
    *header.mutable_header() = request_;
    for (v1::Tensor* tensor : {header.mutable_header()->mutable_key(),
                               header.mutable_header()->mutable_value()}) {
      tensor->clear_data();
    }
    if (request_.has_mask()) {
      header.mutable_header()->mutable_mask()->clear_data();
    }
    bool ok = stream.Take(Bent(header));
    for (int64_t begin = 0; ok && begin < tokens_;) {
      const int64_t end = std::min(tokens_, begin + Integer(1, 300));
      ok = stream.Take(Bent(ChunkOf(begin, end)));
      begin = end;
    }
    const std::optional<std::string> output = stream.Finish();
    if (ok && !bent_) CheckBits(output);
  }

 private:
  int64_t Integer(int64_t low, int64_t high) {
    return source_.ConsumeIntegralInRange<int64_t>(low, high);
  }

  void Draw() {
    layout_ = static_cast<v1::Layout>(Integer(1, 4));
    const bool matrix = layout_ == v1::LAYOUT_MATRIX;
    batch_ = matrix ? 1 : Integer(1, 3);
    heads_ = matrix ? 1 : Integer(1, 3);
    tokens_ = Integer(0, 600);
    const int64_t group = matrix ? 1 : Integer(1, 2), rows = Integer(0, 5),
                  size = Integer(1, 5), value_size = Integer(1, 5);
    v1::AttentionOptions& options = *request_.mutable_options();
    options.set_layout(layout_);
    options.set_query_heads(group * heads_);
    options.set_kv_heads(heads_);
    options.set_causal(static_cast<v1::Causal>(Integer(0, 2)));
    options.set_softcap(Integer(0, 1));
    options.set_chunk_size(std::max<int64_t>(0, Integer(-600, 600)));
    Fill(group * heads_, rows, size, request_.mutable_query());
    Fill(heads_, tokens_, size, request_.mutable_key());
    Fill(heads_, tokens_, value_size, request_.mutable_value());
    if (Integer(0, 2) == 0 && tokens_ > 0 && layout_ != v1::LAYOUT_RAGGED) {
      v1::Tensor& indices = *request_.mutable_indices();
      indices.set_data_type(v1::DATA_TYPE_INT32);
      const int64_t count = Integer(0, 9);
      for (int64_t dim : {batch_, rows, count}) indices.add_shape(dim);
      for (int64_t i = 0; i < batch_ * rows * count; ++i) {
        const auto key = static_cast<int32_t>(i * 37 % tokens_);
        indices.mutable_data()->append(reinterpret_cast<const char*>(&key),
                                       sizeof(key));
      }
    }
    if (Integer(0, 2) == 0 && tokens_ > 1) {
      v1::Tensor& mask = *request_.mutable_mask();
      mask.set_data_type(v1::DATA_TYPE_BOOL);
      const int64_t columns = Integer(2, tokens_);
      for (int64_t dim : {rows, columns}) mask.add_shape(dim);
      for (int64_t i = 0; i < rows * columns; ++i) {
        *mask.mutable_data() += static_cast<char>(i * 7 % 3 == 0);
      }
    }
  }

  void Fill(int64_t heads, int64_t length, int64_t size, v1::Tensor* tensor) {
    tensor->set_data_type(v1::DATA_TYPE_FLOAT32);
    std::vector<int64_t> shape;
    switch (layout_) {
      case v1::LAYOUT_MATRIX:
        shape = {length, size};
        break;
      case v1::LAYOUT_PACKED:
        shape = {batch_, length, heads * size};
        break;
      case v1::LAYOUT_BSHD:
        shape = {batch_, length, heads, size};
        break;
      default:
        shape = {batch_, heads, length, size};
    }
    int64_t count = 1;
    for (int64_t dim : shape) {
      tensor->add_shape(dim);
      count *= dim;
    }
    for (int64_t i = 0; i < count; ++i) {
      const float number = static_cast<float>(i * 37 % 101) / 50 - 1;
      tensor->mutable_data()->append(reinterpret_cast<const char*>(&number),
                                     sizeof(number));
    }
  }

  static v1::Tensor Cut(const v1::Tensor& tensor, int axis, int64_t begin,
                        int64_t end, int64_t element) {
    v1::Tensor result = tensor;
    result.clear_data();
    result.set_shape(axis, end - begin);
    int64_t outer = 1, step = element;
    for (int i = 0; i < tensor.shape_size(); ++i) {
      if (i != axis) (i < axis ? outer : step) *= tensor.shape(i);
    }
    for (int64_t i = 0; i < outer; ++i) {
      result.mutable_data()->append(tensor.data(),
                                    (i * tensor.shape(axis) + begin) * step,
                                    (end - begin) * step);
    }
    return result;
  }

  v1::StreamAttentionRequest ChunkOf(int64_t begin, int64_t end) const {
    const int axis = layout_ == v1::LAYOUT_MATRIX ? 0
                     : layout_ == v1::LAYOUT_BHSD ? 2
                                                  : 1;
    v1::StreamAttentionRequest message;
    v1::KeyValueChunk& chunk = *message.mutable_chunk();
    *chunk.mutable_key() = Cut(request_.key(), axis, begin, end, 4);
    *chunk.mutable_value() = Cut(request_.value(), axis, begin, end, 4);
    if (request_.has_mask() && begin < request_.mask().shape(1)) {
      *chunk.mutable_mask() = Cut(request_.mask(), 1, begin,
                                  std::min(end, request_.mask().shape(1)), 1);
    }
    return message;
  }

  // The message, or one that differs a little.
  std::string Bent(v1::StreamAttentionRequest message) {
    if (Integer(0, 15) != 0) return message.SerializeAsString();
    bent_ = true;
    if (message.has_chunk() && Integer(0, 1) == 0) {
      v1::KeyValueChunk& chunk = *message.mutable_chunk();
      v1::Tensor* const tensors[] = {chunk.mutable_key(), chunk.mutable_value(),
                                     chunk.mutable_mask()};
      v1::Tensor& tensor = *tensors[Integer(0, 2)];
      switch (Integer(0, 4)) {
        case 0:
          tensor.set_data_type(static_cast<v1::DataType>(Integer(0, 9)));
          break;
        case 1:
          tensor.add_shape(Integer(-1, 3));
          break;
        case 2:
          if (tensor.shape_size() > 0) tensor.set_shape(0, Integer(-1, 1000));
          break;
        case 3:
          tensor.clear_data();
          break;
        default:
          tensor.add_float_values(1);
      }
      return message.SerializeAsString();
    }
    std::string bytes = message.SerializeAsString();
    for (int64_t n = Integer(1, 4); n > 0 && !bytes.empty(); --n) {
      bytes[Integer(0, static_cast<int64_t>(bytes.size()) - 1)] =
          static_cast<char>(Integer(0, 255));
    }
    return bytes;
  }

  // The whole at once.
  void CheckBits(const std::optional<std::string>& output) const {
    Check(output.has_value(), "an output", absl::OkStatus());
    const std::string bytes = request_.SerializeAsString();
    const std::vector<grpc::Slice> slices = {grpc::Slice(bytes)};
    wire::MemoryMeter meter;
    auto fields = wire::DecodeRequest(slices, Pool(), meter, kMostNumbers);
    auto request = ToKernel(*std::move(fields), Pool(), meter);
    for (PayloadCopy& copy : request->copies) copy.Run();
    const auto plan = PlanAttention(request->inputs, request->options, kLimits);
    Check(plan.ok(), "plan", plan.status());
    std::string wanted(plan->output.num_bytes(), '\0');
    const absl::Status status =
        RunAttention(*plan, {.output = wanted.data()}, Threads());
    Check(status.ok() && wanted == *output, "bits", status);
  }

  FuzzedDataProvider& source_;
  bool bent_ = false;
  v1::Layout layout_ = v1::LAYOUT_MATRIX;
  int64_t batch_ = 1, heads_ = 1, tokens_ = 0;
  v1::ComputeAttentionRequest request_;
};

}  // namespace
}  // namespace attention::server

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  FuzzedDataProvider source(data, size);
  if (source.ConsumeBool()) {
    attention::server::Author(source).Play();
    return 0;
  }
  // Messages as they are.
  attention::server::Stream stream;
  while (source.remaining_bytes() > 0 &&
         stream.Take(source.ConsumeRandomLengthString())) {
  }
  stream.Finish();
  return 0;
}
