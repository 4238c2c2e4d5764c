// Why a connection could not be made, in words.
#ifndef ATTENTION_INTERNAL_CONNECT_FAILURE_H_
#define ATTENTION_INTERNAL_CONNECT_FAILURE_H_

#include <string>

#include "absl/status/status.h"

namespace attention::internal {

// What the client knows of its connection.
struct Attempt {
  std::string target;
  // Of the client's options; the caller's own credentials are neither.
  bool plaintext = false;
  bool tls = false;
  // Whether the client shows a certificate of its own.
  bool has_certificate = false;
};

// Why a token cannot go to `target`, as an option's error.
std::string PlaintextToken(const std::string& target);

// `status` with the cause in place of gRPC's text, which has the names of
// OpenSSL's errors in it; `status` itself where the text tells no cause.
absl::Status ExplainConnectFailure(const absl::Status& status,
                                   const Attempt& attempt);

}  // namespace attention::internal

#endif  // ATTENTION_INTERNAL_CONNECT_FAILURE_H_
