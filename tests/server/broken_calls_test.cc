// Calls that are not as gRPC's clients make them, or break off: what the client
// is told, and the one line in the log.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <functional>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "attention/v1/attention.pb.h"
#include "grpcpp/grpcpp.h"
#include "tests/support/http2_client.h"
#include "tests/support/messages.h"
#include "tests/support/pipe.h"
#include "tests/support/stream_client.h"
#include "tests/support/subprocess.h"

namespace attention::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kCompute[] = "/attention.v1.AttentionService/ComputeAttention";
constexpr char kStream[] = "/attention.v1.AttentionService/StreamAttention";
constexpr char kCapabilities[] =
    "/attention.v1.AttentionService/GetCapabilities";
constexpr char kCheck[] = "/grpc.health.v1.Health/Check";
constexpr char kList[] = "/grpc.health.v1.Health/List";
constexpr char kWatch[] = "/grpc.health.v1.Health/Watch";
constexpr char kReflection[] =
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

bool IsGrpc151() { return absl::StartsWith(grpc::Version(), "1.51."); }

// The program, its log, and a connection.
class BrokenCalls {
 public:
  BrokenCalls()
      : server_({ATTENTION_SERVER_PATH, "--listen=127.0.0.1:0"},
                {.standard_output = output_.writer(),
                 .standard_error = log_.writer()}),
        client_(Address()) {}
  ~BrokenCalls() {
    server_.Signal(SIGTERM);
    // No call has more than the line that the test asked for.
    EXPECT_THAT(log_.ReadUntil("event=stop"), Not(HasSubstr("event=call")));
    EXPECT_EQ(server_.Wait().exit_code, 0);
  }

  Http2Client& client() { return client_; }
  // The next line about a call.
  std::string Line() {
    std::string before = log_.ReadUntil("event=call");
    return before.substr(before.rfind("ts=")) + log_.ReadUntil("\n");
  }

 private:
  std::string Address() {
    output_.ReadUntil("listening on ");
    std::string line = output_.ReadUntil("\n");
    line.pop_back();
    return line;
  }

  Pipe output_, log_;
  Subprocess server_;
  Http2Client client_;
};

std::string Message() { return SmallRequest().SerializeAsString(); }
std::string StreamHeader() {
  return StreamOf(SmallRequest()).Header().SerializeAsString();
}
std::string StreamChunk() {
  return StreamOf(SmallRequest()).Chunk(0, 2).SerializeAsString();
}

struct Broken {
  const char* name;
  // Makes the call, and returns its stream.
  std::function<uint32_t(Http2Client&)> call;
  // What the client gets, and what the line has.
  std::string status;
  std::vector<std::string> line;
};

// A call of `path` whose body is `body`.
std::function<uint32_t(Http2Client&)> Call(const std::string& path,
                                           const std::string& body,
                                           const HeaderList& more = {}) {
  return [=](Http2Client& client) {
    HeaderList headers = GrpcHeaders(path);
    for (const auto& [name, value] : more) {
      if (name == headers.back().first) headers.pop_back();
      headers.emplace_back(name, value);
    }
    const uint32_t stream = client.Call(headers);
    client.SendData(stream, body, /*last=*/true);
    return stream;
  };
}

