// Streams any amount of keys and values from a few MiB of memory, as raw
// slices, and says how long it took: a client that is never what is slow.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "attention/v1/attention.pb.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/grpcpp.h"
#include "wire/message_writer.h"
#include "wire/tensor_fields.h"

namespace attention {
namespace {

struct Flags {
  std::string target, type = "f32";
  int64_t bytes = int64_t{64} << 20, chunk_bytes = int64_t{4} << 20;
  int64_t rows = 1, heads = 32, kv_heads = 8, head_size = 128;
  bool unary = false;
};

// Numbers between -1 and 1 of either type, the same every time.
std::string Numbers(const std::string& type, int64_t count) {
  std::string bytes;
  uint32_t state = 1;
  for (int64_t i = 0; i < count; ++i) {
    state = state * 1664525 + 1013904223;
    const float number = static_cast<float>(state >> 8) * 0x1p-23f - 1;
    uint32_t bits;
    std::memcpy(&bits, &number, sizeof(bits));
    const uint32_t element = type == "bf16" ? bits >> 16 : bits;
    bytes.append(reinterpret_cast<const char*>(&element),
                 type == "bf16" ? 2 : 4);
  }
  return bytes;
}

// Messages of layout BSHD. Keys and values of all chunks are the same memory.
class Messages {
 public:
  explicit Messages(const Flags& flags)
      : flags_(flags),
        element_(flags.type == "bf16" ? 2 : 4),
        type_(flags.type == "bf16" ? v1::DATA_TYPE_BFLOAT16
                                   : v1::DATA_TYPE_FLOAT32),
        token_bytes_(2 * flags.kv_heads * flags.head_size * element_),
        tokens_(flags.bytes / token_bytes_),
        chunk_(std::max<int64_t>(1, flags.chunk_bytes / token_bytes_)),
        query_(Numbers(flags.type, flags.rows * flags.heads * flags.head_size)),
        keys_(Numbers(flags.type, (flags.unary ? tokens_ : chunk_) *
                                      flags.kv_heads * flags.head_size)) {}

  int64_t tokens() const { return tokens_; }
  int64_t bytes() const { return tokens_ * token_bytes_; }

  grpc::ByteBuffer Unary() const { return Request(true).first; }

  grpc::ByteBuffer Header() const {
    wire::MessageWriter message;
    message.Message(v1::StreamAttentionRequest::kHeaderFieldNumber,
                    std::move(Request(false).second));
    return std::move(message).Finish();
  }

  // Of the tokens from `begin` on; how many, in `*count`.
  grpc::ByteBuffer Chunk(int64_t begin, int64_t* count) const {
    *count = std::min(chunk_, tokens_ - begin);
    wire::MessageWriter chunk, message;
    AddKeys(v1::KeyValueChunk::kKeyFieldNumber, *count, true, &chunk);
    AddKeys(v1::KeyValueChunk::kValueFieldNumber, *count, true, &chunk);
    message.Message(v1::StreamAttentionRequest::kChunkFieldNumber,
                    std::move(chunk));
    return std::move(message).Finish();
  }

 private:
  std::pair<grpc::ByteBuffer, wire::MessageWriter> Request(bool finish) const {
    using v1::ComputeAttentionRequest;
    wire::MessageWriter request;
    Add(ComputeAttentionRequest::kQueryFieldNumber,
        {1, flags_.rows, flags_.heads, flags_.head_size}, &query_, &request);
    AddKeys(ComputeAttentionRequest::kKeyFieldNumber, tokens_, finish,
            &request);
    AddKeys(ComputeAttentionRequest::kValueFieldNumber, tokens_, finish,
            &request);
    v1::AttentionOptions options;
    options.set_layout(v1::LAYOUT_BSHD);
    options.set_causal(v1::CAUSAL_BOTTOM_RIGHT);
    request.Message(ComputeAttentionRequest::kOptionsFieldNumber, options);
    if (!finish) return {grpc::ByteBuffer(), std::move(request)};
    return {std::move(request).Finish(), wire::MessageWriter()};
  }

  void AddKeys(int field, int64_t tokens, bool data,
               wire::MessageWriter* message) const {
    Add(field, {1, tokens, flags_.kv_heads, flags_.head_size},
        data ? &keys_ : nullptr, message);
  }

  void Add(int field, const std::vector<int64_t>& shape,
           const std::string* bytes, wire::MessageWriter* message) const {
    wire::MessageWriter tensor = wire::StartTensor(type_, shape);
    if (bytes != nullptr) {
      int64_t length = element_;
      for (int64_t dim : shape) length *= dim;
      tensor.Borrow(
          v1::Tensor::kDataFieldNumber,
          grpc::Slice(bytes->data(), length, grpc::Slice::STATIC_SLICE));
    }
    message->Message(field, std::move(tensor));
  }

