#include "benchmarks/rpc/bare_calls.h"

#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace attention::benchmarks {
namespace {

constexpr char kMethod[] = "/bare/Call";
constexpr char kAnswerBytes[] = "answer-bytes";

// One call: reads a message, answers, deletes itself.
class Exchange final : public grpc::ServerGenericBidiReactor {
 public:
  explicit Exchange(grpc::GenericCallbackServerContext* context)
      : context_(context) {
    StartRead(&message_);
  }

 private:
  void OnReadDone(bool ok) override {
    if (!ok) return Finish(grpc::Status::CANCELLED);
    const auto& headers = context_->client_metadata();
    const auto found = headers.find(kAnswerBytes);
    size_t bytes = 0;
    if (found != headers.end() &&
        absl::SimpleAtoi(
            absl::string_view(found->second.data(), found->second.size()),
            &bytes)) {
      static const std::vector<char> zeros(size_t{1} << 26);
      const grpc::Slice slice(zeros.data(), bytes, grpc::Slice::STATIC_SLICE);
      message_ = grpc::ByteBuffer(&slice, 1);
    }
    StartWriteAndFinish(&message_, grpc::WriteOptions(), grpc::Status::OK);
  }
  void OnDone() override { delete this; }

  grpc::GenericCallbackServerContext* const context_;
  grpc::ByteBuffer message_;
};

class BareService final : public grpc::CallbackGenericService {
  grpc::ServerGenericBidiReactor* CreateReactor(
      grpc::GenericCallbackServerContext* context) override {
    return new Exchange(context);
  }
};

grpc::ByteBuffer MessageOf(const ComputeRequest& request) {
  std::vector<grpc::Slice> slices;
  for (const TensorSpan* tensor :
       {&request.query, &request.key, &request.value}) {
    slices.emplace_back(tensor->bytes.data(), tensor->bytes.size(),
                        grpc::Slice::STATIC_SLICE);
  }
  return grpc::ByteBuffer(slices.data(), slices.size());
}

}  // namespace

void RunBareServer(const std::string& unix_path,
                   const std::function<void(const std::string&)>& listening) {
  BareService service;
  grpc::ServerBuilder builder;
  int port = 0;
  const std::string unix_address = absl::StrCat("unix:", unix_path);
  const auto credentials = grpc::InsecureServerCredentials();
  builder.AddListeningPort("127.0.0.1:0", credentials, &port);
  builder.AddListeningPort(unix_address, credentials);
  builder.SetMaxReceiveMessageSize(-1);
  builder.RegisterCallbackGenericService(&service);
  const auto server = builder.BuildAndStart();
  listening(absl::StrCat("127.0.0.1:", port));
  listening(unix_address);
  server->Wait();
}

BareClient::BareClient(const std::string& address,
                       const ComputeRequest& request, size_t answer_bytes)
    : channel_([&] {
        grpc::ChannelArguments arguments;
        arguments.SetMaxReceiveMessageSize(-1);
        return grpc::CreateCustomChannel(
            address, grpc::InsecureChannelCredentials(), arguments);
      }()),
      message_(MessageOf(request)),
      answer_bytes_(answer_bytes) {}

absl::Status BareClient::Call() const {
  grpc::CompletionQueue queue;
  grpc::ClientContext context;
  if (answer_bytes_ > 0) {
    context.AddMetadata(kAnswerBytes, absl::StrCat(answer_bytes_));
  }
  grpc::GenericStub stub(channel_);
  const auto reader =
      stub.PrepareUnaryCall(&context, kMethod, message_, &queue);
  reader->StartCall();
  grpc::ByteBuffer answer;
  grpc::Status status;
  reader->Finish(&answer, &status, nullptr);
  void* tag;
  bool ok;
  queue.Next(&tag, &ok);
  const size_t wanted = answer_bytes_ > 0 ? answer_bytes_ : message_.Length();
  if (!status.ok()) return absl::UnavailableError(status.error_message());
  if (answer.Length() == wanted) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat("answer: got ", answer.Length(), " bytes, wanted ", wanted));
}

}  // namespace attention::benchmarks
