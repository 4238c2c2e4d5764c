// Requests that are answered later.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "server/http/http_server.h"
#include "tests/support/http_client.h"
#include "tests/support/test_server.h"

namespace attention::server {
namespace {

using ::attention::testing::HttpClient;
using ::attention::testing::WaitUntil;
using ::testing::AnyOf;
using ::testing::HasSubstr;

// What never ends while a test runs.
constexpr absl::Duration kLong = absl::Hours(1);

// POST /wait is answered by the test.
class HttpExchangeTest : public ::testing::Test {
 protected:
  void Start(HttpServerOptions options) {
    auto server = HttpServer::Start(options, Routes());
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }

  std::vector<HttpRoute> Routes() {
    const auto wait = [this](const HttpRequest& request,
                             std::shared_ptr<HttpExchange> exchange) {
      const std::lock_guard<std::mutex> lock(mutex_);
      bodies_.push_back(std::move(request.body));
      exchanges_.push_back(std::move(exchange));
    };
    const auto now = [](const HttpRequest&,
                        const std::shared_ptr<HttpExchange>& exchange) {
      exchange->Answer({.body = "now\n"});
    };
    const auto exhausted = [](const HttpRequest&,
                              const std::shared_ptr<HttpExchange>&) {
      throw std::bad_alloc();
    };
    const auto ok = [](const HttpRequest&) {
      return HttpResponse{.body = "ok\n"};
    };
    return {{"GET", "/ok", HttpHandler(ok)},
            {"POST", "/ok", HttpHandler(ok)},
            {"POST", "/wait", HttpTask(wait)},
            {"POST", "/now", HttpTask(now)},
            {"POST", "/exhausted", HttpTask(exhausted)}};
  }

  static std::string Post(const std::string& path,
                          const std::string& body = "") {
    return absl::StrCat("POST ", path,
                        " HTTP/1.1\r\nHost: test\r\nContent-Length: ",
                        body.size(), "\r\n\r\n", body);
  }

  // Nobody owns any exchange but the server, from here on.
  void Forget(std::shared_ptr<HttpExchange>& exchange) {
    exchange.reset();
    const std::lock_guard<std::mutex> lock(mutex_);
    exchanges_.clear();
  }

  // Of the request to /wait that came as number `i`.
  std::shared_ptr<HttpExchange> Exchange(size_t i) {
    EXPECT_TRUE(WaitUntil([&] {
      const std::lock_guard<std::mutex> lock(mutex_);
      return exchanges_.size() > i;
    }));
    const std::lock_guard<std::mutex> lock(mutex_);
    return exchanges_.at(i);
  }