  const Flags& flags_;
  const int64_t element_;
  const v1::DataType type_;
  const int64_t token_bytes_, tokens_, chunk_;
  const std::string query_, keys_;
};

// Blocks until what was started is done.
bool Next(grpc::CompletionQueue& queue) {
  void* tag;
  bool ok = false;
  return queue.Next(&tag, &ok) && ok;
}

int64_t BytesOf(const grpc::ByteBuffer& buffer) {
  return static_cast<int64_t>(buffer.Length());
}

// Bytes of the answer.
int64_t Stream(grpc::GenericStub& stub, const Messages& messages,
               grpc::Status* status) {
  grpc::ClientContext context;
  // Writes and reads wait for each other on two queues.
  grpc::CompletionQueue queue;
  const auto call = stub.PrepareCall(
      &context, "/attention.v1.AttentionService/StreamAttention", &queue);
  call->StartCall(nullptr);
  Next(queue);
  void* const kWrite = &context;
  int64_t answer = 0, sent = 0;
  bool last = false, reading = true;
  grpc::ByteBuffer received;
  call->Read(&received, nullptr);
  call->Write(messages.Header(), kWrite);
  while (reading) {
    void* tag;
    bool ok;
    queue.Next(&tag, &ok);
    if (tag == kWrite) {
      if (!ok || last) continue;
      int64_t count;
      const grpc::ByteBuffer chunk = messages.Chunk(sent, &count);
      sent += count;
      last = sent == messages.tokens();
      if (last) {
        call->WriteLast(chunk, grpc::WriteOptions(), kWrite);
      } else {
        call->Write(chunk, kWrite);
      }
    } else if (ok) {
      answer += BytesOf(received);
      call->Read(&received, nullptr);
    } else {
      reading = false;
    }
  }
  call->Finish(status, nullptr);
  void* tag;
  bool ok;
  // A write that failed may come first.
  do {
    queue.Next(&tag, &ok);
  } while (tag == kWrite);
  return answer;
}

int64_t Unary(grpc::GenericStub& stub, const Messages& messages,
              grpc::Status* status) {
  grpc::ClientContext context;
  const grpc::ByteBuffer request = messages.Unary();
  context.AddMetadata("attention-request-bytes",
                      std::to_string(request.Length()));
  grpc::CompletionQueue queue;
  const auto call = stub.PrepareUnaryCall(
      &context, "/attention.v1.AttentionService/ComputeAttention", request,
      &queue);
  call->StartCall();
  grpc::ByteBuffer received;
  call->Finish(&received, status, nullptr);
  Next(queue);
  return BytesOf(received);
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app("Streams keys and values to a server.");
  app.add_option("--target", flags.target, "Address")->required();
  app.add_option("--type", flags.type, "f32 or bf16");
  app.add_option("--bytes", flags.bytes, "Of keys and values in all");
  app.add_option("--chunk-bytes", flags.chunk_bytes, "Of a message");
  app.add_option("--rows", flags.rows, "Queries");
  app.add_option("--heads", flags.heads, "Query heads");
  app.add_option("--kv-heads", flags.kv_heads, "Key/value heads");
  app.add_option("--head-size", flags.head_size, "Of keys and values");
  app.add_flag("--unary", flags.unary, "ComputeAttention instead");
  int repeat = 1;
  app.add_option("--repeat", repeat, "Calls, one after the other");
  CLI11_PARSE(app, argc, argv);
  const Messages messages(flags);
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetMaxSendMessageSize(-1);
  grpc::GenericStub stub(grpc::CreateCustomChannel(
      flags.target, grpc::InsecureChannelCredentials(), arguments));
  std::vector<double> seconds;
  int64_t answer = 0;
  for (int i = 0; i < repeat; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    grpc::Status status;
    answer = flags.unary ? Unary(stub, messages, &status)
                         : Stream(stub, messages, &status);
    if (!status.ok()) {
      std::cerr << status.error_message() << "\n";
      return 1;
    }
    seconds.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin)
            .count());
  }
  std::cout << nlohmann::json{{"bytes", messages.bytes()},
                              {"tokens", messages.tokens()},
                              {"answer_bytes", answer},
                              {"seconds", seconds}}
            << "\n";
  return 0;
}

}  // namespace
}  // namespace attention

int main(int argc, char** argv) { return attention::Main(argc, argv); }
