// Calls with tokens, and without.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "attention/v1/attention.grpc.pb.h"
#include "attention/v1/session.grpc.pb.h"
#include "grpcpp/client_context.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/support/sync_stream.h"
#include "server/auth/token_file.h"
#include "tests/support/certificates.h"
#include "tests/support/messages.h"
#include "tests/support/test_server.h"

namespace attention::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// A line of a file of tokens: the hash of `token`, and the rest.
std::string Line(const std::string& token, const std::string& rest) {
  const server::TokenHash hash = server::HashOf(token);
  return absl::StrCat(
      absl::BytesToHexString(absl::string_view(
          reinterpret_cast<const char*>(hash.data()), hash.size())),
      " ", rest, "\n");
}

class TokensTest : public ::testing::Test {
 protected:
  void Start(const std::string& tokens, bool open_health = false) {
    server::Options options = TestServer::DefaultOptions();
    options.open_health = open_health;
    options.tokens = folder_.Write("tokens", tokens);
    options.reload_interval = absl::Milliseconds(1);
    server_ = std::make_unique<TestServer>(options);
    stub_ =
        v1::AttentionService::NewStub(server_->Channel(Transport::kLoopback));
  }

  static void Authorize(const std::string& token,
                        grpc::ClientContext& context) {
    if (!token.empty()) {
      context.AddMetadata("authorization", "Bearer " + token);
    }
  }
  grpc::Status Compute(const std::string& token) {
    grpc::ClientContext context;
    Authorize(token, context);
    v1::ComputeAttentionResponse response;
    return stub_->ComputeAttention(&context, SmallRequest(), &response);
  }
  grpc::Status GetCapabilities(const std::string& token) {
    grpc::ClientContext context;
    Authorize(token, context);
    v1::GetCapabilitiesResponse response;
    return stub_->GetCapabilities(&context, {}, &response);
  }

  // One call, of a stream if need be, with an empty message or with none.
  grpc::Status Call(const std::string& method, const std::string& token,
                    bool with_message = true) {
    grpc::ClientContext context;
    Authorize(token, context);
    // A watch and a reflection stream do not end by themselves.
    context.set_deadline(std::chrono::system_clock::now() +
                         std::chrono::milliseconds(500));
    grpc::CompletionQueue queue;
    grpc::GenericStub stub(server_->Channel(Transport::kLoopback));
    const auto stream = stub.PrepareCall(&context, method, &queue);
    void* tag;
    bool ok;
    stream->StartCall(nullptr);
    queue.Next(&tag, &ok);
    const grpc::Slice empty;
    const grpc::ByteBuffer message(&empty, 1);
    if (ok && with_message) {
      stream->WriteLast(message, grpc::WriteOptions(), nullptr);
      queue.Next(&tag, &ok);
      // No status comes before the answer has been read.
      grpc::ByteBuffer answer;
      stream->Read(&answer, nullptr);
      queue.Next(&tag, &ok);
    }
    grpc::Status status;
    stream->Finish(&status, nullptr);
    queue.Next(&tag, &ok);
    return status;
  }

  const TestFolder folder_;
  std::unique_ptr<TestServer> server_;
  std::unique_ptr<v1::AttentionService::Stub> stub_;
};

TEST_F(TokensTest, EveryCallNeedsOne) {
  Start(Line("t-a", "a"));
  EXPECT_TRUE(Compute("t-a").ok());
  EXPECT_TRUE(GetCapabilities("t-a").ok());
  for (const auto& status : {Compute(""), GetCapabilities("")}) {
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAUTHENTICATED);
    EXPECT_EQ(status.error_message(),
              "authorization: got no such header, wanted \"Bearer TOKEN\"");
    EXPECT_EQ(DetailsOf(status).reason, "TOKEN_MISSING");
  }
  for (const auto& status : {Compute("t-b"), GetCapabilities("t-b")}) {
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAUTHENTICATED);
    EXPECT_EQ(status.error_message(),
              "authorization: the token is not known here");
    EXPECT_EQ(DetailsOf(status).reason, "TOKEN_UNKNOWN");
  }
}

TEST_F(TokensTest, WithoutOneNothingIsRead) {
  Start(Line("t-a", "a"));
  for (const char* method :
       {"/attention.v1.AttentionService/ComputeAttention",
        "/attention.v1.AttentionService/GetCapabilities",
        "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/List",
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/inference.GRPCInferenceService/ModelInfer",
        "/inference.GRPCInferenceService/ModelStreamInfer",
        "/inference.GRPCInferenceService/ServerLive"}) {
    const grpc::Status status = Call(method, "", /*with_message=*/false);
    EXPECT_EQ(DetailsOf(status).reason, "TOKEN_MISSING") << method;
  }
}

