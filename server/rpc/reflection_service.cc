#include "server/rpc/reflection_service.h"

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "grpc/reflection/v1alpha/reflection.pb.h"
#include "server/rpc/raw_call.h"
#include "server/status.h"

namespace attention::server {

namespace v1alpha = ::grpc::reflection::v1alpha;
using ::google::protobuf::Descriptor;
using ::google::protobuf::FieldDescriptor;
using ::google::protobuf::FileDescriptor;
using ::grpc::reflection::v1::ExtensionRequest;
using ::grpc::reflection::v1::ServerReflectionRequest;
using ::grpc::reflection::v1::ServerReflectionResponse;

namespace {

void SetError(grpc::StatusCode code, std::string message,
              ServerReflectionResponse* response) {
  auto* error = response->mutable_error_response();
  error->set_error_code(code);
  error->set_error_message(std::move(message));
}

void SetNotFound(absl::string_view kind, absl::string_view name,
                 ServerReflectionResponse* response) {
  SetError(grpc::StatusCode::NOT_FOUND,
           absl::StrCat("there is no ", kind, " \"", name, "\""), response);
}

void SetFile(const FileDescriptor& file, ServerReflectionResponse* response) {
  auto* files = response->mutable_file_descriptor_response();
  for (std::string& proto : WithImports(file)) {
    files->add_file_descriptor_proto(std::move(proto));
  }
}

void SetFileOfExtension(const DescribedProtos& protos,
                        const ExtensionRequest& request,
                        ServerReflectionResponse* response) {
  const std::string& type = request.containing_type();
  const Descriptor* extended = protos.pool().FindMessageTypeByName(type);
  if (extended == nullptr) return SetNotFound("message", type, response);
  const FieldDescriptor* extension =
      protos.pool().FindExtensionByNumber(extended, request.extension_number());
  if (extension == nullptr) {
    return SetNotFound(
        absl::StrCat("extension ", request.extension_number(), " of"), type,
        response);
  }
  SetFile(*extension->file(), response);
}

void SetExtensionNumbers(const DescribedProtos& protos, const std::string& type,
                         ServerReflectionResponse* response) {
  const Descriptor* extended = protos.pool().FindMessageTypeByName(type);
  if (extended == nullptr) return SetNotFound("message", type, response);
  std::vector<const FieldDescriptor*> extensions;
  protos.pool().FindAllExtensions(extended, &extensions);
  auto* numbers = response->mutable_all_extension_numbers_response();
  numbers->set_base_type_name(type);
  for (const FieldDescriptor* extension : extensions) {
    numbers->add_extension_number(extension->number());
  }
}

}  // namespace

ServerReflectionResponse Reflect(const DescribedProtos& protos,
                                 const ServerReflectionRequest& request) {
  ServerReflectionResponse response;
  response.set_valid_host(request.host());
  *response.mutable_original_request() = request;
  const auto& pool = protos.pool();
  switch (request.message_request_case()) {
    case ServerReflectionRequest::kFileByFilename: {
      const std::string& name = request.file_by_filename();
      const FileDescriptor* file = pool.FindFileByName(name);
      file != nullptr ? SetFile(*file, &response)
                      : SetNotFound("file", name, &response);
      break;
    }
    case ServerReflectionRequest::kFileContainingSymbol: {
      const std::string& name = request.file_containing_symbol();
      const FileDescriptor* file = pool.FindFileContainingSymbol(name);
      file != nullptr ? SetFile(*file, &response)
                      : SetNotFound("symbol", name, &response);
      break;
    }
    case ServerReflectionRequest::kFileContainingExtension:
      SetFileOfExtension(protos, request.file_containing_extension(),
                         &response);
      break;
    case ServerReflectionRequest::kAllExtensionNumbersOfType:
      SetExtensionNumbers(protos, request.all_extension_numbers_of_type(),
                          &response);
      break;
    case ServerReflectionRequest::kListServices:
      for (const std::string& service : protos.services()) {
        response.mutable_list_services_response()->add_service()->set_name(
            service);
      }
      break;
    case ServerReflectionRequest::MESSAGE_REQUEST_NOT_SET:
      SetError(grpc::StatusCode::INVALID_ARGUMENT,
               "message_request: got none that the server knows, wanted one",
               &response);
      break;
  }
  return response;
}

// Reads a request, answers it, reads the next. One operation is open at all
// times, which fails when the call is cancelled.
class ReflectionService::Stream final : public RawCall {
 public:
  Stream(ReflectionService& service, const CallEnvironment& environment,
         grpc::GenericCallbackServerContext* context)
      : RawCall(environment, {"Reflection", Access::kTenants}, context),
        service_(service) {}
  ~Stream() override {
    if (entered_) service_.streams_.fetch_sub(1, std::memory_order_relaxed);
  }

 private:
  absl::Status Begin() override {
    entered_ = true;
    if (service_.streams_.fetch_add(1, std::memory_order_relaxed) <
        service_.max_streams_) {
      return absl::OkStatus();
    }
    return RetryLater(Reason::kTooManyStreams,
                      absl::StrCat("the server has ", service_.max_streams_,
                                   " reflection streams, as many as it takes"),
                      absl::Seconds(1));
  }

  void Received(const grpc::ByteBuffer& message) override {
    ServerReflectionRequest request;
    const absl::Status status = ParseMessage(message, &request);
    if (!status.ok()) return Fail(status);
    response_ = MessageBytes(Reflect(service_.protos_, request));
    HandOver();
    StartWrite(&response_);
  }

  void NoMore() override { End(absl::OkStatus()); }

  void OnWriteDone(bool ok) override {
    HandOver();
    response_.Clear();
    ok ? ReadNext() : Fail(CallCancelled());
    HandOver();
  }

  ReflectionService& service_;
  bool entered_ = false;
  grpc::ByteBuffer response_;
};

namespace {

std::vector<const FileDescriptor*> WithReflection(
    std::vector<const FileDescriptor*> files) {
  files.push_back(ServerReflectionRequest::descriptor()->file());
  files.push_back(v1alpha::ServerReflectionRequest::descriptor()->file());
  return files;
}

}  // namespace

ReflectionService::ReflectionService(std::vector<const FileDescriptor*> files,
                                     int max_streams)
    : protos_(WithReflection(std::move(files))), max_streams_(max_streams) {}

void ReflectionService::AddTo(StreamedService& service) {
  const auto start = [this, &environment = service.environment()](
                         grpc::GenericCallbackServerContext* context) {
    return StartRawCall<Stream>(*this, environment, context);
  };
  for (const char* package : {"v1", "v1alpha"}) {
    service.Add(absl::StrCat("/grpc.reflection.", package,
                             ".ServerReflection/ServerReflectionInfo"),
                start);
  }
}

}  // namespace attention::server
