// grpc.reflection, v1 and v1alpha.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "attention/v1/attention.grpc.pb.h"
#include "google/protobuf/any.pb.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/descriptor.pb.h"
#include "google/protobuf/dynamic_message.h"
#include "grpc/reflection/v1/reflection.pb.h"
#include "server/rpc/described_protos.h"
#include "server/rpc/reflection_service.h"
#include "tests/support/messages.h"
#include "tests/support/raw_call.h"
#include "tests/support/streamed_server.h"
#include "tests/support/test_server.h"

namespace attention::testing {
namespace {

using ::google::protobuf::DescriptorPool;
using ::google::protobuf::FileDescriptorProto;
using ::grpc::reflection::v1::ServerReflectionRequest;
using ::grpc::reflection::v1::ServerReflectionResponse;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

constexpr char kV1[] =
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
constexpr char kV1Alpha[] =
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";
constexpr char kAttentionFile[] = "attention/v1/attention.proto";

ServerReflectionRequest ListServices() {
  ServerReflectionRequest request;
  request.set_list_services("*");
  return request;
}

ServerReflectionRequest FileOf(const std::string& symbol) {
  ServerReflectionRequest request;
  request.set_file_containing_symbol(symbol);
  return request;
}

// The messages of v1alpha are those of v1.
ServerReflectionResponse Ask(RawStream& stream,
                             const ServerReflectionRequest& request) {
  EXPECT_TRUE(stream.Write(request.SerializeAsString()));
  ServerReflectionResponse response;
  EXPECT_TRUE(response.ParseFromString(stream.Read().value_or("\xff")));
  return response;
}

std::vector<std::string> ServicesOf(const ServerReflectionResponse& response) {
  std::vector<std::string> names;
  for (const auto& service : response.list_services_response().service()) {
    names.push_back(service.name());
  }
  return names;
}

std::vector<FileDescriptorProto> FilesOf(
    const ServerReflectionResponse& response) {
  std::vector<FileDescriptorProto> files;
  const auto& serialized =
      response.file_descriptor_response().file_descriptor_proto();
  for (const std::string& file : serialized) {
    EXPECT_TRUE(files.emplace_back().ParseFromString(file));
  }
  return files;
}

// Every file comes after what it imports, as a pool wants them.
void AddTo(DescriptorPool& pool, const ServerReflectionResponse& response) {
  const std::vector<FileDescriptorProto> files = FilesOf(response);
  ASSERT_FALSE(files.empty()) << response.ShortDebugString();
  for (auto file = files.rbegin(); file != files.rend(); ++file) {
    if (pool.FindFileByName(file->name()) != nullptr) continue;
    EXPECT_NE(pool.BuildFile(*file), nullptr) << file->name();
  }
}

class ReflectionTest : public ::testing::TestWithParam<const char*> {
 protected:
  TestServer server_;
  RawStream stream_{server_.Channel(Transport::kLoopback), GetParam()};
};

TEST_P(ReflectionTest, ListsEveryService) {
  EXPECT_THAT(
      ServicesOf(Ask(stream_, ListServices())),
      ElementsAre("attention.v1.AttentionService",
                  "attention.v1.SessionService",
                  "inference.GRPCInferenceService", "grpc.health.v1.Health",
                  "grpc.reflection.v1.ServerReflection",
                  "grpc.reflection.v1alpha.ServerReflection"));
}

TEST_P(ReflectionTest, DescribesWhatItLists) {
  DescriptorPool pool;
  int methods = 0;
  for (const std::string& name : ServicesOf(Ask(stream_, ListServices()))) {
    AddTo(pool, Ask(stream_, FileOf(name)));
    const auto* service = pool.FindServiceByName(name);
    ASSERT_NE(service, nullptr) << name;
    methods += service->method_count();
  }
  EXPECT_EQ(methods, 3 + 9 + 16 + 3 + 1 + 1);
}

TEST_P(ReflectionTest, FindsTheFileOfASymbolOfAnyKind) {
  for (const char* symbol :
       {"attention.v1.AttentionService",
        "attention.v1.AttentionService.ComputeAttention",
        "attention.v1.ComputeAttentionRequest",
        "attention.v1.ComputeAttentionRequest.query", "attention.v1.DataType",
        "attention.v1.DATA_TYPE_FLOAT32"}) {
    const auto files = FilesOf(Ask(stream_, FileOf(symbol)));
    ASSERT_FALSE(files.empty()) << symbol;
    EXPECT_EQ(files[0].name(), kAttentionFile) << symbol;
  }
}

TEST_P(ReflectionTest, FindsAFileByName) {
  ServerReflectionRequest request;
  request.set_host("a.host");
  request.set_file_by_filename(kAttentionFile);
  const ServerReflectionResponse response = Ask(stream_, request);
  EXPECT_EQ(FilesOf(response).at(0).package(), "attention.v1");
  EXPECT_EQ(response.valid_host(), "a.host");
  EXPECT_EQ(response.original_request().SerializeAsString(),
            request.SerializeAsString());
}

TEST_P(ReflectionTest, FieldsHaveTheirNamesInJson) {
  const auto files =
      FilesOf(Ask(stream_, FileOf("attention.v1.Tensor.float_values")));
  std::string name;
  for (const auto& message : files.at(0).message_type()) {
    for (const auto& field : message.field()) {
      if (field.name() == "float_values") name = field.json_name();
    }
  }
  EXPECT_EQ(name, "floatValues");
}

// What a tool needs that knows nothing but the server.
TEST_P(ReflectionTest, DescribesTheDetailsOfAnError) {
  v1::ComputeAttentionRequest bad = SmallRequest();
  bad.mutable_key()->set_shape(0, 17);
  grpc::ClientContext context;
  v1::ComputeAttentionResponse ignored;
  const grpc::Status status =
      v1::AttentionService::NewStub(server_.Channel(Transport::kLoopback))
          ->ComputeAttention(&context, bad, &ignored);
  ASSERT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);