TEST_F(TokensTest, HealthReflectionAndInferencesNeedOneToo) {
  const std::vector<std::string> health = {
      "/grpc.health.v1.Health/Check",
      "/grpc.health.v1.Health/List",
      "/grpc.health.v1.Health/Watch",
      "/inference.GRPCInferenceService/ServerLive",
      "/inference.GRPCInferenceService/ServerReady",
      "/inference.GRPCInferenceService/ModelReady"};
  const std::vector<std::string> reflection = {
      "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
      "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
      "/inference.GRPCInferenceService/ServerMetadata",
      "/inference.GRPCInferenceService/ModelMetadata",
      "/inference.GRPCInferenceService/ModelConfig",
      "/inference.GRPCInferenceService/ModelStatistics",
      "/inference.GRPCInferenceService/RepositoryIndex",
      "/inference.GRPCInferenceService/SystemSharedMemoryStatus",
      "/inference.GRPCInferenceService/SystemSharedMemoryRegister",
      "/inference.GRPCInferenceService/SystemSharedMemoryUnregister",
      "/inference.GRPCInferenceService/CudaSharedMemoryStatus",
      "/inference.GRPCInferenceService/CudaSharedMemoryRegister",
      "/inference.GRPCInferenceService/CudaSharedMemoryUnregister",
      "/inference.GRPCInferenceService/ModelInfer",
      "/inference.GRPCInferenceService/ModelStreamInfer"};
  for (const bool open_health : {false, true}) {
    Start(Line("t-a", "a"), open_health);
    for (const bool is_health : {false, true}) {
      const bool open = open_health && is_health;
      for (const std::string& method : is_health ? health : reflection) {
        const grpc::Status status = Call(method, "");
        EXPECT_EQ(DetailsOf(status).reason == "TOKEN_MISSING", !open)
            << method << " " << status.error_message();
        EXPECT_NE(Call(method, "t-a").error_code(),
                  grpc::StatusCode::UNAUTHENTICATED)
            << method;
      }
    }
  }
}

