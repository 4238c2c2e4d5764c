// grpc.health.v1.Health: whether the server takes calls.
#ifndef ATTENTION_SERVER_RPC_HEALTH_SERVICE_H_
#define ATTENTION_SERVER_RPC_HEALTH_SERVICE_H_

#include <cstddef>
#include <mutex>
#include <string>
#include <unordered_set>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "grpc/health/v1/health.pb.h"
#include "server/rpc/streamed_service.h"

namespace attention::server {

// Knows one service by name, and the server as a whole (""); both have the same
// status, NOT_SERVING at first. Thread-safe. No call holds a thread. MUST
// outlive every call.
class HealthService {
 public:
  // Watch streams at once; one more gets RESOURCE_EXHAUSTED. Each costs what
  // gRPC holds for an open call, and nothing more while nothing changes.
  static constexpr size_t kMaxWatchers = 10'000;

  // `service`: its full name.
  explicit HealthService(std::string service,
                         size_t max_watchers = kMaxWatchers);

  void AddTo(StreamedService& service);

  // Tells all watchers where it changes something; does not wait for them.
  void SetServing(bool serving);

 private:
  using Status = grpc::health::v1::HealthCheckResponse::ServingStatus;
  class Watcher;

  absl::StatusOr<grpc::health::v1::HealthCheckResponse> Check(
      const grpc::health::v1::HealthCheckRequest& request);
  grpc::health::v1::HealthListResponse List();
  absl::Status EnterLocked(Watcher& watcher);
  bool Knows(const std::string& service) const;
  Status status();
  Status StatusLocked() const;

  const std::string service_;
  const size_t max_watchers_;
  std::mutex mutex_;
  // Guarded by mutex_, as is what watchers hold.
  bool serving_ = false;
  std::unordered_set<Watcher*> watchers_;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_RPC_HEALTH_SERVICE_H_
