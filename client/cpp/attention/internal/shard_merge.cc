#include "attention/internal/shard_merge.h"

#include <grpcpp/support/slice.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "attention/internal/tensor_message.h"
#include "base/buffer_pool.h"
#include "base/executor.h"
#include "base/field_error.h"
#include "kernel/scaled.h"
#include "wire/data_type.h"
#include "wire/kernel_options.h"
#include "wire/memory_meter.h"
#include "wire/session_response.h"
#include "wire/slice_reader.h"
#include "wire/tensor_fields.h"

namespace attention::internal {
namespace {

// What a message has beside the elements of its partials, for each and once.
constexpr size_t kAroundPartial = 512;

// The most partials that a server makes for one call.
constexpr int64_t kMostRuns = 4096;

absl::Status Malformed(int64_t shard, absl::string_view what, int64_t got,
                       int64_t wanted) {
  return MalformedAnswer(absl::InternalError(absl::StrCat(
      "shard ", shard, ": ", what, ": got ", got, ", wanted ", wanted)));
}

// A tensor's type, shape and length are what they should be.
absl::Status CheckTensor(absl::string_view name,
                         const wire::TensorFields& tensor, DataType type,
                         const Shape& shape) {
  const auto bytes = static_cast<size_t>(*NumElements(shape)) * SizeOf(type);
  if (tensor.data_type == wire::ToWire(type) && tensor.rank == shape.size() &&
      tensor.shape == shape && tensor.float_values.count == 0 &&
      !tensor.shared_memory.present && tensor.data.remaining() == bytes) {
    return absl::OkStatus();
  }
  return MalformedAnswer(absl::InternalError(absl::StrCat(
      name, ": got ", tensor.data.remaining(), " bytes of type ",
      tensor.data_type, ", shape ", ToString(tensor.shape), ", wanted ", bytes,
      " of ", Name(type), ", ", ToString(shape))));
}

// The elements of a partial in one piece of memory: max, sum, output.
struct PartialMemory {
  PartialMemory(size_t rows, size_t value_size, size_t element)
      : sum_at(rows * element),
        output_at(2 * sum_at),
        bytes(output_at + rows * value_size * element),
        // Aligned for any element.
        memory(new double[bytes / sizeof(double) + 1]) {}

  std::byte* data() const { return reinterpret_cast<std::byte*>(memory.get()); }
  void Place(Partial& partial) const {
    partial.max = data();
    partial.sum = data() + sum_at;
    partial.output = data() + output_at;
    partial.memory = memory;
  }

  size_t sum_at, output_at, bytes;
  std::shared_ptr<double[]> memory;
};

// That of rows which see no key.
template <typename T>
void FillUnseen(const PartialMemory& memory) {
  std::memset(memory.data(), 0, memory.bytes);
  auto* const max = reinterpret_cast<T*>(memory.data());
  std::fill_n(max, memory.sum_at / sizeof(T),
              -std::numeric_limits<T>::infinity());
}

void TakeLongest(const v1::Timing& timing, v1::Timing& longest) {
  longest.set_queue_us(std::max(longest.queue_us(), timing.queue_us()));
  longest.set_decode_us(std::max(longest.decode_us(), timing.decode_us()));
  longest.set_compute_us(std::max(longest.compute_us(), timing.compute_us()));
  longest.set_encode_us(std::max(longest.encode_us(), timing.encode_us()));
}

// The kernel's view of a tensor without data, with an axis of a batch of one
// before it.
absl::StatusOr<ConstTensorView> Declared(absl::string_view field,
                                         const TensorSpan& tensor,
                                         bool with_batch) {
  const std::optional<DataType> type = wire::FromWire(tensor.type);
  if (!type || tensor.shape.size() > 4 ||
      !BytesFit(tensor.type, tensor.shape, tensor.bytes.size())) {
    return FieldError(field, absl::StrCat("got ", tensor.bytes.size(),
                                          " bytes of ", TypeName(tensor.type),
                                          ", shape ", ToString(tensor.shape),
                                          ", wanted as many as the shape has"));
  }
  ConstTensorView view;
  view.type = *type;
  if (with_batch) view.shape.push_back(1);
  view.shape.insert(view.shape.end(), tensor.shape.begin(), tensor.shape.end());
  return view;
}

// A tensor of the answer: in memory of its own, aligned for the kernel.
struct OutputTensor {
  explicit OutputTensor(const TensorSpec& spec)
      : type(wire::ToWire(spec.type)),
        shape(spec.shape.begin() + 1, spec.shape.end()),  // not the batch
        bytes(static_cast<size_t>(spec.num_bytes())),
        memory(new double[bytes / sizeof(double) + 1]) {}

