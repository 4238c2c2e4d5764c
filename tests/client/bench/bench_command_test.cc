#include "client/cpp/cli/bench_command.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/cpp/cli/bench/arrivals.h"
#include "client/cpp/cli/command_line.h"
#include "tests/client/fake_service.h"
#include "tests/support/messages.h"

namespace attention::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

struct Result {
  int code;
  std::string out;
  std::string err;

  nlohmann::json json() const { return nlohmann::json::parse(out); }
};

Result RunWith(std::vector<std::string> arguments) {
  std::vector<const char*> argv = {"attention_client", "bench"};
  for (const std::string& argument : arguments) {
    argv.push_back(argument.c_str());
  }
  std::ostringstream out;
  std::ostringstream err;
  const int code = Run(static_cast<int>(argv.size()), argv.data(),
                       /*utf8=*/true, out, err);
  return {code, out.str(), err.str()};
}

// A short measurement against `service`, without warm-up unless `more` begins
// with one.
Result Bench(FakeService& service, std::vector<std::string> more) {
  std::vector<std::string> arguments = {
      absl::StrCat("--server=", service.address()), "--duration=200ms",
      "--json=-"};
  if (more.empty() || !absl::StartsWith(more[0], "--warmup")) {
    arguments.emplace_back("--warmup=0");
  }
  arguments.insert(arguments.end(), more.begin(), more.end());
  return RunWith(std::move(arguments));
}

grpc::Status Right(grpc::ServerContext&,
                   const v1::ComputeAttentionRequest& request,
                   v1::ComputeAttentionResponse& response) {
  response = testing::KernelAnswer(request);
  static std::atomic<int> calls = 0;
  response.mutable_timing()->set_compute_us(++calls);
  return grpc::Status::OK;
}

TEST(BenchCommand, ClosedLoop) {
  FakeService service(Right);
  const Result run =
      Bench(service, {"--shape=S=2", "--clients=2", "--concurrency=3"});
  EXPECT_EQ(run.code, kSuccess) << run.err;
  EXPECT_EQ(run.err, "");
  const auto json = run.json();
  EXPECT_EQ(json["options"]["loop"], "closed");
  EXPECT_GE(json["total"]["ok"], 6);
  EXPECT_EQ(json["total"]["ok"], json["total"]["calls"]);
  EXPECT_TRUE(json["lag"].is_null());
  EXPECT_EQ(json["answers"]["good"], true);
  // The first, uncounted call is the one beyond.
  EXPECT_EQ(service.requests().size(),
            json["total"]["calls"].get<size_t>() + 1);
}

TEST(BenchCommand, AnnouncesTheSizeOfEachMessage) {
  FakeService service(Right);
  EXPECT_EQ(Bench(service, {"--shape=S=2"}).code, kSuccess);
  const std::string bytes =
      absl::StrCat(service.requests().at(0).ByteSizeLong());
  EXPECT_GT(service.announced_bytes().size(), 1);
  EXPECT_THAT(service.announced_bytes(), ::testing::Each(bytes));
}

TEST(BenchCommand, OpenLoopSendsWhatTheScheduleSays) {
  FakeService service(Right);
  const Result run =
      Bench(service, {"--shape=S=2", "--rate=500", "--clients=3", "--seed=4"});
  EXPECT_EQ(run.code, kSuccess) << run.err;
  PoissonArrivals arrivals({{500, absl::Milliseconds(200)}}, 4);
  size_t due = 0;
  while (arrivals.Next()) ++due;
  EXPECT_EQ(run.json()["total"]["calls"], due);
  EXPECT_EQ(run.json()["lag"]["count"], due);
  EXPECT_EQ(service.requests().size(), due + 1);
}

