// grpc.health.v1.Health: whether the server takes calls. Of our own because
// gRPC 1.51 builds its own service without descriptors, so that reflection
// cannot describe it.
#ifndef ATTENTION_SERVER_RPC_HEALTH_SERVICE_H_
#define ATTENTION_SERVER_RPC_HEALTH_SERVICE_H_

#include <cstddef>
#include <mutex>
#include <string>
#include <unordered_set>

#include "grpc/health/v1/health.grpc.pb.h"
#include "grpc/health/v1/health.pb.h"
#include "server/auth/authenticator.h"

namespace attention::server {

// Knows one service by name, and the server as a whole (""); both have the same
// status, NOT_SERVING at first. Thread-safe. No call holds a thread. MUST
// outlive every call.
class HealthService final : public grpc::health::v1::Health::CallbackService {
 public:
  // Watch streams at once; one more gets RESOURCE_EXHAUSTED. Each costs what
  // gRPC holds for an open call, and nothing more while nothing changes.
  static constexpr size_t kMaxWatchers = 10'000;

  // `service`: its full name. `authenticator` says who may ask.
  HealthService(std::string service, const Authenticator& authenticator,
                size_t max_watchers = kMaxWatchers);

  // Tells all watchers where it changes something; does not wait for them.
  void SetServing(bool serving);

  grpc::ServerUnaryReactor* Check(
      grpc::CallbackServerContext* context,
      const grpc::health::v1::HealthCheckRequest* request,
      grpc::health::v1::HealthCheckResponse* response) override;
  grpc::ServerUnaryReactor* List(
      grpc::CallbackServerContext* context,
      const grpc::health::v1::HealthListRequest* request,
      grpc::health::v1::HealthListResponse* response) override;
  grpc::ServerWriteReactor<grpc::health::v1::HealthCheckResponse>* Watch(
      grpc::CallbackServerContext* context,
      const grpc::health::v1::HealthCheckRequest* request) override;

 private:
  using Status = grpc::health::v1::HealthCheckResponse::ServingStatus;
  class Watcher;

  bool Knows(const std::string& service) const;
  Status status();
  Status StatusLocked() const;

  const std::string service_;
  const Authenticator& authenticator_;
  const size_t max_watchers_;
  std::mutex mutex_;
  // Guarded by mutex_, as is what watchers hold.
  bool serving_ = false;
  std::unordered_set<Watcher*> watchers_;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_RPC_HEALTH_SERVICE_H_
