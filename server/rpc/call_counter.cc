#include "server/rpc/call_counter.h"

#include <atomic>
#include <new>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "server/rpc/call_record.h"

namespace attention::server {
namespace {

using ::grpc::experimental::InterceptionHookPoints;
using ::grpc::experimental::Interceptor;
using ::grpc::experimental::InterceptorBatchMethods;

// The method's name in logs and metrics, one of a fixed set; empty for those
// that are not counted here.
absl::string_view NameOf(absl::string_view method) {
  constexpr std::pair<absl::string_view, absl::string_view> kNames[] = {
      {"/attention.v1.AttentionService/ComputeAttention", ""},
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

absl::Status ToAbsl(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                      status.error_message());
}

class CallCounter final : public Interceptor {
 public:
  CallCounter(absl::string_view name, spdlog::logger& log,
              LogLimiter& log_limiter, Metrics& metrics)
      : record_(name), log_(log), log_limiter_(log_limiter), metrics_(metrics) {
    HandOver();
  }
  ~CallCounter() override { HandOver(); }

  void Intercept(InterceptorBatchMethods* methods) override {
    HandOver();
    // Sent once, whoever ends the call.
    if (methods->QueryInterceptionHookPoint(
            InterceptionHookPoints::PRE_SEND_STATUS)) {
      Count(methods->GetSendStatus());
    }
    HandOver();
    methods->Proceed();
  }

 private:
  // gRPC orders what it calls, but ThreadSanitizer does not see into it.
  void HandOver() { handovers_.fetch_add(1, std::memory_order_acq_rel); }

  void Count(const grpc::Status& status) {
    try {
      record_.End(ToAbsl(status), log_, log_limiter_, metrics_);
    } catch (const std::bad_alloc&) {  // NOLINT(bugprone-empty-catch)
      // The call matters more than its count.
    }
  }

  std::atomic<int> handovers_{0};
  const CallRecord record_;
  spdlog::logger& log_;
  LogLimiter& log_limiter_;
  Metrics& metrics_;
};

}  // namespace

Interceptor* CallCounterFactory::CreateServerInterceptor(
    grpc::experimental::ServerRpcInfo* info) {
  const absl::string_view name = NameOf(info->method());
  if (name.empty()) return nullptr;
  return new (std::nothrow) CallCounter(name, log_, log_limiter_, metrics_);
}

}  // namespace attention::server
