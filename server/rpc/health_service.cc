#include "server/rpc/health_service.h"

#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "server/rpc/call_end.h"
#include "server/rpc/raw_call.h"
#include "server/rpc/unary_call.h"
#include "server/status.h"

namespace attention::server {

using ::grpc::health::v1::HealthCheckRequest;
using ::grpc::health::v1::HealthCheckResponse;
using ::grpc::health::v1::HealthListRequest;
using ::grpc::health::v1::HealthListResponse;

// Tells the status as it is now, however often it changed since the last time:
// at most one message is on its way. It is told once the request has come; the
// client need not have said that it sends no more. gRPC calls back on other
// threads, never from within what is called here, so all of it is called under
// the service's lock.
class HealthService::Watcher final : public RawCall {
 public:
  Watcher(HealthService& service, const CallEnvironment& environment,
          grpc::GenericCallbackServerContext* context)
      : RawCall(environment, {"Health/Watch", Access::kHealth}, context),
        service_(service) {}
  ~Watcher() override {
    const std::lock_guard<std::mutex> lock(service_.mutex_);
    service_.watchers_.erase(this);
  }

  // With the service's lock held.
  void TellLocked() {
    if (!known_ || writing_ || failure_) return;
    const Status status = *known_ ? service_.StatusLocked()
                                  : HealthCheckResponse::SERVICE_UNKNOWN;
    if (told_ == status) return;
    HealthCheckResponse response;
    response.set_status(status);
    response_ = MessageBytes(response);
    told_ = status;
    writing_ = true;
    HandOver();
    StartWrite(&response_);
  }

 private:
  absl::Status Begin() override {
    const std::lock_guard<std::mutex> lock(service_.mutex_);
    return service_.EnterLocked(*this);
  }

  void Received(const grpc::ByteBuffer& message) override {
    if (known_) return Fail(WrongNumberOfMessages("more than one"));
    HealthCheckRequest request;
    const absl::Status status = ParseMessage(message, &request);
    if (!status.ok()) return Fail(status);
    const std::lock_guard<std::mutex> lock(service_.mutex_);
    if (failure_) return;
    known_ = service_.Knows(request.service());
    ReadNext();
    TellLocked();
  }

  void NoMore() override {
    if (!known_) Fail(WrongNumberOfMessages("none"));
  }

  void Fail(const absl::Status& status) override {
    const std::lock_guard<std::mutex> lock(service_.mutex_);
    if (!failure_) failure_ = status;
    // A write that is on its way ends first: OnWriteDone() follows.
    if (!writing_) End(*failure_);
  }

  void OnWriteDone(bool ok) override {
    HandOver();
    Guarded([&] {
      const std::lock_guard<std::mutex> lock(service_.mutex_);
      writing_ = false;
      if (!ok && !failure_) failure_ = CallCancelled();
      if (failure_) return End(*failure_);
      TellLocked();
    });
    HandOver();
  }

  void OnCancel() override {
    RawCall::OnCancel();
    Guarded([&] { Fail(CallCancelled()); });
    HandOver();
  }

  HealthService& service_;
  // Whether there is the service that is asked for; nothing before it is.
  std::optional<bool> known_;
  grpc::ByteBuffer response_;
  std::optional<Status> told_;
  bool writing_ = false;
  std::optional<absl::Status> failure_;  // there is nothing more to tell
};

HealthService::HealthService(std::string service, size_t max_watchers)
    : service_(std::move(service)), max_watchers_(max_watchers) {}

void HealthService::AddTo(StreamedService& service) {
  AddUnary<HealthCheckRequest>(
      service, "/grpc.health.v1.Health/Check",
      {"Health/Check", Access::kHealth},
      [this](const HealthCheckRequest& request) { return Check(request); });
  AddUnary<HealthListRequest>(
      service, "/grpc.health.v1.Health/List", {"Health/List", Access::kHealth},
      [this](const HealthListRequest&) -> absl::StatusOr<HealthListResponse> {
        return List();
      });
  service.Add("/grpc.health.v1.Health/Watch",
              [this, &environment = service.environment()](
                  grpc::GenericCallbackServerContext* context) {
                return StartRawCall<Watcher>(*this, environment, context);
              });
}

void HealthService::SetServing(bool serving) {
  const std::lock_guard<std::mutex> lock(mutex_);
  serving_ = serving;
  for (Watcher* watcher : watchers_) watcher->TellLocked();
}

absl::StatusOr<HealthCheckResponse> HealthService::Check(
    const HealthCheckRequest& request) {
  if (!Knows(request.service())) {
    return WithReason(Reason::kUnknownService,
                      absl::NotFoundError(absl::StrCat(
                          "service: got \"", request.service(),
                          "\", wanted \"\" or \"", service_, "\"")));
  }
  HealthCheckResponse response;
  response.set_status(status());
  return response;
}

HealthListResponse HealthService::List() {
  HealthCheckResponse whole;
  whole.set_status(status());
  HealthListResponse response;
  auto& statuses = *response.mutable_statuses();
  statuses[""] = whole;
  statuses[service_] = std::move(whole);
  return response;
}

absl::Status HealthService::EnterLocked(Watcher& watcher) {
  if (watchers_.size() >= max_watchers_) {
    return RetryLater(
        Reason::kTooManyStreams,
        absl::StrCat("the server has ", max_watchers_,
                     " health watchers, as many as it takes; use Check "
                     "instead"),
        absl::Seconds(1));
  }
  watchers_.insert(&watcher);
  return absl::OkStatus();
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
