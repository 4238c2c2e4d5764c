#include "server/rpc/stream_chunk.h"

#include <algorithm>
#include <variant>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "kernel/attention.h"

namespace attention::server {
namespace {

// A task copies no more, which takes some tenths of a millisecond, nor more
// rows, which may be tiny.
constexpr int64_t kTaskBytes = int64_t{1} << 20;
constexpr int64_t kTaskRows = int64_t{1} << 16;

}  // namespace

absl::Status StreamChunk::Decode(int64_t begin, BufferPool& pool,
                                 wire::MemoryMeter& meter,
                                 size_t most_numbers) {
  decoded_ = true;
  // Nothing else leaves a message that has come without bytes.
  if (!message_.Dump(&slices_).ok()) {
    return absl::CancelledError("the message is gone");
  }
  auto fields = wire::DecodeStreamRequest(slices_, pool, meter, most_numbers);
  if (!fields.ok()) return fields.status();
  if (std::holds_alternative<wire::RequestFields>(*fields)) {
    return FieldError("header", "got a second one, wanted a chunk");
  }
  if (std::holds_alternative<std::monostate>(*fields)) {
    return absl::InvalidArgumentError("got an empty message, wanted a chunk");
  }
  fields_ = std::get<wire::ChunkFields>(*std::move(fields));
  const absl::StatusOr<TokenRange> tokens = format_.Check(fields_, begin);
  if (!tokens.ok()) return tokens.status();
  tokens_ = *tokens;
  payloads_ = {PayloadOf(fields_.key, Operand::kKey),
               PayloadOf(fields_.value, Operand::kValue),
               PayloadOf(fields_.mask, Operand::kMask)};
  return absl::OkStatus();
}

wire::SliceReader StreamChunk::PayloadOf(wire::TensorFields& tensor,
                                         Operand operand) {
  if (tensor.float_values.count == 0) return tensor.data;
  grpc::Slice& slice = float_slices_[static_cast<size_t>(operand)];
  slice = grpc::Slice(tensor.float_values.values.data(),
                      tensor.float_values.count * sizeof(float),
                      grpc::Slice::STATIC_SLICE);
  return wire::SliceReader(absl::MakeConstSpan(&slice, 1));
}

int64_t StreamChunk::Prepare(const PageSet& pages, TokenRange range) {
  pages_ = &pages;
  tasks_.clear();
  const KeyValueGeometry& g = format_.geometry();
  const int64_t rows = g.sequences_per_token() * g.kv_heads;
  AddTasks(Operand::kKey, range, rows * g.key_row_bytes(), rows);
  AddTasks(Operand::kValue, range, rows * g.value_row_bytes(), rows);
  const TokenRange masked = {
      range.begin,
      std::min(range.end, tokens_.begin + format_.MaskColumns(tokens_))};
  AddTasks(Operand::kMask, masked, g.mask_rows * g.mask_element_bytes,
           g.mask_rows);
  return static_cast<int64_t>(tasks_.size());
}

void StreamChunk::AddTasks(Operand operand, TokenRange range,
                           int64_t token_bytes, int64_t token_rows) {
  if (token_rows == 0) return;
  // A mask's columns are strided over: few tasks of many columns each.
  const int64_t step =
      std::max<int64_t>(operand == Operand::kMask ? 16 : 1,
                        std::min(kTaskBytes / std::max<int64_t>(1, token_bytes),
                                 kTaskRows / token_rows));
  for (int64_t begin = range.begin; begin < range.end; begin += step) {
    tasks_.push_back(
        {operand, {begin, std::min(range.end, begin + step)}, std::nullopt});
  }
}

void StreamChunk::Copy(int64_t number) {
  Task& task = tasks_[number];
  const wire::SliceReader& bytes = payloads_[static_cast<size_t>(task.operand)];
  if (task.operand == Operand::kMask) {
    task.wrong_bool = WriteMask(*pages_, tokens_, format_.MaskColumns(tokens_),
                                task.range, format_.has_bool_mask(), bytes);
    return;
  }
  WriteTokens(
      *pages_,
      task.operand == Operand::kKey ? KeyOrValue::kKey : KeyOrValue::kValue,
      tokens_, task.range, bytes);
}

absl::Status StreamChunk::CheckMask() const {
  std::optional<int64_t> first;
  for (const Task& task : tasks_) {
    if (task.wrong_bool && (!first || *task.wrong_bool < *first)) {
      first = task.wrong_bool;
    }
  }
  if (!first) return absl::OkStatus();
  wire::SliceReader bytes = payloads_[static_cast<size_t>(Operand::kMask)];
  uint8_t byte = 0;
  bytes.Skip(*first);
  bytes.ReadBytes(&byte, 1);
  return FieldError("chunk.mask.data",
                    absl::StrCat("got byte ", static_cast<int>(byte),
                                 " at element ", *first, ", wanted 0 or 1"));
}

}  // namespace attention::server
