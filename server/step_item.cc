#include "server/step_item.h"

#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "attention/v1/session.pb.h"
#include "base/field_error.h"
#include "server/admission/refusals.h"
#include "server/layer_attend.h"
#include "server/status.h"

namespace attention::server {
namespace {

using v1::StepResult;

// ResponseEncoder writes the numbers of one for the other.
static_assert(static_cast<int>(StepResult::kOutputFieldNumber) ==
              v1::ComputeAttentionResponse::kOutputFieldNumber);
static_assert(static_cast<int>(StepResult::kLogSumExpFieldNumber) ==
              v1::ComputeAttentionResponse::kLogSumExpFieldNumber);
static_assert(static_cast<int>(StepResult::kScoresFieldNumber) ==
              v1::ComputeAttentionResponse::kScoresFieldNumber);

absl::Status Unwanted(absl::string_view field, absl::string_view without) {
  return FieldError(field,
                    absl::StrCat("got it, wanted none without ", without));
}

// What is wrong with fields of an append that stand without a key, or with
// fields of an attend without a query.
absl::Status CheckLoose(const wire::AppendFields& fields) {
  if (fields.value.present) return Unwanted("value", "key");
  if (!fields.request_id.empty()) return Unwanted("request_id", "key");
  return absl::OkStatus();
}

absl::Status CheckLoose(const wire::AttendFields& fields) {
  if (fields.mask.present) return Unwanted("mask", "query");
  if (fields.indices.present) return Unwanted("indices", "query");
  if (fields.sinks.present) return Unwanted("sinks", "query");
  if (fields.options.ByteSizeLong() > 0) return Unwanted("options", "query");
  if (fields.not_causal) return Unwanted("not_causal", "query");
  if (fields.mask_begin != 0) return Unwanted("mask_begin", "query");
  return absl::OkStatus();
}

}  // namespace

StepItem::StepItem(wire::StepFields fields) : where_(fields.append.where) {
  const bool appends = fields.append.key.present;
  const bool attends = fields.attend.query.present;
  if (!appends && !attends) {
    status_ = FieldError(
        "key", "missing, and query is missing too: wanted at least one");
  }
  if (status_.ok() && !appends) status_ = CheckLoose(fields.append);
  if (status_.ok() && !attends) status_ = CheckLoose(fields.attend);
  if (!status_.ok()) return;
  if (appends) append_.emplace(std::move(fields.append));
  if (attends) queries_.emplace(std::move(fields.attend));
}

void StepItem::Fail(const absl::Status& status) {
  status_ = status;
  LetGo();
}

void StepItem::LetGo() {
  append_.reset();
  queries_.reset();
  plan_.reset();
  request_.reset();
  keys_ = {};
  session_ = nullptr;
}

void StepItem::Begin(const std::shared_ptr<Session>& session, BufferPool& pool,
                     wire::MemoryMeter& meter) {
  const absl::Status status = BeginParts(session, pool, meter);
  if (!status.ok()) Fail(status);
}

absl::Status StepItem::BeginParts(const std::shared_ptr<Session>& session,
                                  BufferPool& pool, wire::MemoryMeter& meter) {
  session_ = session;
  const PageFormat& format = session->config().format;
  if (append_) {
    absl::Status status = append_->Check(format);
    if (status.ok()) status = append_->Begin(session, meter);
    if (!status.ok()) return status;
    length_ = append_->end();
  } else {
    absl::StatusOr<LayerSnapshot> keys = ReadLayer(*session, where_);
    if (!keys.ok()) return keys.status();
    keys_ = *std::move(keys);
    length_ = keys_.length();
  }
  if (!queries_) return absl::OkStatus();
  auto request =
      ToLayerRequest(*std::move(queries_), format, length_, pool, meter);
  if (!request.ok()) return request.status();
  request_ = *std::move(request);
  return absl::OkStatus();
}

int64_t StepItem::copies() const {
  return (append_ ? append_->tasks() : 0) +
         (request_ ? static_cast<int64_t>(request_->copies.size()) : 0);
}

void StepItem::Run(int64_t copy) {
  const int64_t rows = append_ ? append_->tasks() : 0;
  if (copy < rows) return append_->Run(copy);
  request_->copies[copy - rows].Run();
}

void StepItem::Prepare(const AttentionLimits& limits) {
  const absl::Status status = PrepareParts(limits);
  if (!status.ok()) Fail(status);
}

absl::Status StepItem::PrepareParts(const AttentionLimits& limits) {
  if (append_) {
    absl::Status status = append_->Verify();
    if (!status.ok()) return status;
    keys_ = append_->Written();
  }
  if (!request_) return absl::OkStatus();
  request_->copies.clear();
  absl::StatusOr<AttentionPlan> plan =
      PlanLayerRequest(*request_, keys_, view_, limits);
  if (!plan.ok()) return plan.status();
  plan_ = *std::move(plan);
  encoder_.emplace(*plan_, request_->float_values);
  return absl::OkStatus();
}

int64_t StepItem::tensor_bytes() const {
  return request_ ? request_->bytes : 0;
}

int64_t StepItem::answer_bytes() const {
  return encoder_ ? encoder_->bytes() : 0;
}

int64_t StepItem::held_bytes() const {
  return encoder_ ? encoder_->held_bytes() : 0;
}

void StepItem::Allocate(BufferPool& pool) {
  if (encoder_) outputs_ = encoder_->Allocate(pool);
}

std::unique_ptr<Executor::Job> StepItem::MakeJob(int threads) {
  return MakeAttentionJob(*plan_, outputs_, threads,
                          [this](absl::Status status) {
                            if (absl::IsResourceExhausted(status))
                              status = OutOfMemory();
                            if (!status.ok()) Fail(status);
                          });
}

void StepItem::Publish() {
  if (!append_) return;
  const absl::StatusOr<int64_t> length = append_->Publish();
  append_.reset();
  if (!length.ok()) Fail(length.status());
}

wire::MessageWriter StepItem::Result() {
  LetGo();
  if (status_.ok()) {
    wire::MessageWriter result =
        encoder_ ? encoder_->Finish() : wire::MessageWriter();
    result.Integer(StepResult::kLengthFieldNumber, length_);
    return result;
  }
  const grpc::Status status = ToGrpcStatus(status_);
  wire::MessageWriter result;
  result.Integer(StepResult::kCodeFieldNumber, status.error_code());
  result.Copy(StepResult::kMessageFieldNumber, status.error_message());
  result.Copy(StepResult::kStatusDetailsFieldNumber, status.error_details());
  return result;
}

}  // namespace attention::server
