#include "server/rpc/call_counter.h"

#include <atomic>
#include <cstdint>
#include <new>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "grpc/grpc.h"
#include "grpc/support/time.h"
#include "grpcpp/server_context.h"
#include "server/rpc/call_headers.h"
#include "server/rpc/call_record.h"
#include "server/rpc/call_traffic.h"
#include "server/status.h"

namespace attention::server {
namespace {

using ::grpc::experimental::InterceptionHookPoints;
using ::grpc::experimental::Interceptor;
using ::grpc::experimental::InterceptorBatchMethods;

// The method's name in logs and metrics, one of a fixed set; empty for those
// that are not looked at here.
absl::string_view NameOf(absl::string_view method) {
  constexpr std::pair<absl::string_view, absl::string_view> kNames[] = {
      {"/attention.v1.AttentionService/ComputeAttention", ""},
      {"/attention.v1.AttentionService/StreamAttention", ""},
      {"/attention.v1.AttentionService/GetCapabilities", "GetCapabilities"},
      {"/grpc.health.v1.Health/Check", "Health/Check"},
      {"/grpc.health.v1.Health/List", "Health/List"},
      {"/grpc.health.v1.Health/Watch", "Health/Watch"},
      {"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
       "Reflection"},
      {"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
       "Reflection"}};
  for (const auto& [full_name, name] : kNames) {
    if (method == full_name) return name;
  }
  return "other";
}

constexpr absl::string_view kWatch = "Health/Watch";
constexpr absl::string_view kReflection = "Reflection";

// What a status of gRPC's own handlers means. `method` is the path that the
// client asked for, `cancelled` whether it has gone.
absl::Status Explained(absl::string_view name, absl::string_view method,
                       const grpc::Status& status, bool cancelled) {
  const auto code = static_cast<absl::StatusCode>(status.error_code());
  const std::string& text = status.error_message();
  if (status.ok()) return absl::OkStatus();
  if (cancelled) {
    return absl::CancelledError("the call was cancelled");
  }
  if (code == absl::StatusCode::kUnimplemented && name == "other") {
    constexpr size_t kMostShown = 100;
    return WithReason(Reason::kUnknownMethod,
                      absl::UnimplementedError(absl::StrCat(
                          "there is no method ",
                          absl::CHexEscape(method.substr(0, kMostShown)))));
  }
  // So gRPC ends calls of known methods whose message is missing or cannot be
  // read.
  if (code == absl::StatusCode::kUnimplemented ||
      (code == absl::StatusCode::kInternal &&
       text == "could not parse request")) {
    return absl::InvalidArgumentError(
        absl::StrCat("wanted one valid request message of ", name));
  }
  return absl::Status(code, text);
}

class CallCounter final : public Interceptor {
 public:
  CallCounter(absl::string_view name, grpc::experimental::ServerRpcInfo& info,
              int64_t max_header_bytes, const Authenticator& authenticator,
              ConnectionTable& connections, spdlog::logger& log,
              LogLimiter& log_limiter, Metrics& metrics)
      : record_(name),
        info_(info),
        max_header_bytes_(max_header_bytes),
        authenticator_(authenticator),
        connections_(connections),
        log_(log),
        log_limiter_(log_limiter),
        metrics_(metrics) {
    HandOver();
  }
  ~CallCounter() override { HandOver(); }

  void Intercept(InterceptorBatchMethods* methods) override {
    HandOver();
    try {
      if (methods->QueryInterceptionHookPoint(
              InterceptionHookPoints::POST_RECV_INITIAL_METADATA)) {
        Begin(*methods->GetRecvInitialMetadata());
      }
      // Sent once, whoever ends the call.
      if (methods->QueryInterceptionHookPoint(
              InterceptionHookPoints::PRE_SEND_STATUS)) {
        End(*methods);
      }
      if (methods->QueryInterceptionHookPoint(
              InterceptionHookPoints::POST_RECV_CLOSE)) {
        EndTraffic();
      }
    } catch (const std::bad_alloc&) {  // NOLINT(bugprone-empty-catch)
      // The call matters more than what is told of it.
    }
    HandOver();
    methods->Proceed();
  }

 private:
  // Whether the client has gone. Where gRPC reads the message itself it knows
  // by that before it tells the context.
  bool Cancelled() const {
    grpc::ServerContextBase& context = *info_.server_context();
    return context.IsCancelled() ||
           grpc_call_failed_before_recv_message(context.c_call()) != 0;
  }

  void EndTraffic() {
    if (!traffic_) return;
    const gpr_timespec deadline = info_.server_context()->raw_deadline();
    const bool late = gpr_time_cmp(gpr_now(deadline.clock_type), deadline) >= 0;
    traffic_->End({.cancelled = Cancelled() && !late});
  }

  // gRPC orders what it calls, but ThreadSanitizer does not see into it.
  void HandOver() { handovers_.fetch_add(1, std::memory_order_acq_rel); }

  void Begin(const CallHeaders& headers) {
    traffic_.emplace(connections_, info_.server_context()->peer(),
                     HeaderBytes(headers));
    record_.caller = CallerIds(headers);
    if (auto tenant = authenticator_.Check(headers); tenant.ok()) {
      record_.tenant = *std::move(tenant);
    }
    headers_ = CheckHeaders(headers, max_header_bytes_);
    // It would hold them for as long as it likes.
    if (!headers_.ok() &&
        (record_.method == kWatch || record_.method == kReflection)) {
      info_.server_context()->TryCancel();
    }
  }

  void End(InterceptorBatchMethods& methods) {
    const grpc::Status sent = methods.GetSendStatus();
    // Details are those of our own handlers, which have said it all.
    const bool ours = headers_.ok() && !sent.error_details().empty();
    const absl::Status status =
        !headers_.ok() ? headers_
        : ours         ? FromGrpcStatus(sent)
               : Explained(record_.method, info_.method(), sent, Cancelled());
    record_.End(status, log_, log_limiter_, metrics_);
    if (!status.ok() && !ours) methods.ModifySendStatus(ToGrpcStatus(status));
    for (const auto& trailer : record_.caller.Trailers()) {
      methods.GetSendTrailingMetadata()->insert(trailer);
    }
  }

  std::atomic<int> handovers_{0};
  CallRecord record_;
  absl::Status headers_;
  grpc::experimental::ServerRpcInfo& info_;
  const int64_t max_header_bytes_;
  const Authenticator& authenticator_;
  std::optional<CallTraffic> traffic_;
  ConnectionTable& connections_;
  spdlog::logger& log_;
  LogLimiter& log_limiter_;
  Metrics& metrics_;
};

}  // namespace

Interceptor* CallCounterFactory::CreateServerInterceptor(
    grpc::experimental::ServerRpcInfo* info) {
  const absl::string_view name = NameOf(info->method());
  if (name.empty()) return nullptr;
  return new (std::nothrow)
      CallCounter(name, *info, max_header_bytes_, authenticator_, connections_,
                  log_, log_limiter_, metrics_);
}

}  // namespace attention::server