  absl::StatusOr<Tensor> Finish(absl::string_view name,
                                std::span<std::byte> place) const {
    const std::shared_ptr<const std::byte> own(
        memory, reinterpret_cast<const std::byte*>(memory.get()));
    if (place.data() == nullptr) {
      return Tensor::FromShared(type, own, bytes, shape).value();
    }
    if (place.size() < bytes) {
      return absl::InvalidArgumentError(absl::StrCat(
          "outputs.", name, ": got ", place.size(), " bytes, wanted ", bytes));
    }
    std::memcpy(place.data(), own.get(), bytes);
    const std::shared_ptr<const std::byte> lent(std::shared_ptr<void>(),
                                                place.data());
    return Tensor::FromShared(type, lent, bytes, shape).value();
  }

  v1::DataType type;
  std::vector<int64_t> shape;
  size_t bytes;
  std::shared_ptr<double[]> memory;
};

}  // namespace

absl::StatusOr<ShardMerge> ShardMerge::Plan(const v1::SessionConfig& config,
                                            const ShardLayout& layout,
                                            int64_t length,
                                            const TensorSpan& query,
                                            const AttendOptions& attend) {
  if (attend.options.return_scores() != v1::SCORES_UNSPECIFIED) {
    return FieldError("options.return_scores",
                      "got it, wanted none: servers that share a sequence "
                      "return partials only");
  }
  if (attend.mask_begin != 0) {
    return FieldError("mask_begin",
                      absl::StrCat("got ", attend.mask_begin,
                                   ", wanted 0: servers that share a sequence "
                                   "keep all of its tokens"));
  }
  const int64_t runs = (length + layout.run - 1) / layout.run;
  if (runs > kMostRuns * layout.count) {
    return FieldError(
        "blocks_per_run",
        absl::StrCat("got ", layout.run / kKeyBlock, ", which makes ", runs,
                     " runs of ", length, " tokens, wanted at most ", kMostRuns,
                     " for each server"));
  }
  absl::StatusOr<AttentionOptions> options =
      wire::ToKernelOptions(attend.options);
  if (!options.ok()) return options.status();
  if (!attend.not_causal && options->causal == Causal::kNone) {
    options->causal = Causal::kBottomRight;
  }
  options->layout = Layout::kBHSD;
  AttentionInputs inputs;
  const auto view = Declared("query", query, /*with_batch=*/true);
  if (!view.ok()) return view.status();
  const std::optional<DataType> stored =
      wire::StoredFromWire(config.data_type());
  if (!stored) return absl::InternalError("a session of an unknown type");
  const DataType type = IsScaled(*stored) ? DataType::kFloat32 : *stored;
  if (view->type != type) {
    return FieldError(
        "query.data_type",
        absl::StrCat("got ", Name(view->type), ", wanted ", Name(type),
                     ": the sessions store ", Name(*stored)));
  }
  if (query.shape.size() != 3 || query.shape[0] % config.kv_heads() != 0 ||
      query.shape[2] != config.head_size()) {
    return FieldError(
        "query.shape",
        absl::StrCat("got ", ToString(query.shape),
                     ", wanted (Hq, S, D), Hq a multiple of ",
                     config.kv_heads(), ", D ", config.head_size()));
  }
  inputs.query = *view;
  ShardMerge merge;
  inputs.query.data = merge.Aligned(query.bytes, merge.query_);
  const int64_t value_size = config.value_head_size();
  inputs.key.type = inputs.value.type = type;
  inputs.key.shape = {1, config.kv_heads(), length, config.head_size()};
  inputs.value.shape = {1, config.kv_heads(), length, value_size};
  if (attend.mask) {
    if (attend.mask->type == v1::DATA_TYPE_BITS) {
      return FieldError("mask.data_type",
                        "got BITS, wanted BOOL or numbers: each of the servers "
                        "that share a sequence gets columns of its own");
    }
    auto mask = Declared("mask", *attend.mask, /*with_batch=*/false);
    if (!mask.ok()) return mask.status();
    inputs.mask = *mask;
  }
  // Which keys are seen the servers know; sinks are added here.
  if (attend.sinks) {
    auto sinks = Declared("sinks", *attend.sinks, /*with_batch=*/true);
    if (!sinks.ok()) return sinks.status();
    inputs.sinks = *sinks;
    inputs.sinks->data = merge.Aligned(attend.sinks->bytes, merge.sinks_);
  }
  absl::StatusOr<AttentionPlan> plan = PlanAttention(inputs, *options);
  if (!plan.ok()) return plan.status();

  merge.layout_ = layout;
  merge.length_ = length;
  merge.query_heads_ = query.shape[0];
  merge.queries_ = query.shape[1];
  merge.value_size_ = value_size;
  merge.type_ =
      plan->double_precision ? DataType::kFloat64 : DataType::kFloat32;
  merge.plan_ = *std::move(plan);
  merge.partials_.resize(static_cast<size_t>(runs));
  return merge;
}

// The kernel reads queries, though what comes of them is not needed here.
const void* ShardMerge::Aligned(std::span<const std::byte> bytes,
                                std::vector<double>& copy) {
  if (reinterpret_cast<uintptr_t>(bytes.data()) % alignof(double) == 0) {
    return bytes.data();
  }
  copy = std::vector<double>(bytes.size() / sizeof(double) + 1);
  std::memcpy(copy.data(), bytes.data(), bytes.size());
  return copy.data();
}

int64_t ShardMerge::RunsOf(int64_t shard) const {
  return (layout_.TokensOf(shard, length_) + layout_.run - 1) / layout_.run;
}

size_t ShardMerge::PartialBytes() const {
  return static_cast<size_t>(queries_ * query_heads_ * (2 + value_size_)) *
         SizeOf(type_);
}

absl::Status ShardMerge::Take(int64_t shard, const grpc::ByteBuffer& answer) {
  const int64_t runs = RunsOf(shard);
  const size_t most = static_cast<size_t>(runs) * PartialBytes() +
                      static_cast<size_t>(runs + 1) * kAroundPartial;
  if (answer.Length() > most) {
    return Malformed(shard, "bytes of the answer",
                     static_cast<int64_t>(answer.Length()),
                     static_cast<int64_t>(most));
  }
  std::vector<grpc::Slice> slices;
  if (!answer.Dump(&slices).ok()) {
    return MalformedAnswer(absl::InternalError("the bytes cannot be read"));
  }
  wire::MemoryMeter meter;
  auto fields = wire::DecodeAttendResponse(slices, *BufferPool::Create(0),
                                           meter, static_cast<size_t>(runs));
  if (!fields.ok()) return MalformedAnswer(fields.status());
  if (fields->length != length_) {
    return Malformed(shard, "length", fields->length, length_);
  }
  const auto count = static_cast<int64_t>(fields->partials.size());
  if (count != runs) return Malformed(shard, "partials", count, runs);

  const Shape rows = {queries_, query_heads_};
  const Shape outputs = {queries_, query_heads_, value_size_};
  const int64_t blocks = (length_ + kKeyBlock - 1) / kKeyBlock;
  std::vector<Partial> taken;
  for (int64_t i = 0; i < runs; ++i) {
    wire::PartialFields& from = fields->partials[static_cast<size_t>(i)];
    const int64_t begin = layout_.PlaceOf(shard, i * layout_.run) / kKeyBlock;
    const int64_t end = std::min(begin + layout_.run / kKeyBlock, blocks);
    if (from.block_begin != begin) {
      return Malformed(shard, "block_begin", from.block_begin, begin);
    }
    if (from.block_end != end) {
      return Malformed(shard, "block_end", from.block_end, end);
    }
    absl::Status status = CheckTensor("max", from.max, type_, rows);
    if (status.ok()) status = CheckTensor("sum", from.sum, type_, rows);
    if (status.ok()) {
      status = CheckTensor("output", from.output, type_, outputs);
    }
    if (!status.ok()) return status;
    Partial& to = taken.emplace_back();
    to.block_begin = begin;
    to.block_end = end;
    to.rows = queries_ * query_heads_;
    to.value_head_size = value_size_;
    to.type = type_;
    const PartialMemory memory(static_cast<size_t>(to.rows),
                               static_cast<size_t>(value_size_), SizeOf(type_));
    from.max.data.ReadBytes(memory.data(), memory.sum_at);
    from.sum.data.ReadBytes(memory.data() + memory.sum_at, memory.sum_at);
    from.output.data.ReadBytes(memory.data() + memory.output_at,
                               memory.bytes - memory.output_at);
    memory.Place(to);
  }
  for (int64_t i = 0; i < runs; ++i) {
    partials_[static_cast<size_t>(i * layout_.count + shard)] =
        std::move(taken[static_cast<size_t>(i)]);
  }
  TakeLongest(fields->timing, timing_);
  return absl::OkStatus();
}

void ShardMerge::Miss(int64_t shard) {
  for (int64_t i = 0; i < RunsOf(shard); ++i) {
    partials_[static_cast<size_t>(i * layout_.count + shard)] = {};
  }
}

absl::StatusOr<AttendResult> ShardMerge::Finish(
    const ComputeOutputs& outputs) const {
  const OutputTensor output(plan_.output);
  std::optional<OutputTensor> log_sum_exp;
  if (plan_.log_sum_exp) log_sum_exp.emplace(*plan_.log_sum_exp);
  // It merges small tensors: threads would cost more than they bring.
  Executor executor(0);
  auto whole = Accumulator::Create(
      plan_,
      {.output = output.memory.get(),
       .log_sum_exp = log_sum_exp ? log_sum_exp->memory.get() : nullptr});
  if (!whole.ok()) return whole.status();
  std::optional<PartialMemory> unseen;
  const int64_t blocks = (length_ + kKeyBlock - 1) / kKeyBlock;
  const int64_t run_blocks = layout_.run / kKeyBlock;
  for (size_t run = 0; run < partials_.size(); ++run) {
    Partial partial = partials_[run];
    if (partial.memory == nullptr) {
      if (!unseen) {
        unseen.emplace(static_cast<size_t>(queries_ * query_heads_),
                       static_cast<size_t>(value_size_), SizeOf(type_));
        if (type_ == DataType::kFloat64) {
          FillUnseen<double>(*unseen);
        } else {
          FillUnseen<float>(*unseen);
        }
      }
      partial.block_begin = static_cast<int64_t>(run) * run_blocks;
      partial.block_end = std::min(partial.block_begin + run_blocks, blocks);
      partial.rows = queries_ * query_heads_;
      partial.value_head_size = value_size_;
      partial.type = type_;
      unseen->Place(partial);
    }
    absl::Status status = whole->Merge(partial, executor);
    if (!status.ok()) return status;
  }
  absl::Status status = whole->Finish(executor);
  if (!status.ok()) return status;
  AttendResult result;
  absl::StatusOr<Tensor> tensor = output.Finish("output", outputs.output);
  if (!tensor.ok()) return tensor.status();
  result.output = *std::move(tensor);
  if (log_sum_exp) {
    tensor = log_sum_exp->Finish("log_sum_exp", outputs.log_sum_exp);
    if (!tensor.ok()) return tensor.status();
    result.log_sum_exp = *std::move(tensor);
  }
  result.timing = timing_;
  result.length = length_;
  return result;
}

}  // namespace attention::internal
