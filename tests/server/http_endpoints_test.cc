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
#include "tests/support/raw_call.h"
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

// What /metrics says of calls of a method that ended so.
int64_t CallsIn(HttpClient& client, const std::string& method,
                const std::string& code) {
  const std::string start = "\nattention_calls_total{code=\"" + code +
                            "\",method=\"" + method + "\"} ";
  const std::string text = client.Get("/metrics").body;
  const size_t found = text.find(start);
  return found == std::string::npos
             ? -1
             : std::stoll(text.substr(found + start.size()));
}

TEST(HttpEndpointsTest, MetricsCountCallsThatDoNotCompute) {
  TestServer server(WithHttp());
  HttpClient client(server.server().http_address());
  const auto channel = server.Channel(Transport::kLoopback);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(HealthOf(channel, ""), "SERVING");
  EXPECT_EQ(HealthOf(channel, "no.such.Service"), "NOT_FOUND");
  grpc::ClientContext context;
  v1::GetCapabilitiesResponse response;
  EXPECT_TRUE(v1::AttentionService::NewStub(channel)
                  ->GetCapabilities(&context, {}, &response)
                  .ok());
  EXPECT_EQ(
      RawUnaryCall(channel, "/no.such.Service/Method", "").status.error_code(),
      grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_TRUE(
      RawUnaryCall(channel, "/grpc.health.v1.Health/List", "").status.ok());
  EXPECT_TRUE(Compute(server, SmallRequest()).ok());
  EXPECT_EQ(CallsIn(client, "Health/Check", "OK"), 3);
  EXPECT_EQ(CallsIn(client, "Health/Check", "NOT_FOUND"), 1);
  EXPECT_EQ(CallsIn(client, "Health/List", "OK"), 1);
  EXPECT_EQ(CallsIn(client, "GetCapabilities", "OK"), 1);
  EXPECT_EQ(CallsIn(client, "other", "UNIMPLEMENTED"), 1);
  // Not twice.
  EXPECT_EQ(CallsIn(client, "ComputeAttention", "OK"), 1);
}

TEST(HttpEndpointsTest, MetricsCountAHealthWatchWhenItEnds) {
  TestServer server(WithHttp());
  HttpClient client(server.server().http_address());
  RawStream watch(server.Channel(Transport::kLoopback),
                  "/grpc.health.v1.Health/Watch");
  ASSERT_TRUE(watch.Write(HealthRequest(""), /*last=*/true));
  EXPECT_EQ(ServingStatus(watch.Read().value_or("")), "SERVING");
  EXPECT_EQ(CallsIn(client, "Health/Watch", "CANCELLED"), 0);
  watch.Cancel();
  EXPECT_TRUE(WaitUntil(
      [&] { return CallsIn(client, "Health/Watch", "CANCELLED") == 1; }));
}

TEST(HttpEndpointsTest, MetricsCountReflectionStreamsOfBothVersions) {
  TestServer server(WithHttp());
  HttpClient client(server.server().http_address());
  const auto channel = server.Channel(Transport::kLoopback);
  for (const std::string version : {"v1", "v1alpha"}) {
    RawStream stream(channel, "/grpc.reflection." + version +
                                  ".ServerReflection/ServerReflectionInfo");
    // ServerReflectionRequest { list_services: "" }
    ASSERT_TRUE(stream.Write(std::string("\x3a\x00", 2), /*last=*/true));
    EXPECT_TRUE(stream.Read().has_value());
    EXPECT_TRUE(stream.Finish().ok());
  }
  EXPECT_TRUE(
      WaitUntil([&] { return CallsIn(client, "Reflection", "OK") == 2; }));
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