const Broken kBroken[] = {
    {"NoBody",
     [](Http2Client& client) {
       return client.Call(GrpcHeaders(kCompute), /*last=*/true);
     },
     "3",
     {"rpc=ComputeAttention code=INVALID_ARGUMENT",
      "error=\"got none, wanted one request message\""}},
    {"Json",
     Call(kCompute, R"({"query": {"shape": [2, 2]}})",
          {{"content-type", "application/json"}}),
     "3",
     {"rpc=ComputeAttention code=INVALID_ARGUMENT"}},
    {"CompressedWithoutSayingHow",
     Call(kCompute, GrpcMessage("\x1f\x8b", true)),
     "3",
     {"rpc=ComputeAttention code=INVALID_ARGUMENT"}},
    // gRPC 1.51 hands on a call whose encoding it does not know. 1.83 ends it
    // itself, INTERNAL by "Error parsing 'grpc-encoding' metadata", when the
    // server has begun it.
    {"CompressedAsNobodyKnows",
     Call(kCompute, GrpcMessage("\x1f\x8b", true), {{"grpc-encoding", "zstd"}}),
     IsGrpc151() ? "3" : "13",
     {IsGrpc151() ? "rpc=ComputeAttention code=INVALID_ARGUMENT"
                  : "rpc=ComputeAttention code=CANCELLED"}},
    {"Compressed",
     Call(kCompute, GrpcMessage("\x1f\x8b", true), {{"grpc-encoding", "gzip"}}),
     "12",
     {"rpc=ComputeAttention code=CANCELLED"}},
    {"StreamWithoutAMessage",
     Call(kStream, ""),
     "3",
     {"rpc=StreamAttention code=INVALID_ARGUMENT", "reason=MALFORMED_MESSAGE",
      "error=\"got no message, wanted a header and chunks\""}},
    {"StreamOfHalfAHeader",
     Call(kStream, GrpcMessage(StreamHeader()).substr(0, 50)),
     "3",
     {"rpc=StreamAttention code=INVALID_ARGUMENT"}},
    {"StreamWithoutChunks",
     Call(kStream, GrpcMessage(StreamHeader())),
     "3",
     {"rpc=StreamAttention code=INVALID_ARGUMENT", "reason=MALFORMED_MESSAGE",
      " query=\"(1, 2, 3, 4)\"", " tokens=5 ",
      "error=\"the stream ended after 0 tokens, wanted 5\""}},
    {"CompressedStream",
     Call(kStream, GrpcMessage("\x1f\x8b", true), {{"grpc-encoding", "gzip"}}),
     "12",
     {"rpc=StreamAttention code=CANCELLED"}},
    {"UnknownMethod",
     Call("/attention.v1.AttentionService/Nothing", ""),
     "12",
     {"rpc=other code=UNIMPLEMENTED", "reason=UNKNOWN_METHOD",
      "error=\"there is no method /attention.v1.AttentionService/Nothing\""}},
    {"UnknownMethodWithLargeHeaders",
     Call("/a.b/c", "", {{"x-large", std::string(100000, 'x')}}),
     "8",
     {"rpc=other code=RESOURCE_EXHAUSTED", "reason=HEADERS_TOO_LARGE"}},
    {"ReflectionWithLargeHeaders",
     Call(kReflection, GrpcMessage(""),
          {{"x-large", std::string(100000, 'x')}}),
     "8",
     {"rpc=Reflection code=RESOURCE_EXHAUSTED", "reason=HEADERS_TOO_LARGE"}},
    {"ReflectionOfNoProtobuf",
     Call(kReflection, GrpcMessage("\xff\xff")),
     "3",
     {"rpc=Reflection code=INVALID_ARGUMENT", "reason=MALFORMED_MESSAGE",
      "error=\"the request is not a valid "}},
    {"UnknownService",
     Call("/a.b/c", GrpcMessage("")),
     "12",
     {"rpc=other code=UNIMPLEMENTED", "reason=UNKNOWN_METHOD"}},
    {"CheckOfAnUnknownService",
     Call(kCheck, GrpcMessage("\x0a\x01x")),
     "5",
     {"rpc=Health/Check code=NOT_FOUND", "reason=UNKNOWN_SERVICE"}},
};

void ExpectToldAndLoggedOnce(const Broken& expected) {
  SCOPED_TRACE(expected.name);
  BrokenCalls broken;
  const uint32_t stream = expected.call(broken.client());
  const std::string answer = broken.client().ReadAnswer(stream);
  EXPECT_TRUE(HasHeader(answer, "grpc-status", expected.status)) << answer;
  const std::string line = broken.Line();
  EXPECT_THAT(line, HasSubstr(" level=info "));
  for (const std::string& part : expected.line) {
    EXPECT_THAT(line, HasSubstr(part));
  }
}

