#include "wire/session_response.h"

#include <optional>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "attention/v1/session.pb.h"
#include "wire/message_reader.h"
#include "wire/slice_reader.h"

namespace attention::wire {
namespace {

using v1::AttendResponse;
using v1::Partial;
using v1::StepResponse;
using v1::StepResult;

// Both messages have the same numbers for what both have.
static_assert(static_cast<int>(AttendResponse::kOutputFieldNumber) ==
              StepResult::kOutputFieldNumber);
static_assert(static_cast<int>(AttendResponse::kLogSumExpFieldNumber) ==
              StepResult::kLogSumExpFieldNumber);
static_assert(static_cast<int>(AttendResponse::kScoresFieldNumber) ==
              StepResult::kScoresFieldNumber);
static_assert(static_cast<int>(AttendResponse::kLengthFieldNumber) ==
              StepResult::kLengthFieldNumber);

void ReadText(MessageReader& reader, std::string* text) {
  SliceReader bytes;
  if (!reader.Bytes(&bytes) || !reader.decoding().Take(bytes.remaining())) {
    return;
  }
  text->resize(bytes.remaining());
  bytes.ReadBytes(text->data(), text->size());
}

// A field that both messages have.
void DecodeShared(MessageReader& reader, AttendResultFields* result) {
  switch (reader.field()) {
    case StepResult::kOutputFieldNumber:
      return DecodeTensor(reader, &result->output);
    case StepResult::kLogSumExpFieldNumber:
      return DecodeTensor(reader, &result->log_sum_exp);
    case StepResult::kScoresFieldNumber:
      return DecodeTensor(reader, &result->scores);
    case StepResult::kLengthFieldNumber:
      return reader.Integer(&result->length);
    default:
      return reader.Skip();
  }
}

void DecodeResult(MessageReader& reader, AttendResultFields* result) {
  while (reader.Next()) {
    switch (reader.field()) {
      case StepResult::kCodeFieldNumber:
        reader.Integer(&result->code);
        break;
      case StepResult::kMessageFieldNumber:
        ReadText(reader, &result->message);
        break;
      case StepResult::kStatusDetailsFieldNumber:
        ReadText(reader, &result->status_details);
        break;
      default:
        DecodeShared(reader, result);
    }
  }
}

void DecodeTiming(MessageReader& reader, v1::Timing* timing) {
  SliceReader bytes;
  if (reader.Bytes(&bytes)) reader.Merge(bytes, timing);
}

// Makes room for one more of `what`. False if there must not be more.
template <typename Fields>
bool AddOne(absl::string_view what, size_t most, Decoding& decoding,
            std::vector<Fields>* list) {
  if (list->size() == most) {
    decoding.Refuse(absl::InvalidArgumentError(
        absl::StrCat("got more than ", most, " ", what, ", the most wanted")));
    return false;
  }
  // Twice, while the list grows.
  if (!decoding.Take(2 * sizeof(Fields))) return false;
  list->emplace_back();
  return true;
}

void DecodePartial(MessageReader& reader, PartialFields* partial) {
  while (reader.Next()) {
    switch (reader.field()) {
      case Partial::kBlockBeginFieldNumber:
        reader.Integer(&partial->block_begin);
        break;
      case Partial::kBlockEndFieldNumber:
        reader.Integer(&partial->block_end);
        break;
      case Partial::kMaxFieldNumber:
        DecodeTensor(reader, &partial->max);
        break;
      case Partial::kSumFieldNumber:
        DecodeTensor(reader, &partial->sum);
        break;
      case Partial::kOutputFieldNumber:
        DecodeTensor(reader, &partial->output);
        break;
      default:
        reader.Skip();
    }
  }
}

}  // namespace

absl::StatusOr<AttendResultFields> DecodeAttendResponse(
    absl::Span<const grpc::Slice> slices, BufferPool& pool, MemoryMeter& meter,
    size_t most_partials) {
  Decoding decoding("answer", "attention.v1.AttendResponse", pool, meter);
  MessageReader reader(SliceReader(slices), decoding);
  AttendResultFields fields;
  while (reader.Next()) {
    switch (reader.field()) {
      case AttendResponse::kTimingFieldNumber:
        DecodeTiming(reader, &fields.timing);
        break;
      case AttendResponse::kPartialsFieldNumber:
        if (std::optional<MessageReader> partial = reader.Message();
            partial &&
            AddOne("partials", most_partials, decoding, &fields.partials)) {
          DecodePartial(*partial, &fields.partials.back());
        }
        break;
      default:
        DecodeShared(reader, &fields);
    }
  }
  if (!decoding.ok()) return decoding.status();
  return fields;
}

absl::StatusOr<StepResponseFields> DecodeStepResponse(
    absl::Span<const grpc::Slice> slices, BufferPool& pool, MemoryMeter& meter,
    size_t most) {
  Decoding decoding("answer", "attention.v1.StepResponse", pool, meter);
  MessageReader reader(SliceReader(slices), decoding);
  StepResponseFields fields;
  while (reader.Next()) {
    switch (reader.field()) {
      case StepResponse::kResultsFieldNumber:
        if (std::optional<MessageReader> result = reader.Message();
            result && AddOne("results", most, decoding, &fields.results)) {
          DecodeResult(*result, &fields.results.back());
        }
        break;
      case StepResponse::kTimingFieldNumber:
        DecodeTiming(reader, &fields.timing);
        break;
      default:
        reader.Skip();
    }
  }
  if (!decoding.ok()) return decoding.status();
  return fields;
}

}  // namespace attention::wire
