#include "attention/internal/connect_failure.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace attention::internal {
namespace {

// gRPC tells why it has no connection in words alone. Those below are of 1.51,
// with OpenSSL's, and of later versions, with BoringSSL's.

// What stands between `before` and `after`, or the end; empty if not there.
absl::string_view Between(absl::string_view text, absl::string_view before,
                          absl::string_view after) {
  const size_t begin = text.find(before);
  if (begin == absl::string_view::npos) return "";
  text.remove_prefix(begin + before.size());
  return text.substr(0, text.find(after));
}

std::string Cause(absl::string_view text, const Attempt& attempt) {
  if (const absl::string_view reason =
          Between(text, "CERTIFICATE_VERIFY_FAILED: ", ";");
      !reason.empty()) {
    return absl::StrCat("the server's certificate was refused: ", reason);
  }
  // gRPC 1.51 keeps the reason to itself.
  if (absl::StrContains(text, "certificate verify failed")) {
    return "the server's certificate was refused: it is out of date, or signed "
           "by no authority that the client trusts (tls_ca)";
  }
  if (const absl::string_view name =
          Between(text, "Peer name ", " is not in peer certificate");
      !name.empty()) {
    return absl::StrCat("the server's certificate is not for ", name);
  }
  if (absl::StrContains(text, "wrong version number") ||
      absl::StrContains(text, "WRONG_VERSION_NUMBER")) {
    return "the server does not speak TLS on this port";
  }
  if (attempt.has_certificate &&
      absl::StrContains(text, "empty address list")) {
    return "gRPC cannot use the client's certificate and key (tls_cert, "
           "tls_key): they are damaged, or do not belong together";
  }
  // The server has accepted the connection, and ended it before HTTP/2 began.
  // Both ends know why; only the server says so, in its log.
  if (!absl::StrContains(text, "last error: ") ||
      !(absl::StrContains(text, "Socket closed") ||
        absl::StrContains(text, "onnection reset"))) {
    return "";
  }
  if (attempt.plaintext) {
    return "the server closed the connection at once: it may want TLS (tls, "
           "tls_ca)";
  }
  if (!attempt.tls) return "";
  return attempt.has_certificate
             ? "the server closed the connection after the TLS handshake: it "
               "may not trust the client's certificate (tls_cert)"
             : "the server closed the connection after the TLS handshake: it "
               "may want a certificate of the client (tls_cert, tls_key)";
}

}  // namespace

std::string PlaintextToken(const std::string& target) {
  return absl::StrCat("allow_plaintext_token: the token would travel to ",
                      target,
                      " in plain text, beyond loopback and Unix sockets: use "
                      "TLS, or set this option");
}

absl::Status ExplainConnectFailure(const absl::Status& status,
                                   const Attempt& attempt) {
  const absl::string_view text = status.message();
  if (absl::StrContains(text, "neither UDS or TCP loopback") ||
      (absl::IsUnauthenticated(status) &&
       absl::StrContains(text, "sufficient security level"))) {
    return absl::FailedPreconditionError(PlaintextToken(attempt.target));
  }
  if (!absl::IsUnavailable(status)) return status;
  const std::string cause = Cause(text, attempt);
  return cause.empty() ? status : absl::UnavailableError(cause);
}

}  // namespace attention::internal
