// Statuses of the project as statuses of gRPC: the only place that converts.
#ifndef ATTENTION_SERVER_STATUS_H_
#define ATTENTION_SERVER_STATUS_H_

#include <cstddef>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "grpcpp/support/status.h"

namespace attention::server {

// Longer messages are cut: they travel in headers, which clients limit to 8
// KiB.
inline constexpr size_t kMaxStatusMessageBytes = 1024;

// A ResourceExhausted error that says when to try again.
absl::Status RetryLater(absl::string_view message, absl::Duration delay);

// The same code and text, with google.rpc details: BadRequest where
// ErrorField() names a field, RetryInfo where RetryLater() made the status.
grpc::Status ToGrpcStatus(const absl::Status& status);

// "INVALID_ARGUMENT": a code's name as in gRPC's documentation.
absl::string_view CodeName(grpc::StatusCode code);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_STATUS_H_
