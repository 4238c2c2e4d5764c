#include "server/options.h"

#include <sys/un.h>

#include <algorithm>
#include <set>
#include <thread>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "server/connections/limits.h"

namespace attention::server {
namespace {

constexpr int64_t kMaxThreads = 1024;
constexpr int64_t kMinMessage = 1024;
// Messages are below 2^31 bytes, with a margin for what stands around tensors.
constexpr int64_t kMaxMessage = (int64_t{1} << 31) - 1 - (int64_t{1} << 20);
constexpr int64_t kMaxMemory = int64_t{1} << 50;
constexpr int64_t kMaxSessions = int64_t{1} << 20;
constexpr int64_t kMinSharedMemory = int64_t{1} << 20;
constexpr int64_t kMaxHeadSize = int64_t{1} << 20;
constexpr int64_t kMaxHeads = int64_t{1} << 20;
// With one number more the lists of a ragged batch have 2^20.
constexpr int64_t kMaxBatch = (int64_t{1} << 20) - 1;
constexpr int64_t kMaxBatchHeads = int64_t{1} << 24;
constexpr int64_t kMaxWork = int64_t{1} << 62;
constexpr int64_t kMinLogBuffer = int64_t{64} << 10;
constexpr int64_t kMaxLogBuffer = int64_t{1} << 30;
constexpr int64_t kMaxLogLines = 1'000'000;
constexpr absl::Duration kMaxGrace = absl::Hours(1);
constexpr absl::Duration kDay = absl::Hours(24);
constexpr int64_t kMaxRate = int64_t{1} << 40;
constexpr int64_t kMaxHttpConnections = 10'000;
constexpr absl::Duration kMinHttpTimeout = absl::Milliseconds(100);
constexpr absl::Duration kMaxHttpTimeout = absl::Hours(1);
constexpr int64_t kDefaultConnections = 10'000;
constexpr absl::Duration kMaxHandshake = absl::Hours(1);
// gRPC's own default, which its clients rely on, and 16 times ours.
constexpr int64_t kMinHeaders = int64_t{8} << 10;
constexpr int64_t kMaxHeaders = int64_t{1} << 20;
// In milliseconds it is an int.
constexpr absl::Duration kMaxConnectionTime = absl::Hours(24 * 24);

class Validator {
 public:
  // Whether it is in the range.
  bool CheckRange(absl::string_view flag, int64_t got, int64_t least,
                  int64_t most) {
    if (got >= least && got <= most) return true;
    Add(flag, absl::StrCat("got ", got, ", wanted ", least, " to ", most));
    return false;
  }

  void CheckDuration(absl::string_view flag, absl::Duration got,
                     absl::Duration least, absl::Duration most,
                     absl::string_view or_else = "") {
    if (got >= least && got <= most) return;
    Add(flag, absl::StrCat("got ", absl::FormatDuration(got), ", wanted ",
                           absl::FormatDuration(least), " to ",
                           absl::FormatDuration(most), or_else));
  }

  void Add(absl::string_view flag, absl::string_view text) {
    errors_.push_back(absl::StrCat("--", flag, ": ", text));
  }

  std::vector<std::string> errors() && { return std::move(errors_); }

 private:
  std::vector<std::string> errors_;
};

// What is wrong with an address; empty if nothing is.
std::string AddressError(absl::string_view address) {
  absl::string_view rest = address;
  if (absl::ConsumePrefix(&rest, "unix:") ||
      absl::ConsumePrefix(&rest, "unix-abstract:")) {
    constexpr size_t kMaxPath = sizeof(sockaddr_un{}.sun_path) - 1;
    if (rest.empty()) return "a path";
    if (rest.size() > kMaxPath) {
      return absl::StrCat("a path of at most ", kMaxPath, " bytes");
    }
    return "";
  }
  if (absl::StrContains(rest, "://")) return "host:port without a scheme";
  const size_t colon = rest.rfind(':');
  int port;
  if (colon == absl::string_view::npos || colon == 0 ||
      !absl::SimpleAtoi(rest.substr(colon + 1), &port) || port < 0 ||
      port > 65535) {
    return "host:port with a port of 0 to 65535, unix:path or "
           "unix-abstract:name";
  }
  const absl::string_view host = rest.substr(0, colon);
  const bool bracketed =
      absl::StartsWith(host, "[") && absl::EndsWith(host, "]");
  if (absl::StrContains(host, ":") && !bracketed) {
    return "an IPv6 address in brackets";
  }
  return "";
}

void CheckListen(const Options& options, Validator& validator) {
  if (options.listen.empty()) {
    validator.Add("listen", "got none, wanted at least one address");
  }
  std::set<std::string> seen;
  for (const std::string& address : options.listen) {
    const std::string wanted = AddressError(address);
    if (!wanted.empty()) {
      validator.Add("listen",
                    absl::StrCat("got \"", address, "\", wanted ", wanted));
    } else if (!seen.insert(address).second && !absl::EndsWith(address, ":0")) {
      validator.Add("listen", absl::StrCat("got \"", address, "\" twice"));
    }
  }
}

// "https://a.example:8443", as browsers send it.
bool IsOrigin(absl::string_view text) {
  if (text == "*") return true;
  if (!absl::ConsumePrefix(&text, "http://") &&
      !absl::ConsumePrefix(&text, "https://")) {
    return false;
  }
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
    return absl::ascii_isalnum(c) || absl::StrContains(".-:[]_", c);
  });
}

