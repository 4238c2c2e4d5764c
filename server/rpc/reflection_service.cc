#include "server/rpc/reflection_service.h"

#include <new>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "grpc/reflection/v1/reflection.grpc.pb.h"
#include "grpc/reflection/v1alpha/reflection.grpc.pb.h"
#include "grpcpp/support/proto_buffer_reader.h"
#include "server/admission/refusals.h"
#include "server/rpc/refused_call.h"
#include "server/status.h"

namespace attention::server {

namespace v1alpha = ::grpc::reflection::v1alpha;
using ::google::protobuf::Descriptor;
using ::google::protobuf::FieldDescriptor;
using ::google::protobuf::FileDescriptor;
using ::grpc::reflection::v1::ExtensionRequest;
using ::grpc::reflection::v1::ServerReflection;
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
class ReflectionService::Stream final : public Reactor {
 public:
  Stream(ReflectionService& service, grpc::CallbackServerContext& context)
      : service_(service), context_(context) {
    HandOver();
    StartRead(&request_);
  }
  ~Stream() override {
    service_.streams_.fetch_sub(1, std::memory_order_relaxed);
  }

  void OnReadDone(bool ok) override {
    HandOver();
    if (!ok) {
      return Finish(context_.IsCancelled()
                        ? grpc::Status(grpc::StatusCode::CANCELLED, "")
                        : grpc::Status::OK);
    }
    grpc::Status status;
    try {
      status = ToGrpcStatus(Answer());
    } catch (const std::bad_alloc&) {
      status = grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "");
    }
    HandOver();
    if (!status.ok()) return Finish(status);
    StartWrite(&response_);
  }

  void OnWriteDone(bool ok) override {
    HandOver();
    response_.Clear();
    HandOver();
    if (!ok) return Finish(grpc::Status(grpc::StatusCode::CANCELLED, ""));
    StartRead(&request_);
  }

  void OnDone() override {
    HandOver();
    delete this;
  }

 private:
  // gRPC orders what it calls, but ThreadSanitizer does not see into it.
  void HandOver() { handovers_.fetch_add(1, std::memory_order_acq_rel); }

  absl::Status Answer() {
    const auto bytes = static_cast<int64_t>(request_.Length());
    if (bytes > kMaxRequestBytes) {
      return WithReason(Reason::kRequestTooLarge,
                        absl::ResourceExhaustedError(absl::StrCat(
                            "the request has ", bytes,
                            " bytes, wanted at most ", kMaxRequestBytes)));
    }
    ServerReflectionRequest request;
    grpc::ProtoBufferReader reader(&request_);
    if (!reader.status().ok() || !request.ParseFromZeroCopyStream(&reader)) {
      return absl::InvalidArgumentError(
          "the message is no ServerReflectionRequest");
    }
    request_.Clear();
    const grpc::Slice slice(
        Reflect(service_.protos_, request).SerializeAsString());
    response_ = grpc::ByteBuffer(&slice, 1);
    return absl::OkStatus();
  }

  ReflectionService& service_;
  grpc::CallbackServerContext& context_;
  std::atomic<int> handovers_{0};
  grpc::ByteBuffer request_;
  grpc::ByteBuffer response_;
};

template <typename Service>
class ReflectionService::Version final
    : public Service::template WithRawCallbackMethod_ServerReflectionInfo<
          typename Service::Service> {
 public:
  explicit Version(ReflectionService& service) : service_(service) {}

  Reactor* ServerReflectionInfo(grpc::CallbackServerContext* context) override {
    return service_.Start(*context);
  }

 private:
  ReflectionService& service_;
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
                                     const Authenticator& authenticator,
                                     int max_streams)
    : protos_(WithReflection(std::move(files))),
      authenticator_(authenticator),
      max_streams_(max_streams),
      v1_(std::make_unique<Version<ServerReflection>>(*this)),
      v1alpha_(std::make_unique<Version<v1alpha::ServerReflection>>(*this)) {}

ReflectionService::~ReflectionService() = default;

void ReflectionService::Register(grpc::ServerBuilder& builder) {
  builder.RegisterService(v1_.get());
  builder.RegisterService(v1alpha_.get());
}

ReflectionService::Reactor* ReflectionService::Start(
    grpc::CallbackServerContext& context) {
  const absl::Status allowed =
      authenticator_.Check(context.client_metadata()).status();
  if (!allowed.ok()) return new RefusedCall<Reactor>(ToGrpcStatus(allowed));
  if (streams_.fetch_add(1, std::memory_order_relaxed) < max_streams_) {
    try {
      return new Stream(*this, context);
    } catch (const std::bad_alloc&) {
      streams_.fetch_sub(1, std::memory_order_relaxed);
      throw;
    }
  }
  streams_.fetch_sub(1, std::memory_order_relaxed);
  return new RefusedCall<Reactor>(ToGrpcStatus(
      RetryLater(Reason::kTooManyStreams,
                 absl::StrCat("the server has ", max_streams_,
                              " reflection streams, as many as it takes"),
                 absl::Seconds(1))));
}

}  // namespace attention::server
