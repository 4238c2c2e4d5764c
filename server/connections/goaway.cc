#include "server/connections/goaway.h"

#include <chrono>
#include <condition_variable>
#include <mutex>

#include "grpcpp/alarm.h"

// gRPC has no public function for this. Shutdown() sends GOAWAY too, but ends
// every call that was on its way with CANCELLED, which clients do not try
// again; docs/decisions/0011-drain.md has what else was tried. Declared here is
// the function that gRPC tests its clients with: a gRPC that lacks it does not
// link.
namespace grpc_core {
class Server {
 public:
  void SendGoaways();
};
}  // namespace grpc_core

namespace attention::server {

void SendGoaways(grpc::Server& server) {
  // gRPC's own conversion between the two is a cast as well.
  auto* core = reinterpret_cast<grpc_core::Server*>(server.c_server());
  struct {
    std::mutex mutex;
    std::condition_variable changed;
    bool sent = false;  // guarded by mutex
  } state;
  // It wants a thread that gRPC has prepared for its own work, as the one is
  // that calls back for alarms.
  grpc::Alarm alarm;
  std::unique_lock<std::mutex> lock(state.mutex);
  alarm.Set(std::chrono::system_clock::now(), [core, &state](bool) {
    // Waits until all that was written before is seen.
    const std::lock_guard<std::mutex> callback_lock(state.mutex);
    core->SendGoaways();
    state.sent = true;
    state.changed.notify_one();
  });
  state.changed.wait(lock, [&state] { return state.sent; });
}

}  // namespace attention::server
