// What the headers of a call say, whatever its method.
#ifndef ATTENTION_SERVER_RPC_CALL_HEADERS_H_
#define ATTENTION_SERVER_RPC_CALL_HEADERS_H_

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/string_ref.h"

namespace attention::server {

// As gRPC gives them: without those of its own and of HTTP/2.
using CallHeaders = std::multimap<grpc::string_ref, grpc::string_ref>;

// The header in which a client may tell the size of its message in bytes, of a
// stream's first one, so that exactly this much memory is kept for it before it
// is read.
inline constexpr char kRequestBytesHeader[] = "attention-request-bytes";

// The header in which a client may tell the largest answer that it takes, in
// bytes of the message, so that a larger one is refused before it is computed.
inline constexpr char kMaxAnswerBytesHeader[] = "attention-max-response-bytes";

// Each header takes some 250 bytes of memory beside its own, so their number is
// bounded too: a call that waits is charged for 128 KiB.
inline constexpr int64_t kMaxHeaders = 256;

// Bytes of all headers as HTTP/2 counts them, before compression.
int64_t HeaderBytes(const CallHeaders& headers);

// A refusal if there are more headers than kMaxHeaders, or larger ones than
// `max_bytes`, as Options::max_header_bytes counts.
absl::Status CheckHeaders(const CallHeaders& headers, int64_t max_bytes);

// The header by which the server's own HTTP side says that a call is of a
// client on another machine. Anybody may send it, and loses only.
inline constexpr char kFromElsewhereHeader[] = "attention-from-elsewhere";

// Whether a call's client is on this machine: on loopback or a Unix socket.
bool IsOnThisMachine(const grpc::ServerContextBase& context);

// Why others may not do what is for those.
absl::Status FromElsewhere();

// How a caller names its call, to find it in the log: the W3C header
// traceparent and x-request-id. A header that is not as it should be, or comes
// more than once, is as good as none: what is kept is short and printable.
class CallerIds {
 public:
  // Longer request ids are ignored.
  static constexpr size_t kMaxRequestIdBytes = 128;

  CallerIds() = default;
  explicit CallerIds(const CallHeaders& headers);

  // For a log line, with a space before each; empty if there are none:
  //   trace_id=0af7651916cd43dd8448eb211c80319c parent_id=b7ad6b7169203331
  //   request_id="order 17"
  std::string LogText() const;

  // The headers that are there, as they came, for the answer's trailers: a
  // client can read those of a failed call too.
  std::vector<std::pair<std::string, std::string>> Trailers() const;

 private:
  std::string traceparent_;
  std::string request_id_;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_RPC_CALL_HEADERS_H_
