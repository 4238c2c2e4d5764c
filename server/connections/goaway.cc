#include "server/connections/goaway.h"

#include <chrono>
#include <future>
#include <memory>

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
  // It wants a thread that gRPC has prepared for its own work, as the one is
  // that calls back for alarms.
  const auto sent = std::make_shared<std::promise<void>>();
  grpc::Alarm alarm;
  alarm.Set(std::chrono::system_clock::now(), [core, sent](bool) {
    core->SendGoaways();
    sent->set_value();
  });
  sent->get_future().wait();
}

}  // namespace attention::server
