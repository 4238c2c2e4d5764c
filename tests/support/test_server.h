// A server in the test's own process, reached over real channels.
#ifndef ATTENTION_TESTS_SUPPORT_TEST_SERVER_H_
#define ATTENTION_TESTS_SUPPORT_TEST_SERVER_H_

#include <functional>
#include <memory>
#include <string>

#include "attention/v1/attention.grpc.pb.h"
#include "grpcpp/channel.h"
#include "server/options.h"
#include "server/server.h"

namespace attention::testing {

enum class Transport { kLoopback, kInProcess };

std::string TransportName(Transport transport);

// Serves on a free port of the loopback interface while it lives.
class TestServer {
 public:
  // Two threads, small limits, no log.
  static server::Options DefaultOptions();

  // Fails the test if the server does not start.
  explicit TestServer(
      const server::Options& options = TestServer::DefaultOptions());

  server::Server& server() { return *server_; }

  // A channel of its own connection, without limits on message sizes. MUST be
  // destroyed before this.
  std::shared_ptr<grpc::Channel> Channel(Transport transport);

 private:
  std::unique_ptr<server::Server> server_;
};

// Blocks until `condition` holds. False, after long, if it never does.
bool WaitUntil(const std::function<bool()>& condition);

}  // namespace attention::testing

#endif  // ATTENTION_TESTS_SUPPORT_TEST_SERVER_H_
