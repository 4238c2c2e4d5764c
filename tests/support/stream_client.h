// A request cut into the messages of a stream, and its answer put together.
#ifndef ATTENTION_TESTS_SUPPORT_STREAM_CLIENT_H_
#define ATTENTION_TESTS_SUPPORT_STREAM_CLIENT_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "attention/v1/attention.grpc.pb.h"
#include "attention/v1/attention.pb.h"
#include "grpcpp/channel.h"
#include "grpcpp/support/status.h"
#include "tests/support/attention_case.h"

namespace attention::testing {

inline constexpr char kStreamAttention[] =
    "/attention.v1.AttentionService/StreamAttention";

// A case without strides as a request of ComputeAttention.
v1::ComputeAttentionRequest RequestOf(const test::AttentionCase& c);

// Elements [begin, end) of an axis, and tensors joined along one. Payloads in
// `data`.
v1::Tensor Cut(const v1::Tensor& tensor, int axis, int64_t begin, int64_t end);
v1::Tensor Joined(const std::vector<v1::Tensor>& tensors, int axis);

// The messages that stream a valid request, payloads in `data`.
class StreamOf {
 public:
  explicit StreamOf(const v1::ComputeAttentionRequest& request);

  int64_t tokens() const { return tokens_; }
  v1::StreamAttentionRequest Header() const;
  v1::StreamAttentionRequest Chunk(int64_t begin, int64_t end) const;
  // The rows of several messages as one answer, without timing.
  v1::ComputeAttentionResponse Answer(
      const std::vector<v1::StreamAttentionResponse>& messages) const;

 private:
  v1::ComputeAttentionRequest request_;  // without past
  v1::StreamAttentionRequest header_;
  v1::Layout layout_;
  int axis_;  // of tokens
  int64_t tokens_;
};

struct StreamResult {
  grpc::Status status;
  std::vector<v1::StreamAttentionResponse> messages;
};

// Sends messages and closes, reading meanwhile.
StreamResult SendStream(
    const std::shared_ptr<grpc::Channel>& channel,
    const std::vector<v1::StreamAttentionRequest>& messages);

// Header and chunks of `length(begin)` tokens each.
std::vector<v1::StreamAttentionRequest> MessagesOf(
    const StreamOf& stream, const std::function<int64_t(int64_t)>& length);

}  // namespace attention::testing

#endif  // ATTENTION_TESTS_SUPPORT_STREAM_CLIENT_H_