  std::mutex mutex_;
  std::vector<std::string> bodies_;
  std::vector<std::shared_ptr<HttpExchange>> exchanges_;
  std::unique_ptr<HttpServer> server_;
};

TEST_F(HttpExchangeTest, IsAnsweredLaterWhileOthersAreServed) {
  Start({.timeout = kLong, .max_body_bytes = 10});
  HttpClient client(server_->address());
  client.Send(Post("/wait", "body"));
  const auto exchange = Exchange(0);
  EXPECT_EQ(bodies_[0], "body");
  HttpClient other(server_->address());
  EXPECT_EQ(other.Get("/ok").status, 200);
  exchange->Answer({.status = 202, .body = "later\n"});
  exchange->Answer({.status = 500});  // too late
  const HttpClient::Response response = client.Read();
  EXPECT_EQ(response.status, 202);
  EXPECT_EQ(response.body, "later\n");
  // The connection stays.
  EXPECT_EQ(client.Get("/ok").status, 200);
}

TEST_F(HttpExchangeTest, IsAnsweredAtOnce) {
  Start({.timeout = kLong});
  HttpClient client(server_->address());
  for (int i = 0; i < 3; ++i) {
    client.Send(Post("/now"));
    EXPECT_EQ(client.Read().body, "now\n");
  }
  EXPECT_TRUE(server_->WaitUntilAnswered(absl::Now() + kLong));
}

TEST_F(HttpExchangeTest, OutlivesTheTimeoutAndNewConnections) {
  Start({.max_connections = 2, .timeout = absl::Milliseconds(100)});
  HttpClient client(server_->address());
  client.Send(Post("/wait"));
  const auto exchange = Exchange(0);
  for (int i = 0; i < 5; ++i) {
    HttpClient other(server_->address());
    EXPECT_EQ(other.Get("/ok").status, 200);
    absl::SleepFor(absl::Milliseconds(50));
  }
  EXPECT_FALSE(client.IsClosed());
  exchange->Answer({.body = "done\n"});
  EXPECT_EQ(client.Read().body, "done\n");
}

TEST_F(HttpExchangeTest, EndsWhenItsClientGoes) {
  Start({.timeout = kLong});
  std::atomic<int> gone{0};
  std::shared_ptr<HttpExchange> exchange;
  {
    HttpClient client(server_->address());
    client.Send(Post("/wait"));
    exchange = Exchange(0);
    exchange->OnGone([&] { ++gone; });
    EXPECT_FALSE(server_->WaitUntilAnswered(absl::Now()));
  }
  EXPECT_TRUE(WaitUntil([&] { return gone == 1; }));
  EXPECT_TRUE(WaitUntil([&] { return server_->connections() == 0; }));
  EXPECT_TRUE(server_->WaitUntilAnswered(absl::Now() + kLong));
  exchange->Answer({.body = "to nobody"});
  exchange->OnGone([&] { ++gone; });
  EXPECT_EQ(gone, 2);
  HttpClient next(server_->address());
  EXPECT_EQ(next.Get("/ok").status, 200);
}

TEST_F(HttpExchangeTest, IsNotGivenUpOnceItIsAnswered) {
  Start({.timeout = kLong});
  std::atomic<int> gone{0};
  HttpClient client(server_->address());
  client.Send(Post("/wait"));
  const auto exchange = Exchange(0);
  exchange->OnGone([&] { ++gone; });
  exchange->Answer({.body = "done\n"});
  EXPECT_EQ(client.Read().body, "done\n");
  server_.reset();
  EXPECT_EQ(gone, 0);
}

TEST_F(HttpExchangeTest, EndsWithTheServer) {
  Start({.timeout = kLong});
  std::atomic<int> gone{0};
  HttpClient client(server_->address());
  client.Send(Post("/wait"));
  const auto exchange = Exchange(0);
  exchange->OnGone([&] { ++gone; });
  server_.reset();
  EXPECT_EQ(gone, 1);
  EXPECT_EQ(client.ReadToEnd(), 0);
  exchange->Answer({.body = "to nobody"});
}

TEST_F(HttpExchangeTest, OneTooManyIsToldToTryAgain) {
  Start({.timeout = kLong, .max_exchanges = 2});
  HttpClient first(server_->address());
  HttpClient second(server_->address());
  first.Send(Post("/wait"));
  Exchange(0);
  second.Send(Post("/wait"));
  auto exchange = Exchange(1);
  HttpClient third(server_->address());
  third.Send(Post("/now"));
  const HttpClient::Response response = third.Read();
  EXPECT_EQ(response.status, 503);
  EXPECT_THAT(response.headers, HasSubstr("Retry-After: 1"));
  exchange->Answer({});
  EXPECT_EQ(second.Read().status, 200);
  Forget(exchange);
  EXPECT_TRUE(WaitUntil([&] {
    third.Send(Post("/now"));
    return third.Read().status == 200;
  }));
}

TEST_F(HttpExchangeTest, AlwaysLeavesAConnectionToOthers) {
  Start({.max_connections = 2, .timeout = kLong, .max_exchanges = 10});
  HttpClient first(server_->address());
  first.Send(Post("/wait"));
  Exchange(0);
  HttpClient second(server_->address());
  second.Send(Post("/wait"));
  EXPECT_EQ(second.Read().status, 503);
  EXPECT_EQ(second.Get("/ok").status, 200);
}

// Lets so many bytes be held, of all owners.
HttpHold AtMost(int64_t most) {
  const auto held = std::make_shared<std::atomic<int64_t>>(0);
  return [most, held](const HttpOwner&, int64_t before, int64_t bytes) {
    const int64_t more = bytes - before;
    if (held->fetch_add(more) + more <= most || more <= 0) return true;
    *held -= more;
    return false;
  };
}

TEST_F(HttpExchangeTest, WhatIsHeldIsBounded) {
  Start({.timeout = kLong, .max_body_bytes = 100, .hold = AtMost(150)});
  HttpClient client(server_->address());
  client.Send(Post("/wait", std::string(100, 'x')));
  auto exchange = Exchange(0);
  HttpClient other(server_->address());
  const auto status_with = [&](size_t bytes) {
    other.Send(Post("/ok", std::string(bytes, 'x')));
    return other.Read().status;
  };
  EXPECT_EQ(status_with(51), 503);
  EXPECT_FALSE(exchange->Hold(151));
  EXPECT_TRUE(exchange->Hold(99));
  EXPECT_EQ(status_with(51), 200);
  // The body is given back once its answer was taken.
  EXPECT_TRUE(WaitUntil([&] { return exchange->Hold(150); }));
  EXPECT_EQ(status_with(51), 503);
  exchange->Answer({});
  EXPECT_EQ(client.Read().status, 200);
  Forget(exchange);
  // All of it is given back.
  EXPECT_TRUE(WaitUntil([&] { return status_with(100) == 200; }));
  EXPECT_EQ(status_with(100), 200);
}

// Whoever works for a client that has gone still has what it sent.
TEST_F(HttpExchangeTest, IsCountedUntilNobodyOwnsIt) {
  Start({.timeout = kLong,
         .max_body_bytes = 100,
         .hold = AtMost(250),
         .max_exchanges = 2});
  for (size_t i = 0; i < 2; ++i) {
    HttpClient client(server_->address());
    client.Send(Post("/wait", std::string(100, 'x')));
    EXPECT_NE(Exchange(i), nullptr);
  }
  EXPECT_TRUE(WaitUntil([&] { return server_->connections() == 0; }));
  EXPECT_TRUE(server_->WaitUntilAnswered(absl::Now() + kLong));
  EXPECT_TRUE(Exchange(0)->gone());
  HttpClient client(server_->address());
  client.Send(Post("/now"));
  EXPECT_EQ(client.Read().status, 503);
  client.Send(Post("/ok", std::string(100, 'x')));
  EXPECT_EQ(client.Read().status, 503);
  exchanges_.clear();
  client.Send(Post("/now"));
  EXPECT_EQ(client.Read().status, 200);
  client.Send(Post("/ok", std::string(100, 'x')));
  EXPECT_EQ(client.Read().status, 200);
}

// A guard says whose a request is: memory and exchanges count for that owner.
TEST_F(HttpExchangeTest, AnOwnerLeavesRoomForOthers) {
  std::vector<HttpRoute> routes = Routes();
  for (HttpRoute& route : routes) {
    route.guard =
        [](const HttpRequest& request) -> std::optional<HttpResponse> {
      request.owner.id = request.Header("X-Owner") == "1" ? 1 : 2;
      return std::nullopt;
    };
  }
  // Exchanges outlive the test's own variables.
  struct Held {
    std::mutex mutex;
    std::map<int, int64_t> bytes;

    int64_t Of(int owner) {
      const std::lock_guard<std::mutex> lock(mutex);
      return bytes[owner];
    }
  };
  const auto held = std::make_shared<Held>();
  const auto hold = [held](const HttpOwner& owner, int64_t before,
                           int64_t bytes) {
    const std::lock_guard<std::mutex> lock(held->mutex);
    held->bytes[owner.id] += bytes - before;
    return true;
  };
  auto server = HttpServer::Start({.timeout = kLong,
                                   .max_body_bytes = 100,
                                   .hold = hold,
                                   .max_exchanges = 4,
                                   .max_owner_exchanges = 2},
                                  std::move(routes));
  ASSERT_TRUE(server.ok());
  std::vector<std::unique_ptr<HttpClient>> clients;
  const auto send = [&](const char* owner) {
    clients.push_back(std::make_unique<HttpClient>((*server)->address()));
    clients.back()->Send(
        absl::StrCat("POST /wait HTTP/1.1\r\nHost: test\r\nX-Owner: ", owner,
                     "\r\nContent-Length: 50\r\n\r\n", std::string(50, 'x')));
  };
  send("1");
  send("1");
  Exchange(1);
  send("1");
  EXPECT_EQ(clients.back()->Read().status, 503);
  send("2");
  ASSERT_NE(Exchange(2), nullptr);
  EXPECT_EQ(held->Of(1), 100);
  EXPECT_EQ(held->Of(2), 50);
  Exchange(0)->Answer({});
  EXPECT_EQ(clients[0]->Read().status, 200);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    exchanges_[0].reset();
  }
  EXPECT_TRUE(WaitUntil([&] { return held->Of(1) == 50; }));
  send("1");
  ASSERT_NE(Exchange(3), nullptr);
}

TEST_F(HttpExchangeTest, MayEndWithoutAnAnswer) {
  Start({.timeout = kLong});
  HttpClient client(server_->address());
  client.Send(Post("/wait"));
  Exchange(0)->Abort();
  EXPECT_EQ(client.ReadToEnd(), 0);
  EXPECT_TRUE(server_->WaitUntilAnswered(absl::Now() + kLong));
}

TEST_F(HttpExchangeTest, AGuardAnswersBeforeTheBodyComes) {
  std::vector<HttpRoute> routes = Routes();
  for (HttpRoute& route : routes) {
    route.guard =
        [](const HttpRequest& request) -> std::optional<HttpResponse> {
      if (request.Header("X-Key") == "1") return std::nullopt;
      return HttpResponse{.status = 401, .body = "no key\n"};
    };
  }
  auto server = HttpServer::Start({.timeout = kLong, .max_body_bytes = 100},
                                  std::move(routes));
  ASSERT_TRUE(server.ok());
  HttpClient client((*server)->address());
  client.Send("POST /now HTTP/1.1\r\nHost: test\r\nContent-Length: 50\r\n\r\n");
  EXPECT_EQ(client.Read().status, 401);
  // What would follow is a body.
  EXPECT_EQ(client.ReadToEnd(), 0);
  // Without a body the connection stays.
  HttpClient other((*server)->address());
  EXPECT_EQ(other.Get("/ok").status, 401);
  other.Send(
      "POST /now HTTP/1.1\r\nHost: test\r\nX-Key: 1\r\n"
      "Content-Length: 2\r\n\r\nab");
  EXPECT_EQ(other.Read().status, 200);
}

TEST_F(HttpExchangeTest, WithoutMemoryLosesItsConnection) {
  Start({.timeout = kLong});
  HttpClient client(server_->address());
  client.Send(Post("/exhausted"));
  EXPECT_EQ(client.ReadToEnd(), 0);
  EXPECT_TRUE(server_->WaitUntilAnswered(absl::Now() + kLong));
  HttpClient next(server_->address());
  EXPECT_EQ(next.Get("/ok").status, 200);
}

TEST_F(HttpExchangeTest, ManyComeAndGo) {
  Start({.max_connections = 20, .timeout = kLong, .max_exchanges = 8});
  std::atomic<bool> stop{false};
  std::thread answers([&] {
    size_t done = 0;
    while (!stop) {
      std::shared_ptr<HttpExchange> exchange;
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (done < exchanges_.size()) exchange = exchanges_[done++];
      }
      if (exchange == nullptr) {
        absl::SleepFor(absl::Microseconds(100));
      } else {
        exchange->Answer({.body = "x"});
      }
    }
  });
  for (int round = 0; round < 50; ++round) {
    std::vector<std::unique_ptr<HttpClient>> clients;
    for (int i = 0; i < 6; ++i) {
      clients.push_back(std::make_unique<HttpClient>(server_->address()));
      clients.back()->Send(Post("/wait"));
    }
    // The others leave without their answer.
    for (int i = 0; i < 3; ++i) {
      EXPECT_THAT(clients[i]->Read().status, AnyOf(200, 503));
    }
  }
  stop = true;
  answers.join();
}

}  // namespace
}  // namespace attention::server
