#include "server/rpc/stream_chunk.h"

#include <algorithm>
#include <variant>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "kernel/attention.h"

namespace attention::server {
namespace {

// A task copies no more, which takes some tenths of a millisecond, nor more
// rows, which may be tiny; but for one token of one sequence.
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
  AddTasks(Operand::kKey, range, format_.geometry().key_row_bytes());
  AddTasks(Operand::kValue, range, format_.geometry().value_row_bytes());
  AddMaskTasks(
      {range.begin,
       std::min(range.end, tokens_.begin + format_.MaskColumns(tokens_))});
  return static_cast<int64_t>(tasks_.size());
}

// Cut into tokens; where one is too much, into the sequences that it belongs
// to.
void StreamChunk::AddTasks(Operand operand, TokenRange range,
                           int64_t row_bytes) {
  const KeyValueGeometry& g = format_.geometry();
  const int64_t sequences = g.sequences_per_token();
  if (sequences == 0) return;  // Any number of tokens, of no bytes.
  // Rows of one token.
  const int64_t most =
      std::min(kTaskRows, kTaskBytes / std::max<int64_t>(1, row_bytes));
  const int64_t all = std::max<int64_t>(1, sequences * g.kv_heads);
  const int64_t step = std::max<int64_t>(1, most / all);
  const int64_t part =
      most >= all ? sequences : std::max<int64_t>(1, most / g.kv_heads);
  for (int64_t begin = range.begin; begin < range.end; begin += step) {
    for (int64_t first = 0; first < sequences; first += part) {
      tasks_.push_back({operand,
                        {begin, std::min(range.end, begin + step)},
                        {first, std::min(sequences, first + part)},
                        std::nullopt});
    }
  }
}

// Cut into rows, each of which is copied in one piece; a very long one into
// columns too.
void StreamChunk::AddMaskTasks(TokenRange range) {
  const KeyValueGeometry& g = format_.geometry();
  const int64_t columns = range.end - range.begin;
  if (columns <= 0 || g.mask_rows == 0) return;
  const int64_t step = std::min(columns, kTaskBytes / g.mask_element_bytes);
  const int64_t part = std::clamp<int64_t>(
      kTaskBytes / (step * g.mask_element_bytes), 1, kTaskRows);
  for (int64_t begin = range.begin; begin < range.end; begin += step) {
    for (int64_t first = 0; first < g.mask_rows; first += part) {
      tasks_.push_back({Operand::kMask,
                        {begin, std::min(range.end, begin + step)},
                        {first, std::min(g.mask_rows, first + part)},
                        std::nullopt});
    }
  }
}

void StreamChunk::Copy(int64_t number) {
  Task& task = tasks_[number];
  const wire::SliceReader& bytes = payloads_[static_cast<size_t>(task.operand)];
  if (task.operand == Operand::kMask) {
    task.wrong_bool =
        WriteMask(*pages_, tokens_, format_.MaskColumns(tokens_), task.range,
                  format_.has_bool_mask(), bytes, task.part);
    return;
  }
  WriteTokens(
      *pages_,
      task.operand == Operand::kKey ? KeyOrValue::kKey : KeyOrValue::kValue,
      tokens_, task.range, bytes, task.part);
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