void CheckHttp(const Options& options, Validator& validator) {
  const std::string& address = options.http_listen;
  const bool good =
      address.empty() || (!absl::StartsWith(address, "unix:") &&
                          !absl::StartsWith(address, "unix-abstract:") &&
                          AddressError(address).empty());
  if (!good) {
    validator.Add("http-listen",
                  absl::StrCat("got \"", address,
                               "\", wanted host:port with a port of 0 to "
                               "65535; an IPv6 address in brackets"));
  }
  const int64_t connections = options.http_max_connections;
  if (validator.CheckRange("http-max-connections", connections, 1,
                           kMaxHttpConnections) &&
      !address.empty() && connections > MostHttpConnections()) {
    validator.Add(
        "http-max-connections",
        absl::StrCat("got ", connections, ", wanted 1 to ",
                     MostHttpConnections(), " (of ", DescriptorLimit(),
                     " descriptors, see ulimit -n)"));
  }
  if (options.http_timeout < kMinHttpTimeout ||
      options.http_timeout > kMaxHttpTimeout) {
    validator.Add(
        "http-timeout",
        absl::StrCat("got ", absl::FormatDuration(options.http_timeout),
                     ", wanted ", absl::FormatDuration(kMinHttpTimeout), " to ",
                     absl::FormatDuration(kMaxHttpTimeout)));
  }
  validator.CheckRange("http-max-body-bytes", options.http_max_body_bytes,
                       1 << 10, 1 << 30);
  for (const std::string& origin : options.http_allow_origins) {
    if (IsOrigin(origin)) continue;
    validator.Add("http-allow-origin",
                  absl::StrCat("got \"", origin,
                               "\", wanted an origin such as "
                               "https://a.example:8443, or *"));
  }
}

void CheckSessions(const Options& options, Validator& validator) {
  validator.CheckRange("max-session-bytes", options.max_session_bytes, 0,
                       kMaxMemory);
  validator.CheckRange("max-sessions", options.max_sessions, 0, kMaxSessions);
  validator.CheckDuration("max-session-lease", options.max_session_lease,
                          absl::Seconds(1), absl::Hours(24 * 24));
}

// A client has to find the same file, wherever it runs.
void CheckSharedMemory(const Options& options, Validator& validator) {
  const std::string& address = options.shared_memory;
  validator.CheckRange("max-shared-bytes", options.max_shared_bytes,
                       kMinSharedMemory, kMaxMemory);
  if (address.empty()) return;
  const std::string wanted =
      absl::StartsWith(address, "unix:/") && !absl::StrContains(address, "%")
          ? AddressError(address)
          : "unix: and an absolute path without %";
  if (!wanted.empty()) {
    validator.Add("shared-memory",
                  absl::StrCat("got \"", address, "\", wanted ", wanted));
  } else if (std::find(options.listen.begin(), options.listen.end(), address) !=
             options.listen.end()) {
    validator.Add(
        "shared-memory",
        absl::StrCat("got \"", address, "\", wanted another than --listen's"));
  }
}

void CheckMemory(const Options& options, Validator& validator) {
  const bool request_good = validator.CheckRange(
      "max-request-bytes", options.max_request_bytes, kMinMessage, kMaxMessage);
  const bool response_good =
      validator.CheckRange("max-response-bytes", options.max_response_bytes,
                           kMinMessage, kMaxMessage);
  validator.CheckRange("max-chunk-bytes", options.max_chunk_bytes, kMinMessage,
                       kMaxMessage);
  if (!request_good || !response_good) return;
  const int64_t one_call =
      2 * options.max_request_bytes + options.max_response_bytes;
  if (options.max_inflight_bytes >= one_call &&
      options.max_inflight_bytes <= kMaxMemory) {
    return;
  }
  validator.Add(
      "max-inflight-bytes",
      absl::StrCat("got ", options.max_inflight_bytes, ", wanted ", one_call,
                   " (twice max-request-bytes and max-response-bytes "
                   "together) to ",
                   kMaxMemory));
}

void CheckTls(const Options& options, Validator& validator) {
  if (options.tls_cert.empty() && !options.tls_key.empty()) {
    validator.Add("tls-key", "got it alone, wanted --tls-cert beside it");
  }
  if (!options.tls_cert.empty() && options.tls_key.empty()) {
    validator.Add("tls-cert", "got it alone, wanted --tls-key beside it");
  }
  if (!options.tls_client_ca.empty() && options.tls_cert.empty()) {
    validator.Add("tls-client-ca",
                  "got it alone, wanted --tls-cert and --tls-key beside it");
  }
}

