#include "server/http/json_memory.h"

#include "absl/time/time.h"
#include "server/status.h"

namespace attention::server {
namespace {

bool Hold(int64_t bytes, int64_t factor, HttpExchange& exchange) {
  return bytes <= kSmallJson || exchange.Hold(factor * bytes);
}

int64_t BytesOf(const grpc::ByteBuffer& buffer) {
  return static_cast<int64_t>(buffer.Length());
}

}  // namespace

bool HoldToRead(absl::string_view body, HttpExchange& exchange) {
  return Hold(static_cast<int64_t>(body.size()), kReadFactor, exchange);
}

// Only where it could be written beside all that wait, so that these do not
// take the room of the one whose turn it is.
bool HoldToWait(const grpc::ByteBuffer& answer, HttpExchange& exchange) {
  return HoldToWrite(answer, exchange) && Hold(BytesOf(answer), 1, exchange);
}

bool HoldToWrite(const grpc::ByteBuffer& answer, HttpExchange& exchange) {
  return Hold(BytesOf(answer), kAnswerFactor, exchange);
}

absl::Status TooMuchHeld() {
  return WithRetryDelay(
      absl::Seconds(1),
      absl::UnavailableError(
          "requests over HTTP hold too much memory: try again"));
}

}  // namespace attention::server