class BrokenCallTest : public ::testing::TestWithParam<Broken> {};

TEST_P(BrokenCallTest, IsToldAndLoggedOnce) {
  ExpectToldAndLoggedOnce(GetParam());
}

INSTANTIATE_TEST_SUITE_P(All, BrokenCallTest, ::testing::ValuesIn(kBroken),
                         [](const auto& info) { return info.param.name; });

// A method, as the client and as the log names it.
struct Method {
  const char* path;
  const char* name;
};

// What ends a call of any method in the same way.
std::vector<Broken> BrokenAnyway(const Method& method) {
  const std::string rpc = absl::StrCat("rpc=", method.name, " code=");
  return {{"LargeHeaders",
           Call(method.path, GrpcMessage(""),
                {{"x-large", std::string(100000, 'x')}}),
           "8",
           {rpc + "RESOURCE_EXHAUSTED", "reason=HEADERS_TOO_LARGE",
            "error=\"the call\\'s headers: got 1 of 100039 bytes in all, "}},
          {"NoMessage",
           Call(method.path, ""),
           "3",
           {rpc + "INVALID_ARGUMENT", "reason=MALFORMED_MESSAGE",
            "error=\"got none, wanted one request message\""}},
          {"HalfAMessage",
           Call(method.path, GrpcMessage("\x0a\x01x").substr(0, 6)),
           "3",
           {rpc + "INVALID_ARGUMENT", "reason=MALFORMED_MESSAGE",
            "error=\"got none, wanted one request message\""}},
          {"TwoMessages",
           Call(method.path, GrpcMessage("") + GrpcMessage("")),
           "3",
           {rpc + "INVALID_ARGUMENT", "reason=MALFORMED_MESSAGE",
            "error=\"got more than one, wanted one request message\""}},
          {"NoProtobuf",
           Call(method.path, GrpcMessage("\xff\xff")),
           "3",
           {rpc + "INVALID_ARGUMENT", "reason=MALFORMED_MESSAGE",
            "error=\"the request is not a valid "}},
          {"Compressed",
           Call(method.path, GrpcMessage("\x1f\x8b", true),
                {{"grpc-encoding", "gzip"}}),
           "12",
           {rpc + "CANCELLED"}}};
}

class BrokenAnywayTest : public ::testing::TestWithParam<Method> {};

TEST_P(BrokenAnywayTest, IsToldAndLoggedOnce) {
  for (const Broken& expected : BrokenAnyway(GetParam())) {
    ExpectToldAndLoggedOnce(expected);
  }
}

INSTANTIATE_TEST_SUITE_P(All, BrokenAnywayTest,
                         ::testing::Values(Method{kCompute, "ComputeAttention"},
                                           Method{kCapabilities,
                                                  "GetCapabilities"},
                                           Method{kCheck, "Health/Check"},
                                           Method{kList, "Health/List"},
                                           Method{kWatch, "Health/Watch"}),
                         [](const auto& info) {
                           return absl::StrReplaceAll(info.param.name,
                                                      {{"/", ""}});
                         });

// How a client leaves while it sends.
struct Leaving {
  const char* name;
  std::function<void(Http2Client&, uint32_t)> leave;
};

class LeavingTest
    : public ::testing::TestWithParam<std::tuple<Leaving, size_t>> {};

TEST_P(LeavingTest, IsNoErrorOfTheServer) {
  const auto& [leaving, bytes] = GetParam();
  BrokenCalls broken;
  const uint32_t stream = broken.client().Call(GrpcHeaders(kCompute));
  broken.client().SendData(stream, GrpcMessage(Message()).substr(0, bytes),
                           /*last=*/false);
  // So the server has begun to read.
  EXPECT_TRUE(broken.client().Ping());
  leaving.leave(broken.client(), stream);
  EXPECT_THAT(broken.Line(),
              AllOf(HasSubstr(" level=info "),
                    HasSubstr("rpc=ComputeAttention code=CANCELLED")));
}