TEST_F(TokensTest, OnesForProbesDoNotCompute) {
  Start(Line("t-p", "probes 0"));
  EXPECT_TRUE(GetCapabilities("t-p").ok());
  const grpc::Status status = Compute("t-p");
  EXPECT_EQ(status.error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(DetailsOf(status).reason, "TENANT_NOT_ALLOWED");
  for (const char* method :
       {"/inference.GRPCInferenceService/ModelInfer",
        "/inference.GRPCInferenceService/ModelStreamInfer"}) {
    EXPECT_EQ(DetailsOf(Call(method, "t-p")).reason, "TENANT_NOT_ALLOWED");
  }
}

TEST_F(TokensTest, AreReadAgain) {
  Start(Line("t-a", "a"));
  EXPECT_FALSE(Compute("t-b").ok());
  folder_.Write("tokens", Line("t-b", "b"));
  EXPECT_TRUE(WaitUntil([&] { return Compute("t-b").ok(); }));
  EXPECT_EQ(Compute("t-a").error_code(), grpc::StatusCode::UNAUTHENTICATED);
}

// A stream that stays open, of a session "s".
class StepStreamOf {
 public:
  StepStreamOf(v1::SessionService::Stub& stub, const std::string& token) {
    context_.AddMetadata("authorization", "Bearer " + token);
    stream_ = stub.Step(&context_);
  }
  ~StepStreamOf() { context_.TryCancel(); }

  // Whether an attend to the session is answered, well or not.
  bool IsAnswered() {
    v1::StepRequest request;
    v1::StepItem& item = *request.add_items();
    item.set_id("s");
    *item.mutable_query() = RandomTensor(v1::DATA_TYPE_FLOAT32, {1, 1, 64}, 1);
    v1::StepResponse response;
    return stream_->Write(request) && stream_->Read(&response);
  }
  grpc::Status End() { return stream_->Finish(); }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::StepRequest, v1::StepResponse>>
      stream_;
};

// The streams of steps stay open for hours.
TEST_F(TokensTest, OpenStreamsAreLookedAtAgain) {
  Start(Line("t-a", "a") + Line("t-b", "b") + Line("t-c", "c") +
        Line("t-d", "d") + Line("t-old", "e"));
  const auto stub =
      v1::SessionService::NewStub(server_->Channel(Transport::kLoopback));
  StepStreamOf gone(*stub, "t-a"), stays(*stub, "t-b"), moved(*stub, "t-c"),
      probes(*stub, "t-d");
  for (StepStreamOf* stream : {&gone, &stays, &moved, &probes}) {
    EXPECT_TRUE(stream->IsAnswered());
    EXPECT_TRUE(stream->IsAnswered());
  }
  // The same tenant with other numbers; another tenant; one that may not.
  folder_.Write("tokens", Line("t-b", "b 2 64MiB") + Line("t-c", "a") +
                              Line("t-d", "d 0") + Line("t-new", "e"));
  ASSERT_TRUE(WaitUntil([&] { return Compute("t-new").ok(); }));
  EXPECT_TRUE(stays.IsAnswered());
  EXPECT_TRUE(stays.IsAnswered());
  ASSERT_FALSE(gone.IsAnswered());
  grpc::Status status = gone.End();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(status.error_message(),
            "authorization: the token is not known here");
  EXPECT_EQ(DetailsOf(status).reason, "TOKEN_UNKNOWN");
  ASSERT_FALSE(moved.IsAnswered());
  status = moved.End();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_THAT(status.error_message(), HasSubstr("another tenant's since"));
  ASSERT_FALSE(probes.IsAnswered());
  status = probes.End();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(DetailsOf(status).reason, "TENANT_NOT_ALLOWED");
  EXPECT_TRUE(
      WaitUntil([&] { return server_->server().running_calls() == 1; }));
}

TEST_F(TokensTest, ABadFileIsAnErrorAtTheStart) {
  server::Options options = TestServer::DefaultOptions();
  options.tokens = folder_.Write("tokens", Line("t-a", "a 1 x"));
  const auto server = server::Server::Start(options);
  EXPECT_EQ(server.status(),
            absl::InvalidArgumentError(absl::StrCat(
                "--tokens: ", options.tokens,
                ": line 1: bytes in flight: got \"x\", wanted 1048576 to "
                "1125899906842624, such as 64MiB or 2GiB")));
}

TEST_F(TokensTest, MetricsTellOfTenants) {
  Start(Line("t-a", "a") + Line("t-b", "b") + Line("t-p", "probes 0"));
  EXPECT_TRUE(Compute("t-a").ok());
  EXPECT_TRUE(Compute("t-a").ok());
  EXPECT_FALSE(Compute("t-x").ok());
  EXPECT_FALSE(Compute("t-p").ok());
  const std::string text = server_->server().metrics().Text();
  EXPECT_THAT(
      text,
      HasSubstr(
          "attention_tenant_calls_total{tenant=\"a\",result=\"ok\"} 2\n"));
  EXPECT_THAT(
      text,
      HasSubstr(
          "attention_tenant_calls_total{tenant=\"b\",result=\"ok\"} 0\n"));
  EXPECT_THAT(text,
              HasSubstr("attention_refusals_total{reason=\"TOKEN_UNKNOWN\""
                        "} 1\n"));
  EXPECT_THAT(text, HasSubstr("attention_refusals_total{reason=\"TENANT_NOT_"
                              "ALLOWED\"} 1\n"));
  EXPECT_THAT(text, Not(HasSubstr("t-a")));
}

// What its sessions may hold; another tenant's are not among them.
TEST_F(TokensTest, BoundTheSessionsOfATenant) {
  Start(Line("t-a", "a 1 - - 100KiB 2") + Line("t-b", "b"));
  const auto stub =
      v1::SessionService::NewStub(server_->Channel(Transport::kLoopback));
  const auto create = [&](const std::string& token, const std::string& id) {
    grpc::ClientContext context;
    Authorize(token, context);
    v1::CreateSessionRequest request;
    request.set_id(id);
    request.mutable_config()->set_kv_heads(1);
    request.mutable_config()->set_head_size(64);
    v1::CreateSessionResponse response;
    return stub->CreateSession(&context, request, &response);
  };
  const auto append = [&](const std::string& token, const std::string& id) {
    grpc::ClientContext context;
    Authorize(token, context);
    v1::AppendKeyValuesRequest request;
    request.set_id(id);
    *request.mutable_key() =
        RandomTensor(v1::DATA_TYPE_FLOAT32, {1, 256, 64}, 1);
    *request.mutable_value() = request.key();
    v1::AppendKeyValuesResponse response;
    return stub->AppendKeyValues(&context, request, &response);
  };
  for (const char* id : {"1", "2", "3"}) {
    EXPECT_TRUE(create("t-b", id).ok());
    EXPECT_TRUE(append("t-b", id).ok());
  }
  EXPECT_TRUE(create("t-a", "1").ok());
  EXPECT_TRUE(create("t-a", "2").ok());
  EXPECT_EQ(DetailsOf(create("t-a", "3")).reason, "SESSION_COUNT");
  // 128 KiB.
  EXPECT_EQ(DetailsOf(append("t-a", "1")).reason, "SESSION_BYTES");
  EXPECT_THAT(server_->server().metrics().Text(),
              HasSubstr("attention_tenant_sessions{tenant=\"a\"} 2\n"));
}

TEST_F(TokensTest, WithoutAFileEverybodyMayCall) {
  TestServer server;
  stub_ = v1::AttentionService::NewStub(server.Channel(Transport::kLoopback));
  EXPECT_TRUE(Compute("").ok());
  EXPECT_TRUE(Compute("any").ok());
  EXPECT_THAT(server.server().metrics().Text(),
              Not(HasSubstr("attention_tenant_")));
}

}  // namespace
}  // namespace attention::testing