TEST(BenchCommand, WarmUpIsNotCounted) {
  FakeService service(Right);
  const Result run = Bench(
      service, {"--warmup=100ms", "--shape=S=2", "--rate=500", "--seed=4"});
  PoissonArrivals arrivals({{500, absl::Milliseconds(300)}}, 4);
  size_t all = 0;
  size_t counted = 0;
  while (const auto at = arrivals.Next()) {
    ++all;
    if (*at >= absl::Milliseconds(100)) ++counted;
  }
  EXPECT_EQ(run.json()["total"]["calls"], counted);
  EXPECT_EQ(service.requests().size(), all + 1);
}

TEST(BenchCommand, SendsTheShapesOfAMix) {
  FakeService service(Right);
  const Result run =
      Bench(service, {"--mix=S=2,H=2:1,1,4,2,3,5,8,6:1", "--rate=300",
                      "--type=bfloat16", "--causal=bottom-right"});
  EXPECT_EQ(run.code, kSuccess) << run.err << run.out;
  std::set<std::string> keys;
  for (const v1::ComputeAttentionRequest& request : service.requests()) {
    EXPECT_EQ(request.query().data_type(), v1::DATA_TYPE_BFLOAT16);
    EXPECT_EQ(request.options().causal(), v1::CAUSAL_BOTTOM_RIGHT);
    keys.insert(absl::StrCat(request.key().shape(1), " ",
                             request.key().shape(2), " ",
                             request.value().shape(3)));
  }
  EXPECT_THAT(keys, ::testing::ElementsAre("2 2 64", "2 5 6"));
  EXPECT_GT(run.json()["kinds"][0]["ok"], 0);
  EXPECT_GT(run.json()["kinds"][1]["ok"], 0);
}

TEST(BenchCommand, AWrongFirstAnswerFails) {
  FakeService service([](auto&, const auto& request, auto& response) {
    *response.mutable_output() = request.query();
    return grpc::Status::OK;
  });
  Result run = Bench(service, {"--shape=S=2"});
  EXPECT_EQ(run.code, kWrongAnswer);
  EXPECT_EQ(run.err, "attention_client: wrong answers\n");
  EXPECT_THAT(run.json()["answers"]["wrong"][0].get<std::string>(),
              HasSubstr("output[0][0][0]"));
  run = Bench(service, {"--shape=S=2", "--no-check"});
  EXPECT_EQ(run.code, kSuccess);
  EXPECT_EQ(run.json()["answers"]["checked"], false);
  EXPECT_EQ(run.json()["answers"]["wrong"].size(), 0);
}

TEST(BenchCommand, AnAnswerWithOtherBitsFails) {
  std::atomic<int> calls = 0;
  FakeService service([&](auto& context, const auto& request, auto& response) {
    const grpc::Status status = Right(context, request, response);
    // One bit of the last number's mantissa, well within the tolerance.
    if (++calls == 5) *response.mutable_output()->mutable_data()->rbegin() ^= 1;
    return status;
  });
  const Result run = Bench(service, {"--shape=S=2", "--rate=200"});
  EXPECT_EQ(run.code, kWrongAnswer);
  EXPECT_EQ(run.json()["total"]["wrong"], 1);
}

TEST(BenchCommand, RefusalsAreCountedApart) {
  std::atomic<int> calls = 0;
  FakeService service([&](auto& context, const auto& request, auto& response) {
    if (calls++ % 2 == 0) return Right(context, request, response);
    return grpc::Status(grpc::RESOURCE_EXHAUSTED, "busy");
  });
  const Result run = Bench(service, {"--shape=S=2", "--rate=200"});
  EXPECT_EQ(run.code, kSuccess);
  const auto total = run.json()["total"];
  EXPECT_GT(total["refused"], 0);
  EXPECT_EQ(total["refused"], total["by_code"]["RESOURCE_EXHAUSTED"]);
  EXPECT_EQ(total["refused"], total["refusals"]["count"]);
  EXPECT_EQ(total["ok"], total["accepted"]["count"]);
}

TEST(BenchCommand, CallsThatAreRefusedOneByOneFailAtOnce) {
  FakeService service([](auto&, const auto&, auto&) {
    return grpc::Status(grpc::INVALID_ARGUMENT, "no");
  });
  const Result run = Bench(service, {});
  EXPECT_EQ(run.code, kRefused);
  EXPECT_EQ(run.err, "attention_client: INVALID_ARGUMENT: no\n");
  EXPECT_EQ(run.out, "");
  EXPECT_EQ(service.requests().size(), 1);
}