INSTANTIATE_TEST_SUITE_P(
    All, LeavingTest,
    ::testing::Combine(
        ::testing::Values(
            Leaving{"Cancels", [](Http2Client& client,
                                  uint32_t stream) { client.Cancel(stream); }},
            Leaving{"Vanishes",
                    [](Http2Client& client, uint32_t) { client.Vanish(); }}),
        // Nothing, a part of the length, of the message, the whole message.
        ::testing::Values(0, 3, 50, 1000)),
    [](const auto& info) {
      return std::string(std::get<0>(info.param).name) +
             std::to_string(std::get<1>(info.param));
    });

TEST(LeavingStreamsTest, IsNoErrorOfTheServer) {
  const std::string messages = GrpcMessage(StreamHeader()) +
                               GrpcMessage(StreamChunk()) +
                               GrpcMessage(StreamChunk());
  for (const size_t bytes :
       {size_t{0}, size_t{50}, GrpcMessage(StreamHeader()).size(),
        messages.size() - 20, messages.size()}) {
    BrokenCalls broken;
    const uint32_t stream = broken.client().Call(GrpcHeaders(kStream));
    broken.client().SendData(stream, messages.substr(0, bytes),
                             /*last=*/false);
    EXPECT_TRUE(broken.client().Ping());
    broken.client().Cancel(stream);
    EXPECT_THAT(broken.Line(),
                AllOf(HasSubstr(" level=info "),
                      HasSubstr("rpc=StreamAttention code=CANCELLED")));
  }
}

TEST(LeavingOtherMethodsTest, IsNoErrorOfTheServer) {
  for (const char* path : {kCapabilities, kCheck, kList, kWatch, kReflection}) {
    // A connection each: gRPC bears few pings that follow each other at once.
    BrokenCalls broken;
    const uint32_t stream = broken.client().Call(GrpcHeaders(path));
    broken.client().SendData(stream, GrpcMessage(Message()).substr(0, 50),
                             /*last=*/false);
    EXPECT_TRUE(broken.client().Ping());
    broken.client().Cancel(stream);
    EXPECT_THAT(broken.Line(),
                AllOf(HasSubstr(" level=info "), HasSubstr("code=CANCELLED")));
  }
}

TEST(TimeoutTest, DuringAnUploadIsLoggedAsOne) {
  BrokenCalls broken;
  HeaderList headers = GrpcHeaders(kCompute);
  headers.emplace_back("grpc-timeout", "300m");
  const uint32_t stream = broken.client().Call(headers);
  broken.client().SendData(stream, GrpcMessage(Message()).substr(0, 50),
                           /*last=*/false);
  EXPECT_TRUE(
      HasHeader(broken.client().ReadAnswer(stream), "grpc-status", "4"));
  EXPECT_THAT(broken.Line(),
              AllOf(HasSubstr(" level=info "),
                    HasSubstr("rpc=ComputeAttention code=DEADLINE_EXCEEDED")));
}

TEST(CallerIdsTest, AreOnTheLineOfTheirCallAndNowhereElse) {
  BrokenCalls broken;
  HeaderList headers = GrpcHeaders(kCompute);
  headers.emplace_back(
      "traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
  headers.emplace_back("x-request-id", "17\" level=error event=\"stop");
  broken.client().Call(headers, /*last=*/true);
  EXPECT_THAT(broken.Line(),
              HasSubstr(" code=INVALID_ARGUMENT "
                        "trace_id=0af7651916cd43dd8448eb211c80319c "
                        "parent_id=b7ad6b7169203331 "
                        "request_id=\"17\\\" level=error event=\\\"stop\" "
                        "request_bytes="));
  // Neither may end a line or drive a terminal.
  for (const std::string id : {"a\nlevel=error", "\x1b[2J", "\xff"}) {
    headers.back().second = id;
    const uint32_t stream = broken.client().Call(headers, /*last=*/true);
    broken.client().ReadAnswer(stream);
    EXPECT_THAT(broken.Line(), Not(HasSubstr("request_id=")));
  }
}

}  // namespace
}  // namespace attention::testing
