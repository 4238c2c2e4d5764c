#include "server/rpc/call_record.h"

#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/logging.h"
#include "server/status.h"

namespace attention::server {

namespace {

std::string ShapesText(const std::optional<CallRecord::Shapes>& shapes) {
  if (!shapes) return "";
  std::string text = absl::StrCat(" query=", Quoted(ToString(shapes->query)),
                                  " key=", Quoted(ToString(shapes->key)),
                                  " value=", Quoted(ToString(shapes->value)));
  if (shapes->tokens) absl::StrAppend(&text, " tokens=", *shapes->tokens);
  return text;
}

}  // namespace

v1::Timing CallRecord::Timing() const {
  v1::Timing timing;
  timing.set_queue_us(absl::ToInt64Microseconds(wait + receive + queue));
  timing.set_decode_us(absl::ToInt64Microseconds(decode));
  timing.set_compute_us(absl::ToInt64Microseconds(compute));
  timing.set_encode_us(absl::ToInt64Microseconds(encode));
  return timing;
}

void CallRecord::BeginAgain() {
  CallRecord next(method);
  next.tenant = std::move(tenant);
  next.caller = std::move(caller);
  next.inferences = inferences;
  *this = std::move(next);
}

void CallRecord::End(const absl::Status& status, spdlog::logger& log,
                     LogLimiter& limiter, Metrics& metrics) const {
  if (answered) return;
  Log(status, log, limiter);
  const Reason reason = ReasonOf(status);
  metrics.CallEnded({.method = method,
                     .code = static_cast<grpc::StatusCode>(status.code()),
                     .reason = IsRefusal(reason) ? ReasonName(reason) : "",
                     .request_bytes = request_bytes,
                     .response_bytes = status.ok() ? response_bytes : 0,
                     .wait = wait,
                     .receive = receive,
                     .decode = decode,
                     .queue = queue,
                     .compute = compute,
                     .encode = encode,
                     .total = absl::Now() - arrival,
                     .predicted_seconds = predicted_seconds,
                     .used_seconds = used_seconds});
  if (inferences != nullptr) {
    inferences->Add(status.ok(), {.queue = wait + receive + queue,
                                  .decode = decode,
                                  .compute = compute,
                                  .encode = encode,
                                  .total = absl::Now() - arrival});
  }
  if (tenant == nullptr) return;
  const auto result = status.ok()                   ? CallResult::kOk
                      : IsRefusal(ReasonOf(status)) ? CallResult::kRefused
                                                    : CallResult::kError;
  ++tenant->use->calls[static_cast<size_t>(result)];
  tenant->use->used_seconds += used_seconds;
}

void CallRecord::Log(const absl::Status& status, spdlog::logger& log,
                     LogLimiter& limiter) const {
  const auto level = status.ok() ? spdlog::level::debug
                     : status.code() == absl::StatusCode::kInternal
                         ? spdlog::level::err
                         : spdlog::level::info;
  if (!log.should_log(level)) return;
  const auto code = static_cast<grpc::StatusCode>(status.code());
  const Reason why = ReasonOf(status);
  const absl::string_view reason = ReasonName(why);
  // Good calls are logged for those who ask for each (debug).
  if (!status.ok() && !limiter.Allow({.event = "call",
                                      .rpc = method,
                                      .code = CodeName(code),
                                      .reason = IsRefusal(why) ? reason : ""},
                                     level)) {
    return;
  }
  const auto microseconds = [](absl::Duration duration) {
    return absl::ToInt64Microseconds(duration);
  };
  std::string line = absl::StrCat(
      "event=call rpc=", method,
      tenant && !tenant->name.empty() ? " tenant=" : "",
      tenant ? tenant->name : "", " code=", CodeName(code), caller.LogText(),
      " request_bytes=", request_bytes,
      " response_bytes=", status.ok() ? response_bytes : 0, ShapesText(shapes),
      " wait_us=", microseconds(wait), " receive_us=", microseconds(receive),
      " decode_us=", microseconds(decode), " queue_us=", microseconds(queue));
  absl::StrAppend(&line, " compute_us=", microseconds(compute),
                  " encode_us=", microseconds(encode));
  if (!status.ok()) {
    if (!reason.empty()) absl::StrAppend(&line, " reason=", reason);
    absl::StrAppend(&line, " error=", Quoted(status.message()));
  }
  log.log(level, line);
}

}  // namespace attention::server