  DescriptorPool pool;
  for (const char* name : {"google.rpc.Status", "google.rpc.BadRequest",
                           "google.rpc.ErrorInfo", "google.rpc.RetryInfo"}) {
    AddTo(pool, Ask(stream_, FileOf(name)));
    EXPECT_NE(pool.FindMessageTypeByName(name), nullptr) << name;
  }
  google::protobuf::DynamicMessageFactory messages;
  const auto parsed = [&](const std::string& type, const std::string& bytes) {
    std::unique_ptr<google::protobuf::Message> message(
        messages.GetPrototype(pool.FindMessageTypeByName(type))->New());
    EXPECT_TRUE(message->ParseFromString(bytes));
    return message;
  };
  const auto all = parsed("google.rpc.Status", status.error_details());
  EXPECT_THAT(all->ShortDebugString(),
              AllOf(HasSubstr("code: 3"), HasSubstr("key.data")));
  const auto& detail = all->GetReflection()->GetRepeatedMessage(
      *all, all->GetDescriptor()->FindFieldByName("details"), 0);
  google::protobuf::Any any;
  ASSERT_TRUE(any.ParseFromString(detail.SerializeAsString()));
  EXPECT_EQ(any.type_url(), "type.googleapis.com/google.rpc.BadRequest");
  EXPECT_THAT(parsed("google.rpc.BadRequest", any.value())->ShortDebugString(),
              HasSubstr("field_violations { field: \"key.data\""));
}

TEST_P(ReflectionTest, TellsWhatThereIsNotAndGoesOn) {
  const auto error = [&](const ServerReflectionRequest& request) {
    const auto response = Ask(stream_, request).error_response();
    return std::pair(response.error_code(), response.error_message());
  };
  ServerReflectionRequest file, extension, numbers;
  file.set_file_by_filename("no/such.proto");
  extension.mutable_file_containing_extension()->set_containing_type(
      "attention.v1.Tensor");
  extension.mutable_file_containing_extension()->set_extension_number(5);
  numbers.set_all_extension_numbers_of_type("no.such.Message");
  EXPECT_EQ(error(file), std::pair(5, std::string("there is no file "
                                                  "\"no/such.proto\"")));
  EXPECT_EQ(error(FileOf("no.such.Symbol")),
            std::pair(5, std::string("there is no symbol \"no.such.Symbol\"")));
  EXPECT_EQ(error(extension),
            std::pair(5, std::string("there is no extension 5 "
                                     "of \"attention.v1."
                                     "Tensor\"")));
  EXPECT_EQ(
      error(numbers),
      std::pair(5, std::string("there is no message \"no.such.Message\"")));
  EXPECT_EQ(error({}),
            std::pair(3, std::string("message_request: got none that "
                                     "the server knows, wanted "
                                     "one")));
  EXPECT_EQ(ServicesOf(Ask(stream_, ListServices())).size(), 6);
}

TEST_P(ReflectionTest, ABadMessageEndsItsStream) {
  ASSERT_TRUE(stream_.Write("\xff\xff"));
  ASSERT_EQ(stream_.Read(), std::nullopt);
  const grpc::Status status = stream_.Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(status.error_message(),
            "the request is not a valid "
            "grpc.reflection.v1.ServerReflectionRequest message");
}

TEST_P(ReflectionTest, AHugeMessageEndsItsStream) {
  ASSERT_TRUE(
      stream_.Write(FileOf(std::string(65536, 'a')).SerializeAsString()));
  ASSERT_EQ(stream_.Read(), std::nullopt);
  EXPECT_EQ(stream_.Finish().error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_P(ReflectionTest, SilentStreamsHoldUpNobody) {
  std::vector<std::unique_ptr<RawStream>> silent;
  const auto channel = server_.Channel(Transport::kLoopback);
  for (int i = 0; i < 200; ++i) {
    silent.push_back(std::make_unique<RawStream>(channel, GetParam()));
  }
  EXPECT_EQ(ServicesOf(Ask(stream_, ListServices())).size(), 6);
  const auto stub = v1::AttentionService::NewStub(channel);
  grpc::ClientContext context;
  v1::ComputeAttentionResponse response;
  EXPECT_TRUE(stub->ComputeAttention(&context, SmallRequest(), &response).ok());
  EXPECT_EQ(HealthOf(channel, ""), "SERVING");
}

INSTANTIATE_TEST_SUITE_P(Versions, ReflectionTest,
                         ::testing::Values(kV1, kV1Alpha),
                         [](const auto& info) {
                           return std::string(info.param) == kV1 ? "V1"
                                                                 : "V1Alpha";
                         });

TEST(ReflectionServiceTest, OneStreamTooManyIsRefusedUntilAnotherGoes) {
  server::ReflectionService reflection({}, /*max_streams=*/2);
  StreamedServer server(
      [&](server::StreamedService& service) { reflection.AddTo(service); });
  const auto channel = server.Channel();
  RawStream first(channel, kV1);
  auto second = std::make_unique<RawStream>(channel, kV1Alpha);
  EXPECT_EQ(ServicesOf(Ask(first, ListServices())).size(), 2);
  EXPECT_EQ(ServicesOf(Ask(*second, ListServices())).size(), 2);
  RawStream third(channel, kV1);
  ASSERT_EQ(third.Read(), std::nullopt);
  const grpc::Status refused = third.Finish();
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(refused.error_message(),
            "the server has 2 reflection streams, as many as it takes");
  second.reset();
  EXPECT_TRUE(WaitUntil([&] {
    RawStream next(channel, kV1);
    return next.Write(ListServices().SerializeAsString()) &&
           next.Read().has_value();
  }));
}

// Of a file that nothing here needs: two extensions of one message.
TEST(ReflectionServiceTest, FindsExtensions) {
  FileDescriptorProto file;
  file.set_name("extensions.proto");
  file.set_package("test");
  auto* message = file.add_message_type();
  message->set_name("Extended");
  auto* range = message->add_extension_range();
  range->set_start(100);
  range->set_end(200);
  for (const int number : {100, 150}) {
    auto* extension = file.add_extension();
    extension->set_name("extension" + std::to_string(number));
    extension->set_number(number);
    extension->set_extendee(".test.Extended");
    extension->set_label(
        google::protobuf::FieldDescriptorProto::LABEL_OPTIONAL);
    extension->set_type(google::protobuf::FieldDescriptorProto::TYPE_INT32);
  }
  DescriptorPool pool;
  const server::DescribedProtos protos({pool.BuildFile(file)});

  ServerReflectionRequest numbers, containing;
  numbers.set_all_extension_numbers_of_type("test.Extended");
  const auto found = server::Reflect(protos, numbers);
  EXPECT_EQ(found.all_extension_numbers_response().base_type_name(),
            "test.Extended");
  EXPECT_THAT(found.all_extension_numbers_response().extension_number(),
              UnorderedElementsAre(100, 150));
  containing.mutable_file_containing_extension()->set_containing_type(
      "test.Extended");
  containing.mutable_file_containing_extension()->set_extension_number(150);
  EXPECT_EQ(FilesOf(server::Reflect(protos, containing)).at(0).name(),
            "extensions.proto");
}

}  // namespace
}  // namespace attention::testing
