// A service that answers what a test tells it to, on a port of its own. Where
// it cannot serve it throws, which fails the test.
#ifndef ATTENTION_TESTS_CLIENT_FAKE_SERVICE_H_
#define ATTENTION_TESTS_CLIENT_FAKE_SERVICE_H_

#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "attention/details/v1/details.pb.h"
#include "attention/v1/attention.grpc.pb.h"

namespace attention {

class FakeService : public v1::AttentionService::Service {
 public:
  using Handler = std::function<grpc::Status(grpc::ServerContext&,
                                             const v1::ComputeAttentionRequest&,
                                             v1::ComputeAttentionResponse&)>;

  explicit FakeService(Handler handler = nullptr,
                       const std::string& address = "127.0.0.1:0",
                       const std::shared_ptr<grpc::ServerCredentials>&
                           credentials = grpc::InsecureServerCredentials())
      : handler_(std::move(handler)) {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::ServerBuilder builder;
    builder.AddListeningPort(address, credentials, &port_);
    builder.SetMaxReceiveMessageSize(-1);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr) {
      throw std::runtime_error(absl::StrCat("cannot serve on ", address));
    }
  }
  ~FakeService() override { server_->Shutdown(); }

  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }
  int port() const { return port_; }
  grpc::Server& server() { return *server_; }

  // The requests so far.
  std::vector<v1::ComputeAttentionRequest> requests() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return requests_;
  }

  // Every stream ends with RESOURCE_EXHAUSTED, for this reason, and asks for so
  // long a pause before the next, if any.
  void RefuseStreams(const std::string& reason,
                     absl::Duration pause = absl::ZeroDuration()) {
    const std::lock_guard<std::mutex> lock(mutex_);
    stream_refusal_ = reason;
    stream_pause_ = pause;
  }
  int streams() const { return streams_; }

  // What each of them said in a header; empty where it did not have it.
  std::vector<std::string> announced_bytes() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return announced_bytes_;
  }
  // The same, of every call.
  std::vector<std::string> authorizations() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return authorizations_;
  }

  grpc::Status ComputeAttention(
      grpc::ServerContext* context, const v1::ComputeAttentionRequest* request,
      v1::ComputeAttentionResponse* response) override {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      requests_.push_back(*request);
      announced_bytes_.push_back(Header(*context, "attention-request-bytes"));
      authorizations_.push_back(Header(*context, "authorization"));
    }
    return handler_(*context, *request, *response);
  }

  grpc::Status StreamAttention(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<v1::StreamAttentionResponse,
                               v1::StreamAttentionRequest>* stream) override {
    ++streams_;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (stream_refusal_.empty()) {
      return Service::StreamAttention(context, stream);
    }
    details::v1::ErrorInfo why;
    why.set_domain("attention");
    why.set_reason(stream_refusal_);
    details::v1::Status details;
    details.set_code(grpc::StatusCode::RESOURCE_EXHAUSTED);
    auto* const detail = details.add_details();
    detail->set_type_url("type.googleapis.com/google.rpc.ErrorInfo");
    detail->set_value(why.SerializeAsString());
    if (stream_pause_ > absl::ZeroDuration()) {
      details::v1::RetryInfo retry;
      retry.mutable_retry_delay()->set_nanos(
          static_cast<int32_t>(absl::ToInt64Nanoseconds(stream_pause_)));
      auto* const told = details.add_details();
      told->set_type_url("type.googleapis.com/google.rpc.RetryInfo");
      told->set_value(retry.SerializeAsString());
    }
    return {grpc::StatusCode::RESOURCE_EXHAUSTED, "no streams",
            details.SerializeAsString()};
  }

  grpc::Status GetCapabilities(grpc::ServerContext* context,
                               const v1::GetCapabilitiesRequest*,
                               v1::GetCapabilitiesResponse* response) override {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      authorizations_.push_back(Header(*context, "authorization"));
    }
    response->set_version("1.2.3");
    response->set_simd_target("AVX9");
    response->set_threads(7);
    response->add_data_types(v1::DATA_TYPE_FLOAT32);
    response->add_data_types(v1::DATA_TYPE_BFLOAT16);
    response->add_math_modes(v1::MATH_MODE_REPRODUCIBLE);
    response->set_max_request_bytes(1000);
    response->set_max_response_bytes(2000);
    response->set_key_block(256);
    response->set_max_head_size(300);
    response->set_max_heads(400);
    response->set_max_batch(500);
    response->set_max_batch_heads(600);
    response->set_max_work(70'000'000'000);
    response->set_max_chunk_bytes(8000);
    // Which nobody serves: what is said to be shared is sent.
    response->set_shared_memory("unix:/no/such/socket");
    return grpc::Status::OK;
  }

 private:
  static std::string Header(const grpc::ServerContext& context,
                            const char* name) {
    const auto& headers = context.client_metadata();
    const auto found = headers.find(name);
    if (found == headers.end()) return "";
    return std::string(found->second.data(), found->second.size());
  }

  Handler handler_;
  std::string stream_refusal_;
  absl::Duration stream_pause_;
  std::atomic<int> streams_ = 0;
  std::mutex mutex_;
  std::vector<v1::ComputeAttentionRequest> requests_;
  std::vector<std::string> announced_bytes_;
  std::vector<std::string> authorizations_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace attention

#endif  // ATTENTION_TESTS_CLIENT_FAKE_SERVICE_H_
