// A server with sessions, and what was appended to them.
#ifndef ATTENTION_TESTS_SUPPORT_SESSION_FIXTURE_H_
#define ATTENTION_TESTS_SUPPORT_SESSION_FIXTURE_H_

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "attention/v1/attention.grpc.pb.h"
#include "attention/v1/session.grpc.pb.h"
#include "grpcpp/client_context.h"
#include "server/options.h"
#include "tests/support/messages.h"
#include "tests/support/test_server.h"

namespace attention::testing {

inline constexpr int64_t kHeads = 2;
inline constexpr int64_t kKeySize = 4;
inline constexpr int64_t kValueSize = 3;

// Keys or values of one layer, [Hkv, n, size] in FLOAT32, joined along n.
class Rows {
 public:
  explicit Rows(int64_t size) : size_(size), heads_(kHeads) {}

  // The new rows, as a tensor.
  v1::Tensor Add(int64_t count, uint32_t seed) {
    v1::Tensor tensor =
        RandomTensor(v1::DATA_TYPE_FLOAT32, {kHeads, count, size_}, seed);
    const size_t bytes = static_cast<size_t>(count * size_ * 4);
    for (int64_t head = 0; head < kHeads; ++head) {
      heads_[head] += tensor.data().substr(head * bytes, bytes);
    }
    length_ += count;
    return tensor;
  }
  void Truncate(int64_t length) {
    length_ = length;
    for (std::string& head : heads_) head.resize(length * size_ * 4);
  }
  // [1, Hkv, length, size].
  v1::Tensor All() const {
    v1::Tensor tensor;
    tensor.set_data_type(v1::DATA_TYPE_FLOAT32);
    for (int64_t dim : {int64_t{1}, kHeads, length_, size_}) {
      tensor.add_shape(dim);
    }
    for (const std::string& head : heads_) *tensor.mutable_data() += head;
    return tensor;
  }

 private:
  const int64_t size_;
  int64_t length_ = 0;
  std::vector<std::string> heads_;
};

class SessionFixture : public ::testing::Test {
 protected:
  explicit SessionFixture(
      const server::Options& options = TestServer::DefaultOptions())
      : server_(options),
        stub_(v1::SessionService::NewStub(
            server_.Channel(Transport::kInProcess))) {}

  // Calls `method`; `status_` says how it ended.
  template <typename Request, typename Response>
  Response Call(grpc::Status (v1::SessionService::Stub::*method)(
                    grpc::ClientContext*, const Request&, Response*),
                const Request& request) {
    grpc::ClientContext context;
    Response response;
    status_ = (*stub_.*method)(&context, request, &response);
    return response;
  }
  void ExpectOk() { EXPECT_TRUE(status_.ok()) << status_.error_message(); }
  void ExpectError(grpc::StatusCode code, const std::string& reason) {
    EXPECT_EQ(status_.error_code(), code) << status_.error_message();
    EXPECT_EQ(DetailsOf(status_).reason, reason);
  }

