// Measures decode steps over sessions of a server, beside the same computed by
// the kernel in this process, and beside sending keys and values each time. The
// two take turns; the server should have nothing else to do.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "attention/v1/attention.pb.h"
#include "attention/v1/session.pb.h"
#include "base/executor.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/grpcpp.h"
#include "kernel/attention.h"
#include "wire/message_writer.h"
#include "wire/tensor_fields.h"

namespace attention {
namespace {

constexpr int64_t kAppendBytes = int64_t{8} << 20;

struct Flags {
  std::string target, type = "f32", stored;
  int64_t tokens = 8192, sessions = 1, rounds = 20, steps = 10;
  int64_t heads = 32, kv_heads = 8, head_size = 128;
  int threads = 2;
};

[[noreturn]] void Fail(const std::string& what) {
  std::cerr << what << "\n";
  std::exit(1);
}

double Now() {
  return std::chrono::duration<double>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// Numbers between -1 and 1 of either type, the same every time.
std::string Numbers(const std::string& type, int64_t count, uint32_t state) {
  std::string bytes;
  const size_t size = type == "bf16" ? 2 : 4;
  bytes.reserve(static_cast<size_t>(count) * size);
  for (int64_t i = 0; i < count; ++i) {
    state = state * 1664525 + 1013904223;
    const float number = static_cast<float>(state >> 8) * 0x1p-23f - 1;
    uint32_t bits;
    std::memcpy(&bits, &number, sizeof(bits));
    const uint32_t element = type == "bf16" ? bits >> 16 : bits;
    bytes.append(reinterpret_cast<const char*>(&element), size);
  }
  return bytes;
}

// The server's side of it.
class Service {
 public:
  explicit Service(const std::string& target) {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(-1);
    arguments.SetMaxSendMessageSize(-1);
    stub_ = std::make_unique<grpc::GenericStub>(grpc::CreateCustomChannel(
        target, grpc::InsecureChannelCredentials(), arguments));
    step_ = stub_->PrepareCall(&context_, "/attention.v1.SessionService/Step",
                               &queue_);
    step_->StartCall(nullptr);
    Wait(queue_);
  }
  ~Service() {
    context_.TryCancel();
    queue_.Shutdown();
    void* tag;
    bool ok;
    while (queue_.Next(&tag, &ok)) {
    }
  }

  void Unary(const std::string& method, const grpc::ByteBuffer& request,
             grpc::ByteBuffer* answer) {
    grpc::ClientContext context;
    context.AddMetadata("attention-request-bytes",
                        std::to_string(request.Length()));
    grpc::CompletionQueue queue;
    const auto call = stub_->PrepareUnaryCall(
        &context, "/attention.v1." + method, request, &queue);
    call->StartCall();
    grpc::Status status;
    call->Finish(answer, &status, nullptr);
    Wait(queue);
    if (!status.ok()) Fail(method + ": " + status.error_message());
  }

  void Step(const grpc::ByteBuffer& request, grpc::ByteBuffer* answer) {
    step_->Write(request, nullptr);
    if (!Wait(queue_)) Fail("the stream ended");
    step_->Read(answer, nullptr);
    if (!Wait(queue_)) Fail("the stream ended");
  }

 private:
  static bool Wait(grpc::CompletionQueue& queue) {
    void* tag;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  }

  std::unique_ptr<grpc::GenericStub> stub_;
  grpc::ClientContext context_;
  grpc::CompletionQueue queue_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> step_;
};

template <typename Message>
grpc::ByteBuffer Encode(const Message& message) {
  const grpc::Slice slice(message.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

template <typename Message>
Message Decode(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  if (!buffer.Dump(&slices).ok()) Fail("no answer");
  std::string bytes;
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  Message message;
  if (!message.ParseFromString(bytes)) Fail("an answer that is none");
  return message;
}

// Keys and values of one sequence, [Hkv][T][D], and everything measured of it.
class Workload {
 public:
  explicit Workload(const Flags& flags)
      : flags_(flags),
        element_(flags.type == "bf16" ? 2 : 4),
        type_(flags.type == "bf16" ? v1::DATA_TYPE_BFLOAT16
                                   : v1::DATA_TYPE_FLOAT32),
        kernel_type_(flags.type == "bf16" ? DataType::kBFloat16
                                          : DataType::kFloat32),
        query_(Numbers(flags.type, flags.heads * flags.head_size, 7)) {
    for (int64_t i = 0; i < flags.sessions; ++i) {
      const int64_t count = flags.kv_heads * flags.tokens * flags.head_size;
      keys_.push_back(Numbers(flags.type, count, 100 + i));
      values_.push_back(Numbers(flags.type, count, 200 + i));
      last_keys_.push_back(LastOf(keys_.back()));
      last_values_.push_back(LastOf(values_.back()));
      batch_keys_ += keys_.back();
      batch_values_ += values_.back();
      batch_queries_ += query_;
    }
  }

  int64_t bytes() const {
    return 2 * flags_.kv_heads * flags_.tokens * flags_.head_size * element_;
  }

  // Seconds of the appends of each session.
  std::vector<double> Fill(Service& service) {
    std::vector<double> seconds;
    for (int64_t i = 0; i < flags_.sessions; ++i) {
      v1::CreateSessionRequest create;
      create.set_id(Id(i));
      create.mutable_config()->set_kv_heads(flags_.kv_heads);
      create.mutable_config()->set_head_size(flags_.head_size);
      create.mutable_config()->set_data_type(StoredType());
      grpc::ByteBuffer answer;
      service.Unary("SessionService/CreateSession", Encode(create), &answer);
      const int64_t step = std::max<int64_t>(
          1,
          kAppendBytes / (2 * flags_.kv_heads * flags_.head_size * element_));
      // One token less: each step brings the last one.
      double took = 0;
      for (int64_t begin = 0; begin < flags_.tokens - 1; begin += step) {
        const int64_t count = std::min(step, flags_.tokens - 1 - begin);
        const grpc::ByteBuffer request = Append(i, begin, count);
        const double start = Now();
        service.Unary("SessionService/AppendKeyValues", request, &answer);
        took += Now() - start;
      }
      seconds.push_back(took);
    }
    return seconds;
  }

  // Attends after an append of one token to each session, the same each time.
  double Step(Service& service, v1::StepResponse* response) {
    wire::MessageWriter request;
    for (int64_t i = 0; i < flags_.sessions; ++i) {
      wire::MessageWriter item;
      item.Copy(v1::StepItem::kIdFieldNumber, Id(i));
      item.Integer(v1::StepItem::kExpectedLengthFieldNumber,
                   flags_.tokens - 1 + steps_);
      Add(v1::StepItem::kKeyFieldNumber, last_keys_[i], 1, flags_.kv_heads,
          &item);
      Add(v1::StepItem::kValueFieldNumber, last_values_[i], 1, flags_.kv_heads,
          &item);
      Add(v1::StepItem::kQueryFieldNumber, query_, 1, flags_.heads, &item);
      request.Message(v1::StepRequest::kItemsFieldNumber, std::move(item));
    }
    const double begin = Now();
    grpc::ByteBuffer answer;
    service.Step(std::move(request).Finish(), &answer);
    const double seconds = Now() - begin;
    *response = Decode<v1::StepResponse>(answer);
    for (const v1::StepResult& result : response->results()) {
      if (result.code() != 0) Fail(result.message());
    }
    ++steps_;
    return seconds;
  }

  // The same keys and values as one tensor each, all sessions a batch.
  double Kernel(Executor& executor, std::vector<std::string>* outputs) {
    outputs->clear();
    const auto view = [&](const std::string& data, int64_t heads,
                          int64_t tokens) {
      ConstTensorView tensor;
      tensor.type = kernel_type_;
      tensor.shape = {flags_.sessions, heads, tokens, flags_.head_size};
      tensor.data = data.data();
      return tensor;
    };
    AttentionInputs inputs;
    inputs.query = view(batch_queries_, flags_.heads, 1);
    inputs.key = view(batch_keys_, flags_.kv_heads, flags_.tokens);
    inputs.value = view(batch_values_, flags_.kv_heads, flags_.tokens);
    AttentionOptions options;
    options.layout = Layout::kBHSD;
    options.causal = Causal::kBottomRight;
    std::string output(batch_queries_.size(), '\0');
    const double begin = Now();
    const auto plan = PlanAttention(inputs, options);
    if (!plan.ok()) Fail(plan.status().ToString());
    const absl::Status status =
        RunAttention(*plan, {.output = output.data()}, executor);
    const double seconds = Now() - begin;
    if (!status.ok()) Fail(status.ToString());
    for (int64_t i = 0; i < flags_.sessions; ++i) {
      outputs->push_back(output.substr(i * query_.size(), query_.size()));
    }
    return seconds;
  }

  // Keys and values with every query.
  double Stateless(Service& service) {
    wire::MessageWriter request;
    using v1::ComputeAttentionRequest;
    Add(ComputeAttentionRequest::kQueryFieldNumber, query_, 1, flags_.heads,
        &request, /*batch=*/true);
    Add(ComputeAttentionRequest::kKeyFieldNumber, keys_[0], flags_.tokens,
        flags_.kv_heads, &request, true);
    Add(ComputeAttentionRequest::kValueFieldNumber, values_[0], flags_.tokens,
        flags_.kv_heads, &request, true);
    const grpc::ByteBuffer message = std::move(request).Finish();
    grpc::ByteBuffer answer;
    const double begin = Now();
    service.Unary("AttentionService/ComputeAttention", message, &answer);
    return Now() - begin;
  }

 private:
  v1::DataType StoredType() const {
    if (flags_.stored == "int8") return v1::DATA_TYPE_INT8;
    if (flags_.stored == "fp8") return v1::DATA_TYPE_FLOAT8_E4M3;
    return type_;
  }

  static std::string Id(int64_t i) { return "bench-" + std::to_string(i); }

  // [Hkv][1][D] of the last token.
  std::string LastOf(const std::string& all) const {
    std::string last;
    const size_t row = static_cast<size_t>(flags_.head_size * element_);
    for (int64_t head = 1; head <= flags_.kv_heads; ++head) {
      last +=
          all.substr(static_cast<size_t>(head * flags_.tokens - 1) * row, row);
    }
    return last;
  }

  grpc::ByteBuffer Append(int64_t i, int64_t begin, int64_t count) {
    wire::MessageWriter request;
    request.Copy(v1::AppendKeyValuesRequest::kIdFieldNumber, Id(i));
    const auto add = [&](int field, const std::string& all) {
      wire::MessageWriter tensor =
          wire::StartTensor(type_, {flags_.kv_heads, count, flags_.head_size});
      std::vector<grpc::Slice> slices;
      const int64_t row = flags_.head_size * element_;
      for (int64_t head = 0; head < flags_.kv_heads; ++head) {
        slices.emplace_back(all.data() + (head * flags_.tokens + begin) * row,
                            static_cast<size_t>(count * row),
                            grpc::Slice::STATIC_SLICE);
      }
      tensor.Borrow(v1::Tensor::kDataFieldNumber, std::move(slices));
      request.Message(field, std::move(tensor));
    };
    add(v1::AppendKeyValuesRequest::kKeyFieldNumber, keys_[i]);
    add(v1::AppendKeyValuesRequest::kValueFieldNumber, values_[i]);
    return std::move(request).Finish();
  }

  void Add(int field, const std::string& data, int64_t tokens, int64_t heads,
           wire::MessageWriter* message, bool batch = false) {
    std::vector<int64_t> shape = {heads, tokens, flags_.head_size};
    if (batch) shape.insert(shape.begin(), 1);
    wire::MessageWriter tensor = wire::StartTensor(type_, shape);
    tensor.Borrow(
        v1::Tensor::kDataFieldNumber,
        grpc::Slice(data.data(), data.size(), grpc::Slice::STATIC_SLICE));
    message->Message(field, std::move(tensor));
  }

  const Flags& flags_;
  int64_t steps_ = 0;
  const int64_t element_;
  const v1::DataType type_;
  const DataType kernel_type_;
  const std::string query_;
  std::vector<std::string> keys_, values_;
  std::string batch_keys_, batch_values_, batch_queries_;
  std::vector<std::string> last_keys_, last_values_;
};

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app("Decode steps over a server's sessions.");
  app.add_option("--target", flags.target, "Address")->required();
  app.add_option("--type", flags.type, "f32 or bf16, of what is sent");
  app.add_option("--stored", flags.stored,
                 "int8 or fp8, where that is not the type");
  app.add_option("--tokens", flags.tokens, "T, with those of the steps");
  app.add_option("--sessions", flags.sessions, "In one message");
  app.add_option("--rounds", flags.rounds, "In turns with the kernel");
  app.add_option("--steps", flags.steps, "Of each, in a round");
  app.add_option("--heads", flags.heads, "Query heads");
  app.add_option("--kv-heads", flags.kv_heads, "Key/value heads");
  app.add_option("--head-size", flags.head_size, "Of keys and values");
  app.add_option("--threads", flags.threads, "Of the kernel in this process");
  CLI11_PARSE(app, argc, argv);
  Workload workload(flags);
  Service service(flags.target);
  const std::vector<double> appends = workload.Fill(service);
  std::vector<double> steps, kernel, stateless;
  {
    Executor executor(flags.threads - 1);
    for (int64_t round = 0; round < flags.rounds; ++round) {
      std::vector<std::string> wanted;
      v1::StepResponse response;
      for (int64_t i = 0; i < flags.steps; ++i) {
        kernel.push_back(workload.Kernel(executor, &wanted));
      }
      for (int64_t i = 0; i < (round == 0 ? 1 : flags.steps); ++i) {
        steps.push_back(workload.Step(service, &response));
      }
      // Rounded keys have another answer, and so has a longer sequence.
      const bool same = flags.stored.empty() && round == 0;
      for (int64_t i = 0; same && i < flags.sessions; ++i) {
        if (response.results(static_cast<int>(i)).output().data() !=
            wanted[i]) {
          Fail("the answer of session " + std::to_string(i) + " differs");
        }
      }
    }
  }
  for (int i = 0; i < 5; ++i) stateless.push_back(workload.Stateless(service));
  std::cout << nlohmann::json{{"bytes", workload.bytes()},
                              {"append_seconds", appends},
                              {"step_seconds", steps},
                              {"kernel_seconds", kernel},
                              {"stateless_seconds", stateless}}
            << "\n";
  return 0;
}

}  // namespace
}  // namespace attention

int main(int argc, char** argv) { return attention::Main(argc, argv); }
