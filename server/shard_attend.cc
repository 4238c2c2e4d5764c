#include "server/shard_attend.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "attention/v1/session.pb.h"
#include "base/field_error.h"
#include "base/saturating.h"
#include "grpcpp/support/slice.h"
#include "kernel/accumulator.h"
#include "wire/data_type.h"
#include "wire/tensor_fields.h"

namespace attention::server {
namespace {

absl::Status CheckRange(absl::string_view field, int64_t number, int64_t least,
                        int64_t most) {
  if (number >= least && number <= most) return absl::OkStatus();
  return FieldError(
      absl::StrCat("shard.", field),
      absl::StrCat("got ", number, ", wanted ", least, " to ", most));
}

// As the planner takes the mask: of all tokens, without data. Where the mask
// ends within the shard it ends there for the whole sequence, whose other
// tokens are not computed here.
absl::Status DeclareWholeMask(const ShardOfSequence& shard,
                              ConstTensorView& mask) {
  if (mask.shape.empty()) return absl::OkStatus();  // The planner refuses it.
  const int64_t columns = mask.shape.back(), tokens = shard.tokens();
  if (columns > tokens) {
    return FieldError(
        "mask.shape",
        absl::StrCat("got ", ToString(mask.shape), ", wanted at most ", tokens,
                     " columns, one for each token of the shard"));
  }
  mask.shape.back() = columns == tokens
                          ? shard.total_length
                          : shard.layout.PlaceOf(shard.index, columns);
  mask.data = nullptr;
  return absl::OkStatus();
}

// Columns [begin, begin + count) of a mask without padding, or as many as it
// has; nothing if it has none.
std::optional<ConstTensorView> Columns(const ConstTensorView& mask,
                                       int64_t begin, int64_t count) {
  ConstTensorView columns = mask;
  const int64_t all = mask.shape.back();
  columns.shape.back() = std::min(count, all - begin);
  if (columns.shape.back() <= 0) return std::nullopt;
  columns.strides.assign(mask.shape.size(), 1);
  for (size_t axis = mask.shape.size() - 1; axis > 0; --axis) {
    columns.strides[axis - 1] = columns.strides[axis] * mask.shape[axis];
  }
  if (mask.data != nullptr) {
    columns.data = static_cast<const std::byte*>(mask.data) +
                   begin * static_cast<int64_t>(SizeOf(mask.type));
  }
  return columns;
}

// The runs of the shard, and the mask's columns of them.
std::vector<KeyPart> CutIntoRuns(const ShardOfSequence& shard,
                                 const KeyValueView& keys,
                                 const std::optional<ConstTensorView>& mask) {
  const int64_t run = shard.layout.run;
  std::vector<KeyPart> parts;
  for (int64_t begin = 0; begin < keys.length; begin += run) {
    KeyPart& part = parts.emplace_back();
    part.view = keys;
    part.view.begin = shard.layout.PlaceOf(shard.index, begin);
    part.view.length = std::min(run, keys.length - begin);
    part.view.blocks = keys.blocks.subspan(
        begin / kKeyBlock, (part.view.length + kKeyBlock - 1) / kKeyBlock);
    if (mask) part.mask = Columns(*mask, begin, part.view.length);
  }
  return parts;
}

// Keeps the memory of a slice until gRPC lets go of it, on some thread.
struct Keeper {
  explicit Keeper(std::shared_ptr<const void> kept) : memory(std::move(kept)) {
    made.store(true, std::memory_order_release);
  }
  ~Keeper() { static_cast<void>(made.load(std::memory_order_acquire)); }