void CheckShapes(const Options& options, Validator& validator) {
  validator.CheckRange("max-head-size", options.max_head_size, 1, kMaxHeadSize);
  validator.CheckRange("max-heads", options.max_heads, 1, kMaxHeads);
  validator.CheckRange("max-batch", options.max_batch, 1, kMaxBatch);
  validator.CheckRange("max-batch-heads", options.max_batch_heads, 1,
                       kMaxBatchHeads);
  validator.CheckRange("max-work", options.max_work, 1, kMaxWork);
}

void CheckConnections(const Options& options, Validator& validator) {
  // Where HTTP asks for too many, CheckHttp() says so.
  const bool beside_http =
      !options.http_listen.empty() &&
      options.http_max_connections <= MostHttpConnections();
  const int64_t http = beside_http ? options.http_max_connections : 0;
  const int64_t most = MostConnections(http);
  if (options.max_connections < 1 || options.max_connections > most) {
    validator.Add(
        "max-connections",
        absl::StrCat(
            "got ", options.max_connections, ", wanted 1 to ", most, " (of ",
            DescriptorLimit(), " descriptors, see ulimit -n",
            http > HttpReserve(DescriptorLimit())
                ? absl::StrCat(", and beside --http-max-connections=", http)
                : "",
            ")"));
  }
  constexpr absl::Duration kLeast = absl::Milliseconds(1);
  validator.CheckDuration("handshake-timeout", options.handshake_timeout,
                          kLeast, kMaxHandshake);
  const std::pair<absl::string_view, absl::Duration> times[] = {
      {"max-connection-idle", options.max_connection_idle},
      {"max-connection-age", options.max_connection_age},
      {"max-connection-age-grace", options.max_connection_age_grace}};
  for (const auto& [flag, time] : times) {
    if (time == absl::InfiniteDuration()) continue;
    validator.CheckDuration(flag, time, kLeast, kMaxConnectionTime, " or inf");
  }
  validator.CheckRange("max-header-bytes", options.max_header_bytes,
                       kMinHeaders, kMaxHeaders);
  validator.CheckDuration("min-ping-interval", options.min_ping_interval,
                          absl::ZeroDuration(), absl::Hours(1));
}

}  // namespace

AttentionLimits Options::kernel_limits() const {
  return {.head_size = max_head_size,
          .heads = max_heads,
          .batch = max_batch,
          .batch_heads = max_batch_heads,
          .work = static_cast<double>(max_work)};
}

int64_t Options::DefaultHttpConnections() {
  return HttpReserve(DescriptorLimit());
}

int64_t Options::DefaultConnections() {
  return std::min(kDefaultConnections, MostConnections());
}

int64_t Options::DefaultThreads() {
  return std::clamp<int64_t>(std::thread::hardware_concurrency(), 1,
                             kMaxThreads);
}

std::vector<std::string> Validate(const Options& options) {
  Validator validator;
  CheckListen(options, validator);
  CheckHttp(options, validator);
  CheckSessions(options, validator);
  CheckSharedMemory(options, validator);
  CheckTls(options, validator);
  validator.CheckRange("threads", options.threads, 1, kMaxThreads);
  CheckMemory(options, validator);
  validator.CheckRange("max-pooled-bytes", options.max_pooled_bytes, 0,
                       kMaxMemory);
  CheckShapes(options, validator);
  CheckConnections(options, validator);
  validator.CheckDuration("max-queue", options.max_queue, absl::ZeroDuration(),
                          kDay);
  validator.CheckDuration("default-deadline", options.default_deadline,
                          absl::Seconds(1), kDay);
  validator.CheckRange("min-upload-rate", options.min_upload_rate, 1, kMaxRate);
  validator.CheckRange("min-answer-rate", options.min_answer_rate, 1, kMaxRate);
  validator.CheckDuration("stall-grace", options.stall_grace,
                          absl::Milliseconds(100), absl::Hours(1));
  validator.CheckDuration("drain-delay", options.drain_delay,
                          absl::ZeroDuration(), kMaxGrace);
  validator.CheckDuration("shutdown-grace", options.shutdown_grace,
                          absl::ZeroDuration(), kMaxGrace);
  constexpr absl::string_view kLevels[] = {"trace",   "debug", "info",
                                           "warning", "error", "off"};
  if (std::find(std::begin(kLevels), std::end(kLevels), options.log_level) ==
      std::end(kLevels)) {
    validator.Add("log-level",
                  absl::StrCat("got \"", options.log_level,
                               "\", wanted trace, debug, info, warning, error "
                               "or off"));
  }
  validator.CheckRange("log-buffer-bytes", options.log_buffer_bytes,
                       kMinLogBuffer, kMaxLogBuffer);
  validator.CheckRange("log-lines-per-second", options.log_lines_per_second, 0,
                       kMaxLogLines);
  return std::move(validator).errors();
}

}  // namespace attention::server
