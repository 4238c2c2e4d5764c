#include "server/rpc/call_end.h"

#include <new>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "server/status.h"

namespace attention::server {

grpc::Status EndCall(const absl::Status& status, const CallRecord& record,
                     const CallEnvironment& environment,
                     grpc::CallbackServerContext& context) {
  try {
    grpc::Status result = ToGrpcStatus(status);
    // gRPC's clients heed this before they try again, not RetryInfo.
    if (const auto delay = RetryDelay(status)) {
      context.AddTrailingMetadata(
          "grpc-retry-pushback-ms",
          absl::StrCat(absl::ToInt64Milliseconds(*delay)));
    }
    for (const auto& [name, value] : record.caller.Trailers()) {
      context.AddTrailingMetadata(name, value);
    }
    record.End(status, environment.log, environment.log_limiter,
               environment.metrics);
    return result;
  } catch (const std::bad_alloc&) {
    return grpc::Status(static_cast<grpc::StatusCode>(status.code()), "");
  }
}

absl::Status WrongNumberOfMessages(absl::string_view got) {
  return absl::InvalidArgumentError(
      absl::StrCat("got ", got, ", wanted one request message"));
}

}  // namespace attention::server
