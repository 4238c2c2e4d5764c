#include "server/http/http_server.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <memory>
#include <new>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/descriptor.h"
#include "tests/support/http_client.h"
#include "tests/support/test_server.h"

namespace attention::server {
namespace {

using ::attention::testing::HttpClient;
using ::attention::testing::WaitUntil;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;

constexpr char kGet[] = "GET /ok HTTP/1.1\r\nHost: test\r\n\r\n";
// More than the buffers of a connection hold.
constexpr size_t kLargeBytes = 16 << 20;

std::vector<HttpRoute> Routes() {
  const auto say = [](const std::string& text) {
    return [=](const HttpRequest&) { return HttpResponse{.body = text}; };
  };
  return {{"GET", "/ok", say("ok\n")},
          {"GET", "/large",
           [](const HttpRequest&) {
             return HttpResponse{.body = std::string(kLargeBytes, 'x')};
           }},
          {"GET", "/exhausted",
           [](const HttpRequest&) -> HttpResponse { throw std::bad_alloc(); }},
          {"POST", "/echo", [](const HttpRequest& request) {
             return HttpResponse{
                 .status = 201,
                 .body = absl::StrCat(request.method, " ", request.path, " ",
                                      request.body)};
           }}};
}

// What never ends while a test runs.
constexpr absl::Duration kLong = absl::Hours(1);

std::unique_ptr<HttpServer> StartServer(const HttpServerOptions& options) {
  auto server = HttpServer::Start(options, Routes());
  EXPECT_TRUE(server.ok()) << server.status();
  return *std::move(server);
}

TEST(HttpServerTest, TellsItsPort) {
  const auto server = StartServer({});
  EXPECT_THAT(server->address(), MatchesRegex("127\\.0\\.0\\.1:[1-9][0-9]*"));
}

TEST(HttpServerTest, AnswersOnAConnectionThatStaysOpen) {
  const auto server = StartServer({.timeout = kLong});
  HttpClient client(server->address());
  for (int i = 0; i < 3; ++i) {
    const HttpClient::Response response = client.Get("/ok?query=ignored");
    EXPECT_EQ(response.status, 200);
    EXPECT_EQ(response.body, "ok\n");
    EXPECT_THAT(response.headers,
                HasSubstr("Content-Type: text/plain; charset=utf-8"));
  }
  EXPECT_EQ(server->connections(), 1);
}

TEST(HttpServerTest, AnswersRequestsSentTogetherInTurn) {
  const auto server = StartServer({.timeout = kLong});
  HttpClient client(server->address());
  client.Send(std::string(kGet) + kGet + kGet);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(client.Read().body, "ok\n");
}

TEST(HttpServerTest, HeadIsGetWithoutABody) {
  const auto server = StartServer({.timeout = kLong});
  HttpClient client(server->address());
  client.Send("HEAD /ok HTTP/1.1\r\nHost: test\r\n\r\n");
  const HttpClient::Response response = client.Read(/*bodyless=*/true);
  EXPECT_EQ(response.status, 200);
  EXPECT_THAT(response.headers, HasSubstr("Content-Length: 3"));
  // A body would stand before this.
  EXPECT_EQ(client.Get("/ok").body, "ok\n");
}

TEST(HttpServerTest, AnUnknownPathIs404) {
  const auto server = StartServer({});
  HttpClient client(server->address());
  for (const char* path : {"/", "/ok/", "/okay", "//ok"}) {
    const HttpClient::Response response = client.Get(path);
    EXPECT_EQ(response.status, 404) << path;
    EXPECT_EQ(response.body, "there is nothing at this path\n");
  }
}

TEST(HttpServerTest, AnotherMethodIs405) {
  const auto server = StartServer({});
  HttpClient client(server->address());
  for (const char* method : {"POST", "PUT", "DELETE", "TRACE", "NONE"}) {
    client.Send(absl::StrCat(
        method, " /ok HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n"));
    const HttpClient::Response response = client.Read();
    EXPECT_EQ(response.status, 405) << method;
    EXPECT_THAT(response.headers, HasSubstr("Allow: GET, HEAD"));
    EXPECT_EQ(response.body, "this path takes GET, HEAD\n");
  }
  EXPECT_EQ(client.Get("/echo").body, "this path takes POST\n");
}

TEST(HttpServerTest, HandsOverABodyUpToTheLimit) {
  const auto server = StartServer({.max_body_bytes = 10});
  HttpClient client(server->address());
  client.Send(
      "POST /%65cho HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\n01234");
  client.Send("56789");
  const HttpClient::Response response = client.Read();
  EXPECT_EQ(response.status, 201);
  EXPECT_EQ(response.body, "POST /echo 0123456789");
}

TEST(HttpServerTest, RefusesALongerBodyBeforeItComes) {
  const auto server = StartServer({.timeout = kLong, .max_body_bytes = 10});
  for (const char* target : {"GET /ok", "POST /echo"}) {
    for (const char* length : {"11", "9223372036854775807"}) {
      HttpClient client(server->address());
      client.Send(absl::StrCat(
          target, " HTTP/1.1\r\nHost: test\r\nContent-Length: ", length,
          "\r\n\r\n"));
      const HttpClient::Response response = client.Read();
      EXPECT_EQ(response.status, 413);
      EXPECT_EQ(response.body, "the body is longer than 10 bytes\n");
      EXPECT_THAT(response.headers, HasSubstr("Connection: close"));
      // What follows is a body, not a request.
      client.Send(kGet);
      EXPECT_EQ(client.ReadToEnd(), 0);
    }
  }
}

TEST(HttpServerTest, CutsABodyOfUntoldLengthAtTheLimit) {
  const auto server = StartServer({.timeout = kLong, .max_body_bytes = 10});
  HttpClient client(server->address());
  client.Send(
      "POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: "
      "chunked\r\n\r\n");
  client.Send("5\r\n01234\r\n5\r\n56789\r\n0\r\n\r\n");
  EXPECT_EQ(client.Read().body, "POST /echo 0123456789");
  client.Send(
      "POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: "
      "chunked\r\n\r\n");
  client.Send("a\r\n0123456789\r\n1\r\na\r\n");
  EXPECT_EQ(client.ReadToEnd(), 0);
}

TEST(HttpServerTest, RefusesLongHeaders) {
  const auto server = StartServer({.timeout = kLong, .max_header_bytes = 4096});
  const auto status_with = [&](size_t bytes) {
    HttpClient client(server->address());
    client.Send(absl::StrCat("GET /ok HTTP/1.1\r\nHost: test\r\nX: ",
                             std::string(bytes, 'x'), "\r\n\r\n"));
    return client.Read().status;
  };
  EXPECT_EQ(status_with(3000), 200);
  EXPECT_EQ(status_with(6000), 431);
}

TEST(HttpServerTest, RefusesALongPath) {
  const auto server = StartServer({.timeout = kLong, .max_header_bytes = 4096});
  HttpClient client(server->address());
  EXPECT_EQ(client.Get("/" + std::string(6000, 'x')).status, 414);
}

TEST(HttpServerTest, HeadersWithoutEndAreCutAtTheLimit) {
  const auto server = StartServer({.timeout = kLong, .max_header_bytes = 4096});
  HttpClient client(server->address());
  client.Send("GET /ok HTTP/1.1\r\nHost: test\r\n");
  size_t sent = 0;
  // What the kernels of both ends buffer may be sent in vain.
  while (client.Send("X: 0123456789012345678901234567890123456789\r\n") &&
         ++sent < 10'000'000) {
  }
  EXPECT_LT(sent, 10'000'000);
}

TEST(HttpServerTest, WhatIsNotHttpIsRefused) {
  const auto server = StartServer({.timeout = kLong});
  HttpClient client(server->address());
  // How an HTTP/2 client, one of gRPC say, begins.
  client.Send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
  EXPECT_THAT(client.Read().status, ::testing::AnyOf(0, 400, 505));
}

// One that sends a byte now and then is never idle.
TEST(HttpServerTest, ASlowClientIsCut) {
  // More than it sends in its time.
  const auto server = StartServer(
      {.timeout = absl::Milliseconds(100), .max_header_bytes = 16 << 20});
  HttpClient slow(server->address());
  slow.Send("GET /ok HTTP/1.1\r\nX: ");
  EXPECT_TRUE(WaitUntil([&] {
    slow.Send("x");
    return slow.IsClosed();
  }));
  EXPECT_EQ(slow.ReadToEnd(), 0);
  EXPECT_TRUE(WaitUntil([&] { return server->connections() == 0; }));
}

TEST(HttpServerTest, ASilentClientIsCut) {
  const auto server = StartServer({.timeout = absl::Milliseconds(100)});
  HttpClient silent(server->address());
  EXPECT_EQ(silent.ReadToEnd(), 0);
}

TEST(HttpServerTest, AClientThatIsIdleAfterAnAnswerIsCut) {
  const auto server = StartServer({.timeout = absl::Milliseconds(100)});
  HttpClient idle(server->address());
  EXPECT_EQ(idle.Get("/ok").status, 200);
  EXPECT_EQ(idle.ReadToEnd(), 0);
}

TEST(HttpServerTest, AClientThatDoesNotReadIsCut) {
  const auto server = StartServer({.timeout = absl::Milliseconds(100)});
  HttpClient deaf(server->address(), /*receive_buffer=*/4096);
  deaf.Send("GET /large HTTP/1.1\r\nHost: test\r\n\r\n");
  EXPECT_TRUE(WaitUntil([&] { return server->connections() == 1; }));
  EXPECT_TRUE(WaitUntil([&] { return server->connections() == 0; }));
  EXPECT_LT(deaf.ReadToEnd(), kLargeBytes);
}

TEST(HttpServerTest, ARequestGivesItsConnectionNewTime) {
  const auto server = StartServer({.timeout = absl::Milliseconds(500)});
  HttpClient client(server->address());
  // Each request is far within its time, all together are beyond it.
  const absl::Time end = absl::Now() + absl::Seconds(1);
  while (absl::Now() < end) ASSERT_EQ(client.Get("/ok").status, 200);
}

TEST(HttpServerTest, IdleClientsMakeRoomForANewOne) {
  const auto server = StartServer({.max_connections = 3, .timeout = kLong});
  std::vector<std::unique_ptr<HttpClient>> idle;
  for (int i = 0; i < 3; ++i) {
    idle.push_back(std::make_unique<HttpClient>(server->address()));
    EXPECT_TRUE(WaitUntil([&] { return server->connections() == i + 1; }));
  }
  // From now on the second has gone longest without finishing a request.
  EXPECT_EQ(idle[0]->Get("/ok").status, 200);
  HttpClient client(server->address());
  EXPECT_EQ(client.Get("/ok").status, 200);
  EXPECT_EQ(server->connections(), 3);
  EXPECT_EQ(idle[1]->ReadToEnd(), 0);
  EXPECT_EQ(idle[0]->Get("/ok").status, 200);
  EXPECT_FALSE(idle[2]->IsClosed());
}

TEST(HttpServerTest, AThousandConnectionsKeepNobodyOut) {
  const auto server = StartServer({.max_connections = 8, .timeout = kLong});
  std::vector<std::unique_ptr<HttpClient>> slow;
  for (int i = 0; i < 1000; ++i) {
    slow.push_back(std::make_unique<HttpClient>(server->address()));
    slow.back()->Send("GET /ok HTTP/1.1\r\n");
    EXPECT_LE(server->connections(), 8);
    if (i % 100 != 99) continue;
    HttpClient client(server->address());
    EXPECT_EQ(client.Get("/ok").status, 200);
  }
}

TEST(HttpServerTest, AnswersThatNobodyTakesMakeRoom) {
  const auto server = StartServer({.max_connections = 2,
                                   .answer_patience = absl::Milliseconds(10),
                                   .timeout = kLong});
  std::vector<std::unique_ptr<HttpClient>> deaf;
  for (int i = 0; i < 2; ++i) {
    deaf.push_back(std::make_unique<HttpClient>(server->address(), 4096));
    for (int request = 0; request < 3; ++request) {
      deaf.back()->Send("GET /large HTTP/1.1\r\nHost: test\r\n\r\n");
    }
    EXPECT_TRUE(WaitUntil([&] { return server->connections() == i + 1; }));
  }
  HttpClient client(server->address());
  EXPECT_EQ(client.Get("/ok").status, 200);
  EXPECT_LT(deaf[0]->ReadToEnd(), kLargeBytes);
  EXPECT_FALSE(deaf[1]->IsClosed());
}

TEST(HttpServerTest, ConnectionsWaitWhileAllAreBeingAnswered) {
  const auto server = StartServer(
      {.max_connections = 1, .answer_patience = kLong, .timeout = kLong});
  auto deaf = std::make_unique<HttpClient>(server->address(), 4096);
  deaf->Send("GET /large HTTP/1.1\r\nHost: test\r\n\r\n");
  EXPECT_TRUE(WaitUntil([&] { return server->connections() == 1; }));
  HttpClient client(server->address());
  client.Send(kGet);
  // The answer goes on, so it was not cut.
  EXPECT_EQ(deaf->Read().body.size(), kLargeBytes);
  deaf.reset();
  EXPECT_EQ(client.Read().status, 200);
}

TEST(HttpServerTest, ServesAgainWhenDescriptorsRanOut) {
  const auto server = StartServer({.timeout = kLong});
  HttpClient before(server->address());
  EXPECT_EQ(before.Get("/ok").status, 200);
  std::vector<Descriptor> taken;
  rlimit limit;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  const rlimit low = {128, limit.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
  Descriptor spare(open("/dev/null", O_RDONLY));
  while (true) {
    Descriptor fd(open("/dev/null", O_RDONLY));
    if (!fd.valid()) break;
    taken.push_back(std::move(fd));
  }
  // Connects with the last descriptor there is.
  spare = Descriptor();
  HttpClient after(server->address());
  after.Send(kGet);
  EXPECT_EQ(before.Get("/ok").status, 200);
  EXPECT_EQ(server->connections(), 1);
  taken.clear();
  EXPECT_EQ(after.Read().status, 200);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
}

TEST(HttpServerTest, ARequestWithoutMemoryLosesItsConnection) {
  const auto server = StartServer({.timeout = kLong});
  HttpClient client(server->address());
  client.Send("GET /exhausted HTTP/1.1\r\nHost: test\r\n\r\n");
  EXPECT_EQ(client.ReadToEnd(), 0);
  HttpClient next(server->address());
  EXPECT_EQ(next.Get("/ok").status, 200);
}

TEST(HttpServerTest, DestructionWaitsForNoClient) {
  auto server = StartServer({.timeout = kLong});
  HttpClient idle(server->address());
  EXPECT_EQ(idle.Get("/ok").status, 200);
  HttpClient half(server->address());
  half.Send("GET /ok HTTP/1.1\r\n");
  HttpClient deaf(server->address(), 4096);
  deaf.Send("GET /large HTTP/1.1\r\nHost: test\r\n\r\n");
  EXPECT_TRUE(WaitUntil([&] { return server->connections() == 3; }));
  server.reset();
  EXPECT_EQ(idle.ReadToEnd(), 0);
  EXPECT_EQ(half.ReadToEnd(), 0);
  EXPECT_LT(deaf.ReadToEnd(), kLargeBytes);
}

TEST(HttpServerTest, RefusesAnAddressInUse) {
  const auto first = StartServer({});
  const auto second = HttpServer::Start({.address = first->address()}, {});
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(
      second.status().message(),
      "cannot listen on \"" + first->address() + "\": Address already in use");
}

TEST(HttpServerTest, RefusesAnAddressThatIsNone) {
  for (const char* address : {"nothing", "127.0.0.1:x", "256.0.0.1:0"}) {
    const auto server = HttpServer::Start({.address = address}, {});
    EXPECT_EQ(server.status().code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(server.status().message()),
                ::testing::StartsWith(
                    absl::StrCat("cannot listen on \"", address, "\": ")));
  }
}

}  // namespace
}  // namespace attention::server