  v1::Session Create(const std::string& id, int64_t layers = 1) {
    v1::CreateSessionRequest request;
    request.set_id(id);
    request.mutable_config()->set_num_layers(layers);
    request.mutable_config()->set_kv_heads(kHeads);
    request.mutable_config()->set_head_size(kKeySize);
    request.mutable_config()->set_value_head_size(kValueSize);
    return Call(&v1::SessionService::Stub::CreateSession, request).session();
  }
  // Whose layers have these windows.
  v1::Session CreateWithWindows(const std::string& id, int64_t layers,
                                const std::vector<int64_t>& windows,
                                std::optional<int64_t> rollback) {
    v1::CreateSessionRequest request;
    request.set_id(id);
    v1::SessionConfig& config = *request.mutable_config();
    config.set_num_layers(layers);
    config.set_kv_heads(kHeads);
    config.set_head_size(kKeySize);
    config.set_value_head_size(kValueSize);
    config.mutable_retain_window()->Add(windows.begin(), windows.end());
    if (rollback) config.set_rollback_tokens(*rollback);
    return Call(&v1::SessionService::Stub::CreateSession, request).session();
  }
  v1::Session Get(const std::string& id) {
    v1::GetSessionRequest request;
    request.set_id(id);
    return Call(&v1::SessionService::Stub::GetSession, request).session();
  }
  v1::AppendKeyValuesRequest AppendRequest(const std::string& id, int64_t count,
                                           int64_t layer = 0) {
    v1::AppendKeyValuesRequest request;
    request.set_id(id);
    request.set_layer(layer);
    *request.mutable_key() = keys_.Add(count, ++seed_);
    *request.mutable_value() = values_.Add(count, ++seed_);
    return request;
  }
  v1::AppendKeyValuesResponse Append(
      const v1::AppendKeyValuesRequest& request) {
    return Call(&v1::SessionService::Stub::AppendKeyValues, request);
  }
  v1::AttendRequest AttendRequest(const std::string& id, int64_t queries,
                                  int64_t layer = 0) {
    v1::AttendRequest request;
    request.set_id(id);
    request.set_layer(layer);
    *request.mutable_query() = RandomTensor(
        v1::DATA_TYPE_FLOAT32, {2 * kHeads, queries, kKeySize}, ++seed_);
    return request;
  }
  v1::AttendResponse Attend(const v1::AttendRequest& request) {
    return Call(&v1::SessionService::Stub::Attend, request);
  }

  // The kernel's answer for the rows that were appended.
  static v1::Tensor OfABatch(v1::Tensor tensor) {
    const std::vector<int64_t> shape(tensor.shape().begin(),
                                     tensor.shape().end());
    tensor.clear_shape();
    tensor.add_shape(1);
    tensor.mutable_shape()->Add(shape.begin(), shape.end());
    return tensor;
  }
  v1::ComputeAttentionResponse Wanted(const v1::AttendRequest& request) {
    v1::ComputeAttentionRequest whole;
    *whole.mutable_query() = request.query();
    whole.mutable_query()->clear_shape();
    whole.mutable_query()->add_shape(1);
    for (int64_t dim : request.query().shape()) {
      whole.mutable_query()->add_shape(dim);
    }
    *whole.mutable_key() = keys_.All();
    *whole.mutable_value() = values_.All();
    if (request.has_mask()) *whole.mutable_mask() = request.mask();
    if (request.has_indices()) {
      *whole.mutable_indices() = OfABatch(request.indices());
    }
    if (request.has_sinks()) {
      *whole.mutable_sinks() = OfABatch(request.sinks());
    }
    *whole.mutable_options() = request.options();
    if (!request.not_causal()) {
      whole.mutable_options()->set_causal(v1::CAUSAL_BOTTOM_RIGHT);
    }
    return KernelAnswer(whole);
  }
  void ExpectAttends(const v1::AttendRequest& request) {
    ExpectAttends(request, Wanted(request));
  }
  void ExpectAttends(const v1::AttendRequest& request,
                     const v1::ComputeAttentionResponse& wanted) {
    const v1::AttendResponse got = Attend(request);
    ExpectOk();
    EXPECT_TRUE(got.output().data() == wanted.output().data());
    EXPECT_TRUE(got.log_sum_exp().data() == wanted.log_sum_exp().data());
    EXPECT_TRUE(got.scores().data() == wanted.scores().data());
    EXPECT_EQ(got.output().shape_size(), 3);
    EXPECT_TRUE(got.has_timing());
  }

  TestServer server_;
  std::unique_ptr<v1::SessionService::Stub> stub_;
  grpc::Status status_;
  Rows keys_{kKeySize};
  Rows values_{kValueSize};
  uint32_t seed_ = 0;
};

}  // namespace attention::testing

#endif  // ATTENTION_TESTS_SUPPORT_SESSION_FIXTURE_H_
