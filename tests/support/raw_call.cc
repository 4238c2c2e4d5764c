#include "tests/support/raw_call.h"

#include <gtest/gtest.h>

#include <vector>

#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/slice.h"
#include "server/rpc/call_headers.h"
#include "server/status.h"

namespace attention::testing {
namespace {

grpc::ByteBuffer ToBuffer(const std::string& bytes) {
  const grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

std::string ToString(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  std::string bytes;
  if (!buffer.Valid() || !buffer.Dump(&slices).ok()) return bytes;
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return bytes;
}

void* Tag() {
  static char tag;
  return &tag;
}

}  // namespace

RawAnswer RawUnaryCall(const std::shared_ptr<grpc::Channel>& channel,
                       const std::string& method, const std::string& request,
                       std::chrono::system_clock::time_point deadline) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  context.set_deadline(deadline);
  grpc::CompletionQueue queue;
  const auto call =
      stub.PrepareUnaryCall(&context, method, ToBuffer(request), &queue);
  RawAnswer answer;
  grpc::ByteBuffer received;
  call->StartCall();
  call->Finish(&received, &answer.status, Tag());
  void* tag;
  bool ok;
  queue.Next(&tag, &ok);
  answer.message = ToString(received);
  return answer;
}

RawStream::RawStream(const std::shared_ptr<grpc::Channel>& channel,
                     const std::string& method,
                     std::chrono::system_clock::time_point deadline,
                     std::optional<int64_t> announced_bytes)
    : stub_(channel) {
  context_.set_deadline(deadline);
  if (announced_bytes) {
    context_.AddMetadata(server::kRequestBytesHeader,
                         std::to_string(*announced_bytes));
  }
  stream_ = stub_.PrepareCall(&context_, method, &queue_);
  stream_->StartCall(Tag());
  Wait();
}

RawStream::~RawStream() {
  context_.TryCancel();
  queue_.Shutdown();
  void* tag;
  bool ok;
  while (queue_.Next(&tag, &ok)) {
  }
}

bool RawStream::Wait() {
  void* tag;
  bool ok = false;
  return queue_.Next(&tag, &ok) && ok;
}

bool RawStream::Write(const std::string& message, bool last) {
  const grpc::ByteBuffer buffer = ToBuffer(message);
  if (last) {
    stream_->WriteLast(buffer, grpc::WriteOptions(), Tag());
  } else {
    stream_->Write(buffer, Tag());
  }
  return Wait();
}

void RawStream::StartWrite(const std::string& message) {
  stream_->Write(ToBuffer(message), Tag());
}

bool RawStream::WrittenWithin(std::chrono::milliseconds limit) {
  void* tag;
  bool ok = false;
  return queue_.AsyncNext(&tag, &ok,
                          std::chrono::system_clock::now() + limit) ==
             grpc::CompletionQueue::GOT_EVENT &&
         ok;
}

std::optional<std::string> RawStream::Read() {
  grpc::ByteBuffer buffer;
  stream_->Read(&buffer, Tag());
  if (!Wait()) return std::nullopt;
  return ToString(buffer);
}

grpc::Status RawStream::Finish() {
  grpc::Status status;
  stream_->Finish(&status, Tag());
  Wait();
  return status;
}

std::string RawStream::Trailer(const std::string& name) const {
  const auto& trailers = context_.GetServerTrailingMetadata();
  const auto found = trailers.find(name);
  if (found == trailers.end()) return "";
  return std::string(found->second.data(), found->second.size());
}

std::string HealthRequest(const std::string& service) {
  if (service.empty()) return "";
  std::string bytes = "\x0a";
  bytes += static_cast<char>(service.size());
  return bytes + service;
}

std::string ServingStatus(const std::string& response) {
  if (response.empty()) return "UNKNOWN";
  EXPECT_EQ(response.size(), 2u);
  EXPECT_EQ(response[0], 8);
  switch (response[1]) {
    case 1:
      return "SERVING";
    case 2:
      return "NOT_SERVING";
    case 3:
      return "SERVICE_UNKNOWN";
    default:
      return "?";
  }
}

std::string HealthOf(const std::shared_ptr<grpc::Channel>& channel,
                     const std::string& service) {
  const RawAnswer answer = RawUnaryCall(channel, "/grpc.health.v1.Health/Check",
                                        HealthRequest(service));
  if (!answer.status.ok()) {
    return std::string(server::CodeName(answer.status.error_code()));
  }
  return ServingStatus(answer.message);
}

}  // namespace attention::testing
