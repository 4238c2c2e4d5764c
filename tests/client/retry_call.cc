// Makes one call of a case of tests/vectors/retries.json with the C++ client,
// for tests/polyglot/test_cpp.py:
//
//   retry_call ADDRESS CALL blocking|async TIMEOUT_MS
//
// prints the milliseconds that it took, and what it ended with: "OK", or "CODE
// REASON LENGTH", "-" for what is not there. The token is that of the variable
// ATTENTION_TOKEN.
#include <cstdlib>
#include <iostream>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "attention/client.h"
#include "attention/session.h"
#include "attention/status.h"

namespace attention {
namespace {

// Elements of any value, which no answer depends on.
TensorSpan Filled(const std::vector<int64_t>& shape) {
  static const std::vector<float> elements(64, 1);
  size_t count = 1;
  for (const int64_t length : shape) count *= static_cast<size_t>(length);
  return TensorSpan::Of<float>(std::span(elements).first(count), shape);
}

absl::Status CallSession(ClientSession& session, const std::string& call,
                         const CallOptions& options) {
  const TensorSpan token = Filled({2, 1, 16});
  if (call == "fork") return session.Fork("", options).status();
  if (call == "truncate") return session.Truncate(0, options);
  if (call == "delete") return session.Delete(options);
  if (call == "append") {
    return session.Append(0, token, token, options).status();
  }
  if (call == "step") {
    return session.Step(0, token, token, Filled({4, 1, 16}), {}, options)
        .status();
  }
  return absl::UnknownError(absl::StrCat("there is no call ", call));
}

absl::Status Call(const Client& client, const std::string& call, bool async,
                  const CallOptions& options) {
  if (call == "compute") {
    ComputeRequest request;
    request.query = request.key = request.value = Filled({1, 4});
    return (async ? client.ComputeAsync(request, options).get()
                  : client.Compute(request, options))
        .status();
  }
  if (call == "capabilities") return client.GetCapabilities(options).status();
  if (call == "health") return client.CheckHealth("", options).status();
  v1::SessionConfig config;
  config.set_kv_heads(2);
  config.set_head_size(16);
  if (call == "create") {
    return client.CreateSession(config, "chosen", options).status();
  }
  absl::StatusOr<ClientSession> session = client.CreateSession(config);
  if (!session.ok()) return session.status();
  return CallSession(*session, call, options);
}

std::string Describe(const absl::Status& status) {
  if (status.ok()) return "OK";
  const std::string reason = ErrorReason(status);
  const std::optional<int64_t> length = ConflictLength(status);
  return absl::StrCat(absl::StatusCodeToString(status.code()), " ",
                      reason.empty() ? "-" : reason, " ",
                      length ? absl::StrCat(*length) : "-");
}

}  // namespace
}  // namespace attention

int main(int argc, char** argv) {
  int timeout_ms = 0;
  if (argc != 5 || !absl::SimpleAtoi(argv[4], &timeout_ms)) {
    std::cerr << "wanted ADDRESS CALL blocking|async TIMEOUT_MS\n";
    return 1;
  }
  attention::ClientOptions options;
  const char* const token = std::getenv("ATTENTION_TOKEN");
  if (token != nullptr) options.token = token;
  const attention::Client client(argv[1], options);
  const absl::Time begin = absl::Now();
  const absl::Status status =
      attention::Call(client, argv[2], std::string(argv[3]) == "async",
                      {.timeout = absl::Milliseconds(timeout_ms)});
  std::cout << absl::ToDoubleMilliseconds(absl::Now() - begin) << " "
            << attention::Describe(status) << "\n";
}
