// What the server serves over HTTP.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "absl/time/time.h"
#include "attention/v1/attention.grpc.pb.h"
#include "tests/support/http_client.h"
#include "tests/support/long_call.h"
#include "tests/support/messages.h"
#include "tests/support/test_server.h"

namespace attention::testing {
namespace {

using ::testing::HasSubstr;

server::Options WithHttp() {
  server::Options options = TestServer::DefaultOptions();
  options.http_listen = "127.0.0.1:0";
  // No test waits for it.
  options.http_timeout = absl::Hours(1);
  return options;
}

grpc::Status Compute(TestServer& server,
                     const v1::ComputeAttentionRequest& request) {
  grpc::ClientContext context;
  v1::ComputeAttentionResponse response;
  return v1::AttentionService::NewStub(server.Channel(Transport::kLoopback))
      ->ComputeAttention(&context, request, &response);
}

TEST(HttpEndpointsTest, NoneUnlessAskedFor) {
  TestServer server;
  EXPECT_EQ(server.server().http_address(), "");
}

TEST(HttpEndpointsTest, LiveAndReady) {
  TestServer server(WithHttp());
  HttpClient client(server.server().http_address());
  for (const char* path : {"/livez", "/readyz"}) {
    const HttpClient::Response response = client.Get(path);
    EXPECT_EQ(response.status, 200);
    EXPECT_EQ(response.body, "ok\n");
  }
}

TEST(HttpEndpointsTest, NotReadyWhileDraining) {
  TestServer server(WithHttp());
  HttpClient client(server.server().http_address());
  LongCall running(server.Channel(Transport::kLoopback));
  ASSERT_TRUE(WaitUntil([&] { return server.server().running_calls() == 1; }));
  server.server().Shutdown(absl::InfiniteFuture());
  const HttpClient::Response ready = client.Get("/readyz");
  EXPECT_EQ(ready.status, 503);
  EXPECT_EQ(ready.body, "not serving\n");
  EXPECT_EQ(client.Get("/livez").status, 200);
  const std::string metrics = client.Get("/metrics").body;
  EXPECT_THAT(metrics, HasSubstr("\nattention_draining 1\n"));
  EXPECT_THAT(metrics, HasSubstr("\nattention_running_calls 1\n"));
  server.server().Shutdown(absl::InfinitePast());
  server.server().Wait();
  EXPECT_EQ(client.ReadToEnd(), 0);
}

TEST(HttpEndpointsTest, MetricsCountCalls) {
  TestServer server(WithHttp());
  HttpClient client(server.server().http_address());
  EXPECT_TRUE(Compute(server, SmallRequest()).ok());
  v1::ComputeAttentionRequest bad = SmallRequest();
  bad.clear_key();
  EXPECT_FALSE(Compute(server, bad).ok());
  const HttpClient::Response response = client.Get("/metrics");
  EXPECT_EQ(response.status, 200);
  EXPECT_THAT(response.headers,
              HasSubstr("Content-Type: text/plain; version=0.0.4"));
  for (const char* line :
       {"attention_calls_total{code=\"OK\",method=\"ComputeAttention\"} 1",
        "attention_calls_total{code=\"INVALID_ARGUMENT\",method="
        "\"ComputeAttention\"} 1",
        "attention_call_phase_duration_seconds_count{phase=\"compute\"} 1",
        "attention_memory_limit_bytes 536870912", "attention_draining 0",
        "attention_compute_threads 2"}) {
    EXPECT_THAT(response.body, HasSubstr(std::string("\n") + line + "\n"));
  }
}

TEST(HttpEndpointsTest, AnAddressInUseIsTold) {
  TestServer first(WithHttp());
  server::Options options = WithHttp();
  options.http_listen = first.server().http_address();
  const auto second = server::Server::Start(options);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(second.status().message(), "--http-listen: cannot listen on \"" +
                                           options.http_listen +
                                           "\": Address already in use");
}

}  // namespace
}  // namespace attention::testing
