#include "server/rpc/health_service.h"

#include <atomic>
#include <memory>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "server/rpc/refused_call.h"
#include "server/status.h"

namespace attention::server {

using ::grpc::health::v1::HealthCheckRequest;
using ::grpc::health::v1::HealthCheckResponse;
using ::grpc::health::v1::HealthListRequest;
using ::grpc::health::v1::HealthListResponse;

// Tells the status as it is now, however often it changed since the last time:
// at most one message is on its way. gRPC calls back on other threads, never
// from within StartWrite() and Finish(), so both are called under the lock.
class HealthService::Watcher final
    : public grpc::ServerWriteReactor<HealthCheckResponse> {
 public:
  Watcher(HealthService& service, bool known)
      : service_(service), known_(known) {
    HandOver();
  }

  // With the service's lock held.
  void TellLocked() {
    if (writing_ || finished_) return;
    const Status status =
        known_ ? service_.StatusLocked() : HealthCheckResponse::SERVICE_UNKNOWN;
    if (told_ == status) return;
    told_ = status;
    response_.set_status(status);
    writing_ = true;
    StartWrite(&response_);
  }

  void OnWriteDone(bool ok) override {
    HandOver();
    const std::lock_guard<std::mutex> lock(service_.mutex_);
    writing_ = false;
    if (cancelled_ || !ok) return FinishLocked();
    TellLocked();
  }

  void OnCancel() override {
    HandOver();
    const std::lock_guard<std::mutex> lock(service_.mutex_);
    cancelled_ = true;
    // A write that is on its way fails: OnWriteDone() follows.
    if (!writing_) FinishLocked();
  }

  void OnDone() override {
    HandOver();
    {
      const std::lock_guard<std::mutex> lock(service_.mutex_);
      service_.watchers_.erase(this);
    }
    delete this;
  }

 private:
  // gRPC orders what it calls, but ThreadSanitizer does not see into it.
  void HandOver() { handovers_.fetch_add(1, std::memory_order_acq_rel); }

  void FinishLocked() {
    if (finished_) return;
    finished_ = true;
    Finish(grpc::Status(grpc::StatusCode::CANCELLED, "the watch has ended"));
  }

  std::atomic<int> handovers_{0};
  HealthService& service_;
  const bool known_;
  HealthCheckResponse response_;
  std::optional<Status> told_;
  bool writing_ = false;
  bool cancelled_ = false;
  bool finished_ = false;
};

HealthService::HealthService(std::string service,
                             const Authenticator& authenticator,
                             size_t max_watchers)
    : service_(std::move(service)),
      authenticator_(authenticator),
      max_watchers_(max_watchers) {}

void HealthService::SetServing(bool serving) {
  const std::lock_guard<std::mutex> lock(mutex_);
  serving_ = serving;
  for (Watcher* watcher : watchers_) watcher->TellLocked();
}

grpc::ServerUnaryReactor* HealthService::Check(
    grpc::CallbackServerContext* context, const HealthCheckRequest* request,
    HealthCheckResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const absl::Status allowed =
      authenticator_.CheckHealth(context->client_metadata());
  if (!allowed.ok()) {
    reactor->Finish(ToGrpcStatus(allowed));
    return reactor;
  }
  if (!Knows(request->service())) {
    reactor->Finish(ToGrpcStatus(WithReason(
        Reason::kUnknownService,
        absl::NotFoundError(absl::StrCat("service: got \"", request->service(),
                                         "\", wanted \"\" or \"", service_,
                                         "\"")))));
    return reactor;
  }
  response->set_status(status());
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

grpc::ServerUnaryReactor* HealthService::List(
    grpc::CallbackServerContext* context, const HealthListRequest*,
    HealthListResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const absl::Status allowed =
      authenticator_.CheckHealth(context->client_metadata());
  if (!allowed.ok()) {
    reactor->Finish(ToGrpcStatus(allowed));
    return reactor;
  }
  HealthCheckResponse whole;
  whole.set_status(status());
  auto& statuses = *response->mutable_statuses();
  statuses[""] = whole;
  statuses[service_] = whole;
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

grpc::ServerWriteReactor<HealthCheckResponse>* HealthService::Watch(
    grpc::CallbackServerContext* context, const HealthCheckRequest* request) {
  const absl::Status allowed =
      authenticator_.CheckHealth(context->client_metadata());
  if (!allowed.ok()) {
    return new RefusedCall<grpc::ServerWriteReactor<HealthCheckResponse>>(
        ToGrpcStatus(allowed));
  }
  const bool known = Knows(request->service());
  const std::lock_guard<std::mutex> lock(mutex_);
  if (watchers_.size() >= max_watchers_) {
    return new RefusedCall<grpc::ServerWriteReactor<HealthCheckResponse>>(
        ToGrpcStatus(RetryLater(
            Reason::kTooManyStreams,
            absl::StrCat(
                "the server has ", max_watchers_,
                " health watchers, as many as it takes; use Check instead"),
            absl::Seconds(1))));
  }
  auto watcher = std::make_unique<Watcher>(*this, known);
  watchers_.insert(watcher.get());
  watcher->TellLocked();
  return watcher.release();
}

bool HealthService::Knows(const std::string& service) const {
  return service.empty() || service == service_;
}

HealthService::Status HealthService::status() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return StatusLocked();
}

HealthService::Status HealthService::StatusLocked() const {
  return serving_ ? HealthCheckResponse::SERVING
                  : HealthCheckResponse::NOT_SERVING;
}

}  // namespace attention::server
