#include "server/admission/refusals.h"

#include <algorithm>
#include <new>
#include <string>

#include "absl/strings/str_cat.h"
#include "server/status.h"

namespace attention::server {
namespace {

constexpr absl::Duration kLeastDelay = absl::Milliseconds(50);
constexpr absl::Duration kMostDelay = absl::Seconds(5);

absl::Status Busy(Reason reason, const std::string& why, absl::Duration delay) {
  return RetryLater(reason, absl::StrCat("the server is busy: ", why),
                    std::clamp(delay, kLeastDelay, kMostDelay));
}

// Where there is no memory for words, the code must do.
template <typename Make>
absl::Status Made(absl::StatusCode code, const Make& make) {
  try {
    return make();
  } catch (const std::bad_alloc&) {
    return absl::Status(code, "");
  }
}

std::string Rounded(absl::Duration duration) {
  return absl::FormatDuration(absl::Trunc(duration, absl::Milliseconds(1)));
}

// As google.rpc.QuotaFailure names it.
std::string SubjectOf(const Tenant& tenant) {
  return absl::StrCat("tenant:", tenant.name);
}

std::string Budget(int64_t max_bytes) {
  return absl::StrCat(max_bytes,
                      " bytes that it works on at once (max_inflight_bytes)");
}

}  // namespace

absl::Status Draining() {
  return Made(absl::StatusCode::kUnavailable, [&] {
    return WithReason(Reason::kDraining,
                      absl::UnavailableError("the server is shutting down"));
  });
}

absl::Status HeadersTooLarge(int64_t count, int64_t bytes, int64_t max_count,
                             int64_t max_bytes) {
  return Made(absl::StatusCode::kResourceExhausted, [&] {
    return WithReason(Reason::kHeadersTooLarge,
                      absl::ResourceExhaustedError(absl::StrCat(
                          "the call's headers: got ", count, " of ", bytes,
                          " bytes in all, wanted at most ", max_count, " of ",
                          max_bytes, " bytes (max_header_bytes)")));
  });
}

absl::Status RequestTooLarge(int64_t bytes, int64_t max_request_bytes) {
  return Made(absl::StatusCode::kResourceExhausted, [&] {
    return WithReason(
        Reason::kRequestTooLarge,
        absl::ResourceExhaustedError(absl::StrCat(
            "the request has ", bytes, " bytes, more than the ",
            max_request_bytes, " that this server takes (max_request_bytes)")));
  });
}

absl::Status ChunkTooLarge(int64_t bytes, int64_t max_chunk_bytes) {
  return Made(absl::StatusCode::kResourceExhausted, [&] {
    return WithReason(
        Reason::kRequestTooLarge,
        absl::ResourceExhaustedError(absl::StrCat(
            "the message has ", bytes, " bytes, more than the ",
            max_chunk_bytes,
            " that this server takes after a header (max_chunk_bytes)")));
  });
}

absl::Status MessageOfStreamTooLarge(int64_t bytes, int64_t limit,
                                     int64_t stream_bytes) {
  return Made(absl::StatusCode::kResourceExhausted, [&] {
    return WithReason(
        Reason::kRequestTooLarge,
        absl::ResourceExhaustedError(absl::StrCat(
            "the message has ", bytes, " bytes, more than the ", limit,
            " that one may have after a header of ", stream_bytes,
            " bytes of keys, values and mask in all")));
  });
}

absl::Status FloatsTooLarge(int64_t bytes, int64_t limit) {
  return Made(absl::StatusCode::kResourceExhausted, [&] {
    return WithReason(
        Reason::kRequestTooLarge,
        absl::ResourceExhaustedError(absl::StrCat(
            "chunk: float_values in several parts take ", bytes,
            " bytes to join, more than the ", limit,
            " that a message of this stream may have; send them packed")));
  });
}

absl::Status TokenTooLarge(int64_t bytes, int64_t max_chunk_bytes) {
  return Made(absl::StatusCode::kResourceExhausted, [&] {
    return WithReason(
        Reason::kRequestTooLarge,
        absl::ResourceExhaustedError(absl::StrCat(
            "one token of all sequences has ", bytes, " bytes, more than the ",
            max_chunk_bytes,
            " that this server takes in a message (max_chunk_bytes)")));
  });
}

absl::Status AnswerTooLarge(int64_t bytes, int64_t max_response_bytes) {
  return Made(absl::StatusCode::kResourceExhausted, [&] {
    return WithReason(Reason::kAnswerTooLarge,
                      absl::ResourceExhaustedError(absl::StrCat(
                          "the answer would have ", bytes,
                          " bytes, more than the ", max_response_bytes,
                          " that this server sends (max_response_bytes)")));
  });
}

absl::Status NoRoomToWait(int64_t waiting, int64_t max_bytes) {
  return Made(absl::StatusCode::kResourceExhausted, [&] {
    return Busy(Reason::kMemoryBusy,
                absl::StrCat(waiting, " calls wait for a part of the ",
                             Budget(max_bytes)),
                absl::Milliseconds(100));
  });
}

absl::Status WouldWaitTooLong(absl::Duration wait, absl::Duration max_queue) {
  return Made(absl::StatusCode::kResourceExhausted, [&] {
    return Busy(
        Reason::kQueueFull,
        absl::StrCat("the call would wait for about ", Rounded(wait),
                     ", longer than the ", absl::FormatDuration(max_queue),
                     " that it lets calls wait (max_queue)"),
        wait - max_queue / 2);
  });
}

absl::Status WouldWaitUntilTooLate(absl::Duration wait, absl::Duration left) {
  return Made(absl::StatusCode::kResourceExhausted, [&] {
    return Busy(Reason::kDeadlineTooClose,
                absl::StrCat("the call would wait for about ", Rounded(wait),
                             " and has ", Rounded(left), " until its deadline"),
                wait / 2);
  });
}

absl::Status WouldTakeTooLong(absl::Duration wait, absl::Duration own,
                              absl::Duration left) {
  return Made(absl::StatusCode::kResourceExhausted, [&] {
    return Busy(Reason::kDeadlineTooClose,
                absl::StrCat("the call would take about ", Rounded(wait + own),
                             ", longer than the ", Rounded(left),
                             " left until its deadline"),
                wait);
  });
}

absl::Status NeverFits(int64_t bytes, int64_t held, int64_t max_bytes) {
  return Made(absl::StatusCode::kResourceExhausted, [&] {
    return WithReason(
        Reason::kMemoryTooLarge,
        absl::ResourceExhaustedError(absl::StrCat(
            "the call needs ", bytes, " bytes beside ", held,
            ", together more than the ", max_bytes,
            " that this server works on at once (max_inflight_bytes)")));
  });
}

absl::Status DoesNotFitNow(int64_t more_bytes, int64_t max_bytes) {
  return Made(absl::StatusCode::kResourceExhausted, [&] {
    return Busy(Reason::kMemoryBusy,
                absl::StrCat(more_bytes, " bytes more would exceed the ",
                             Budget(max_bytes)),
                absl::Milliseconds(100));
  });
}

absl::Status NoRoomForTheRest(int64_t max_bytes) {
  return Made(absl::StatusCode::kResourceExhausted, [&] {
    return Busy(Reason::kMemoryBusy,
                absl::StrCat("it has no memory for the rest of the request "
                             "within the ",
                             Budget(max_bytes)),
                absl::Milliseconds(500));
  });
}

absl::Status TenantTooLarge(const Tenant& tenant, int64_t bytes) {
  return Made(absl::StatusCode::kResourceExhausted, [&] {
    return WithQuota(
        SubjectOf(tenant),
        WithReason(Reason::kTenantTooLarge,
                   absl::ResourceExhaustedError(absl::StrCat(
                       "the call needs ", bytes, " bytes, more than the ",
                       tenant.max_bytes, " that all calls of the tenant \"",
                       tenant.name, "\" may hold at once"))));
  });
}

absl::Status TenantHoldsTooMuch(const Tenant& tenant, int64_t more_bytes) {
  return Made(absl::StatusCode::kResourceExhausted, [&] {
    return WithQuota(
        SubjectOf(tenant),
        RetryLater(
            Reason::kTenantBytes,
            absl::StrCat(more_bytes, " bytes more would exceed the ",
                         tenant.max_bytes, " that the calls of the tenant \"",
                         tenant.name, "\" may hold at once"),
            absl::Milliseconds(100)));
  });
}

absl::Status TenantWorksTooMuch(const Tenant& tenant, absl::Duration wait) {
  return Made(absl::StatusCode::kResourceExhausted, [&] {
    return WithQuota(
        SubjectOf(tenant),
        RetryLater(Reason::kTenantWork,
                   absl::StrCat("the tenant \"", tenant.name,
                                "\" has used up its ", tenant.max_work,
                                " multiply-adds per second; try again in ",
                                Rounded(wait)),
                   std::max(wait, kLeastDelay)));
  });
}

absl::Status OutOfMemory() {
  return Made(absl::StatusCode::kResourceExhausted, [] {
    return RetryLater(Reason::kOutOfMemory,
                      "the server could not allocate memory for the call",
                      absl::Seconds(1));
  });
}

absl::Status LateBeforeRead() {
  return Made(absl::StatusCode::kDeadlineExceeded, [] {
    return absl::DeadlineExceededError(
        "the deadline passed before the request was read");
  });
}

absl::Status LateWhileRead() {
  return Made(absl::StatusCode::kDeadlineExceeded, [] {
    return absl::DeadlineExceededError(
        "the deadline passed while the request was being received");
  });
}

absl::Status IdleTooLong(absl::Duration idle) {
  return Made(absl::StatusCode::kDeadlineExceeded, [&] {
    return WithReason(
        Reason::kIdleTooLong,
        absl::DeadlineExceededError(absl::StrCat(
            "no message came for ",
            absl::FormatDuration(absl::Trunc(idle, absl::Milliseconds(1))),
            "; another stream may go on")));
  });
}

absl::Status TooSlow(double min_upload_rate, absl::Duration most) {
  return Made(absl::StatusCode::kDeadlineExceeded, [&] {
    return WithReason(Reason::kSlowUpload,
                      absl::DeadlineExceededError(absl::StrCat(
                          "the request did not come within ",
                          absl::FormatDuration(most), " at ", min_upload_rate,
                          " bytes per second or more (min_upload_rate)")));
  });
}

absl::Status AnswerNotTaken(int64_t bytes, absl::Duration most) {
  return Made(absl::StatusCode::kDeadlineExceeded, [&] {
    return WithReason(
        Reason::kSlowReader,
        absl::DeadlineExceededError(absl::StrCat(
            "the answer of ", bytes, " bytes was not taken within ",
            absl::FormatDuration(most), " (min_answer_rate)")));
  });
}

}  // namespace attention::server