  const std::shared_ptr<const void> memory;
  // gRPC orders the two, but ThreadSanitizer does not see into it.
  std::atomic<bool> made{false};
};

// A Tensor in `bytes` bytes from `data` on, which `memory` keeps.
wire::MessageWriter BorrowedTensor(DataType type,
                                   absl::Span<const int64_t> shape,
                                   const void* data, size_t bytes,
                                   const std::shared_ptr<const void>& memory) {
  wire::MessageWriter tensor = wire::StartTensor(wire::ToWire(type), shape);
  if (bytes == 0) return tensor;
  tensor.Borrow(v1::Tensor::kDataFieldNumber,
                grpc::Slice(
                    const_cast<void*>(data), bytes,
                    [](void* keeper) { delete static_cast<Keeper*>(keeper); },
                    new Keeper(memory)));
  return tensor;
}

}  // namespace

absl::StatusOr<ShardOfSequence> ToShard(const wire::ShardFields& fields) {
  absl::Status status =
      CheckRange("count", fields.count, 1, ShardLayout::kMaxCount);
  if (status.ok()) {
    status = CheckRange("index", fields.index, 0, fields.count - 1);
  }
  if (status.ok()) {
    status = CheckRange("blocks_per_run", fields.blocks_per_run, 1,
                        ShardLayout::kMaxRunBlocks);
  }
  if (status.ok() && (fields.blocks_per_run & (fields.blocks_per_run - 1))) {
    status = FieldError(
        "shard.blocks_per_run",
        absl::StrCat("got ", fields.blocks_per_run, ", wanted a power of two"));
  }
  if (status.ok()) {
    status = CheckRange("total_length", fields.total_length, 0,
                        ShardLayout::kMaxLength);
  }
  if (!status.ok()) return status;
  return ShardOfSequence{.layout = {.count = fields.count,
                                    .run = fields.blocks_per_run * kKeyBlock},
                         .index = fields.index,
                         .total_length = fields.total_length};
}

absl::Status CheckShardOptions(const wire::AttendFields& fields) {
  const auto unwanted = [](absl::string_view option) {
    return FieldError(absl::StrCat("options.", option),
                      "got it, wanted none with shard: who merges the partials "
                      "adds it once");
  };
  const v1::AttentionOptions& options = fields.options;
  if (options.sinks_size() > 0) return unwanted("sinks");
  if (fields.sinks.present) {
    return FieldError("sinks",
                      "got it, wanted none with shard: who merges the partials "
                      "adds it once");
  }
  if (options.return_log_sum_exp()) return unwanted("return_log_sum_exp");
  if (options.return_scores() != v1::SCORES_UNSPECIFIED) {
    return unwanted("return_scores");
  }
  if (fields.mask_begin != 0) {
    return FieldError("mask_begin",
                      absl::StrCat("got ", fields.mask_begin,
                                   ", wanted 0 with shard: the mask has the "
                                   "columns of its tokens"));
  }
  if (fields.query.float_values.count > 0) {
    return FieldError("query.float_values",
                      "got them, wanted data with shard: partials have data");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<ShardAttend>> ShardAttend::Plan(
    const KernelRequest& request, const ShardOfSequence& shard,
    const PageFormat& format, const KeyValueView& keys,
    const AttentionLimits& limits, int threads) {
  const int64_t runs = (keys.length + shard.layout.run - 1) / shard.layout.run;
  if (runs > kMostPartials) {
    return FieldError(
        "shard.blocks_per_run",
        absl::StrCat("got ", shard.layout.run / kKeyBlock, ", which makes ",
                     runs, " runs of the shard's tokens, wanted at most ",
                     kMostPartials));
  }
  AttentionInputs inputs = request.inputs;
  const std::optional<ConstTensorView> mask = inputs.mask;
  if (mask) {
    absl::Status status = DeclareWholeMask(shard, *inputs.mask);
    if (!status.ok()) return status;
  }
  // The plan's cost is that of all tokens. The shard's part of it; all of it
  // with a window or indices, which may lie in this shard.
  const bool windowed = inputs.indices || request.options.window_left >= 0 ||
                        request.options.window_right >= 0 ||
                        request.options.chunk_size > 0;
  const double part =
      windowed || shard.total_length == 0
          ? 1
          : static_cast<double>(std::max<int64_t>(keys.length, 1)) /
                static_cast<double>(shard.total_length);
  AttentionLimits of_all = limits;
  of_all.work /= part;
  absl::StatusOr<AttentionPlan> plan =
      PlanAttention(inputs, request.options, of_all);
  if (plan.ok() && format.scaled()) {
    plan = WithScaledKeys(*std::move(plan), format.type);
  }
  if (!plan.ok()) return plan.status();
  plan->flops *= part;
  plan->work *= part;
  std::unique_ptr<ShardAttend> attend(new ShardAttend);
  attend->shard_ = shard;
  attend->keys_ = keys;
  attend->mask_ = mask;
  attend->query_heads_ = plan->output.shape[1];
  attend->queries_ = plan->output.shape[2];
  attend->plan_ = *std::move(plan);
  attend->threads_ = threads;
  attend->runs_ = runs;
  return attend;
}

absl::Status ShardAttend::Begin() {
  auto parts =
      PartsOfKeys::Create(plan_, CutIntoRuns(shard_, keys_, mask_), threads_);
  if (!parts.ok()) return parts.status();
  parts_ = *std::move(parts);
  return absl::OkStatus();
}

int64_t ShardAttend::answer_bytes() const {
  // Three tensors of three dimensions at the most, and what is around them.
  constexpr int64_t kAround = 300;
  return SaturatingMultiply(
      runs_, SaturatingAdd(PartsOfKeys::PartialBytes(plan_), kAround));
}

int64_t ShardAttend::working_bytes() const {
  return PartsOfKeys::Bytes(plan_, runs_, threads_);
}

void ShardAttend::Write(wire::MessageWriter& answer) const {
  for (const attention::Partial& partial : parts_->partials()) {
    const size_t element = SizeOf(partial.type);
    const auto rows = static_cast<size_t>(partial.rows);
    const auto size = static_cast<size_t>(partial.value_head_size);
    wire::MessageWriter message;
    message.Integer(v1::Partial::kBlockBeginFieldNumber, partial.block_begin);
    message.Integer(v1::Partial::kBlockEndFieldNumber, partial.block_end);
    const auto add = [&](int field, const Shape& shape, const void* data,
                         size_t elements) {
      message.Message(
          field, BorrowedTensor(partial.type, shape, data, elements * element,
                                partial.memory));
    };
    const Shape rows_shape = {queries_, query_heads_};
    add(v1::Partial::kMaxFieldNumber, rows_shape, partial.max, rows);
    add(v1::Partial::kSumFieldNumber, rows_shape, partial.sum, rows);
    add(v1::Partial::kOutputFieldNumber,
        {queries_, query_heads_, partial.value_head_size}, partial.output,
        rows * size);
    answer.Message(v1::AttendResponse::kPartialsFieldNumber,
                   std::move(message));
  }
}

}  // namespace attention::server
