// What the Open Inference Protocol costs over ComputeAttention: the same
// tensors, about 1 MiB of them, in both messages, over loopback to a server in
// this process. The two take turns, so that whatever else the machine does
// meets both. Prints milliseconds and the ratio as JSON.
//
//   inference_bench [PAIRS]
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "attention/v1/attention.pb.h"
#include "grpcpp/client_context.h"
#include "grpcpp/completion_queue.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/support/slice.h"
#include "inference/inference.pb.h"
#include "server/options.h"
#include "server/server.h"

namespace attention::benchmarks {
namespace {

// Of the median of ModelInfer over that of ComputeAttention.
constexpr double kMostRatio = 1.1;

constexpr int64_t kHeads = 8, kQueries = 16, kKeys = 240, kSize = 64;

struct Tensor {
  const char* name;
  int64_t rows;
  std::string data;
};

// Numbers between -1 and 1.
std::vector<Tensor> Tensors() {
  std::vector<Tensor> tensors = {
      {"query", kQueries, ""}, {"key", kKeys, ""}, {"value", kKeys, ""}};
  uint32_t state = 1;
  for (Tensor& tensor : tensors) {
    for (int64_t i = 0; i < kHeads * tensor.rows * kSize; ++i) {
      state = state * 1664525 + 1013904223;
      const float number = static_cast<float>(state >> 8) * 0x1p-23f - 1;
      tensor.data.append(reinterpret_cast<const char*>(&number),
                         sizeof(number));
    }
  }
  return tensors;
}

std::string OwnMessage(const std::vector<Tensor>& tensors) {
  v1::ComputeAttentionRequest request;
  v1::Tensor* const targets[] = {request.mutable_query(), request.mutable_key(),
                                 request.mutable_value()};
  for (size_t i = 0; i < tensors.size(); ++i) {
    targets[i]->set_data_type(v1::DATA_TYPE_FLOAT32);
    for (int64_t dim : {int64_t{1}, kHeads, tensors[i].rows, kSize}) {
      targets[i]->add_shape(dim);
    }
    targets[i]->set_data(tensors[i].data);
  }
  return request.SerializeAsString();
}

std::string InferMessage(const std::vector<Tensor>& tensors) {
  inference::ModelInferRequest request;
  request.set_model_name("attention");
  for (const Tensor& tensor : tensors) {
    auto* const input = request.add_inputs();
    input->set_name(tensor.name);
    input->set_datatype("FP32");
    for (int64_t dim : {int64_t{1}, kHeads, tensor.rows, kSize}) {
      input->add_shape(dim);
    }
    request.add_raw_input_contents(tensor.data);
  }
  return request.SerializeAsString();
}

// Makes the same call again and again, its message made beforehand.
class Caller {
 public:
  Caller(const std::shared_ptr<grpc::Channel>& channel, std::string method,
         const std::string& message)
      : stub_(channel), method_(std::move(method)) {
    const grpc::Slice slice(message);
    message_ = grpc::ByteBuffer(&slice, 1);
  }

  // Ends the program if the call fails.
  void Call() {
    const auto begin = std::chrono::steady_clock::now();
    grpc::ClientContext context;
    const auto call =
        stub_.PrepareUnaryCall(&context, method_, message_, &queue_);
    call->StartCall();
    grpc::ByteBuffer answer;
    grpc::Status status;
    call->Finish(&answer, &status, nullptr);
    void* tag;
    bool ok;
    queue_.Next(&tag, &ok);
    ms_.push_back(std::chrono::duration<double, std::milli>(
                      std::chrono::steady_clock::now() - begin)
                      .count());
    if (status.ok()) return;
    std::cerr << method_ << ": " << status.error_message() << "\n";
    std::exit(1);
  }

  void Forget() { ms_.clear(); }
  double Percentile(double share) {
    std::sort(ms_.begin(), ms_.end());
    return ms_[static_cast<size_t>(share *
                                   static_cast<double>(ms_.size() - 1))];
  }

 private:
  grpc::GenericStub stub_;
  grpc::CompletionQueue queue_;
  const std::string method_;
  grpc::ByteBuffer message_;
  std::vector<double> ms_;
};

int Run(int pairs) {
  server::Options options;
  options.listen = {"127.0.0.1:0"};
  options.log_level = "off";
  auto server = server::Server::Start(options);
  if (!server.ok()) {
    std::cerr << server.status() << "\n";
    return 1;
  }
  const std::vector<Tensor> tensors = Tensors();
  const std::string own_message = OwnMessage(tensors);
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  const auto channel = grpc::CreateCustomChannel(
      (*server)->addresses()[0], grpc::InsecureChannelCredentials(), arguments);
  Caller own(channel, "/attention.v1.AttentionService/ComputeAttention",
             own_message);
  Caller infer(channel, "/inference.GRPCInferenceService/ModelInfer",
               InferMessage(tensors));
  const auto take_turns = [&](int count) {
    for (int i = 0; i < count; ++i) {
      (i % 2 == 0 ? own : infer).Call();
      (i % 2 == 0 ? infer : own).Call();
    }
  };
  take_turns(pairs / 10 + 1);
  own.Forget();
  infer.Forget();
  take_turns(pairs);
  const double own_p50 = own.Percentile(0.5), infer_p50 = infer.Percentile(0.5);
  const double ratio = infer_p50 / own_p50;
  std::cout << absl::StrCat(
      "{\"request_bytes\": ", own_message.size(), ", \"pairs\": ", pairs,
      ",\n \"compute_attention_ms\": {\"p50\": ", own_p50,
      ", \"p90\": ", own.Percentile(0.9),
      "},\n \"model_infer_ms\": {\"p50\": ", infer_p50,
      ", \"p90\": ", infer.Percentile(0.9), "},\n \"ratio_of_p50\": ", ratio,
      ", \"wanted_at_most\": ", kMostRatio, "}\n");
  return ratio <= kMostRatio ? 0 : 1;
}

}  // namespace
}  // namespace attention::benchmarks

int main(int argc, char** argv) {
#ifndef NDEBUG
  std::cerr << "warning: built without optimisation, or with assertions\n";
#endif
  const int pairs = argc > 1 ? std::atoi(argv[1]) : 2000;
  if (pairs > 0) return attention::benchmarks::Run(pairs);
  std::cerr << "usage: inference_bench [PAIRS], at least one\n";
  return 2;
}