TEST(BenchCommand, LateAnswersAreNoGoodput) {
  // Waits until the client has given up.
  FakeService service([](grpc::ServerContext& context, const auto&, auto&) {
    while (!context.IsCancelled()) {
    }
    return grpc::Status(grpc::DEADLINE_EXCEEDED, "");
  });
  const Result run =
      Bench(service, {"--shape=S=2", "--rate=20", "--timeout=50ms"});
  EXPECT_EQ(run.code, kNoAnswer);
  EXPECT_EQ(run.json()["total"]["goodput"], 0);
  EXPECT_EQ(run.json()["total"]["ok"], 0);
}

TEST(BenchCommand, OpenCallsAreBounded) {
  FakeService service([](grpc::ServerContext& context, const auto&, auto&) {
    while (!context.IsCancelled()) {
    }
    return grpc::Status(grpc::DEADLINE_EXCEEDED, "");
  });
  const Result run =
      Bench(service, {"--shape=S=2", "--rate=100", "--timeout=1s",
                      "--max-open=2", "--no-check"});
  const auto json = run.json();
  // The first two are open until their deadline, which the others wait for.
  EXPECT_GT(json["waited"], 0);
  EXPECT_GE(json["lag"]["p99_ms"].get<double>(), 500);
  EXPECT_EQ(json["generator_is_the_limit"], false);
}

TEST(BenchCommand, Health) {
  FakeService service;
  const Result run = Bench(service, {"--health"});
  EXPECT_EQ(run.code, kSuccess) << run.err;
  EXPECT_EQ(run.json()["kinds"][0]["name"], "health");
  EXPECT_GT(run.json()["total"]["ok"], 0);
  EXPECT_TRUE(service.requests().empty());
}

TEST(BenchCommand, NobodyThere) {
  const Result run =
      RunWith({"--server=unix:/no/such/socket", "--timeout=100ms"});
  EXPECT_EQ(run.code, kNoAnswer);
  EXPECT_THAT(run.err, StartsWith("attention_client: UNAVAILABLE: cannot "
                                  "connect to unix:/no/such/socket: "));
  EXPECT_THAT(run.err, HasSubstr("No such file or directory\n"));
}

TEST(BenchCommand, WrongFlagsAreNamed) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"--shape=S=0", "--shape: got 'S=0', wanted sizes of at least 1"},
      {"--mix=S=2", "--mix: got 'S=2', wanted SHAPE:WEIGHT"},
      {"--rate=fast", "--rate: got 'fast', wanted calls per second"},
      {"--duration=0",
       "--duration: got '0', wanted a time such as 5 (seconds), 500ms or "
       "1m30s, above 0"},
      {"--warmup=-1",
       "--warmup: got '-1', wanted a time such as 5 (seconds), 500ms or "
       "1m30s, 0 or more"},
      {"--timeout=inf",
       "--timeout: got 'inf', wanted a time such as 5 (seconds), 500ms or "
       "1m30s, above 0"},
      {"--clients=0", "--clients"},
      {"--type=int8", "--type: got 'int8'"},
      {"--json=/no/such/folder/x", "--json: cannot write /no/such/folder/x"},
  };
  for (const auto& [flag, error] : cases) {
    const Result run = RunWith({flag});
    EXPECT_EQ(run.code, kBadInput) << flag;
    EXPECT_THAT(run.err, StartsWith("attention_client: "));
    EXPECT_THAT(run.err, HasSubstr(error));
    EXPECT_EQ(run.out, "");
  }
  EXPECT_EQ(RunWith({"--rate=1", "--concurrency=2"}).code, kBadInput);
  EXPECT_EQ(RunWith({"--shape=S=1", "--mix=S=1:1"}).code, kBadInput);
}

}  // namespace
}  // namespace attention::cli
