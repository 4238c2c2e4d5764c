// Who pays for a call.
#ifndef ATTENTION_SERVER_AUTH_TENANT_H_
#define ATTENTION_SERVER_AUTH_TENANT_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>

namespace attention::server {

// How a call ended: with an answer, refused by the server, or else.
enum class CallResult : uint8_t { kOk, kRefused, kError };
inline constexpr size_t kCallResults = 3;

// What a tenant has had since it was first configured. Thread-safe.
struct TenantUse {
  std::array<std::atomic<int64_t>, kCallResults> calls{};
  std::atomic<double> used_seconds{0};  // of threads, computing
};

// What may be said of a tenant.
struct TenantSettings {
  // 1 to 64 letters, digits, '.', '_' and '-': it stands in logs and labels.
  std::string name;
  // Its part of a busy server in proportion to the others', [0.001, 1000]; 0:
  // it may not compute, only ask how the server is.
  double weight = 1;
  // Most bytes that its calls may make the server hold at once.
  int64_t max_bytes = std::numeric_limits<int64_t>::max();
  // Most multiply-adds per second, on the average.
  double max_work = std::numeric_limits<double>::infinity();
  // Most bytes that its sessions may hold, and most sessions.
  int64_t max_session_bytes = std::numeric_limits<int64_t>::max();
  int64_t max_sessions = std::numeric_limits<int64_t>::max();

  bool operator==(const TenantSettings&) const = default;
};

struct Tenant : TenantSettings {
  // Its own while the process lives, also after its settings have changed.
  int id = 0;
  std::shared_ptr<TenantUse> use = std::make_shared<TenantUse>();

  bool may_compute() const { return weight > 0; }
};

// Calls keep the settings they came in with.
using TenantPtr = std::shared_ptr<const Tenant>;

}  // namespace attention::server

#endif  // ATTENTION_SERVER_AUTH_TENANT_H_
