// Sessions over gRPC: what they hold, what is refused, and that attending gives
// the bits of one request with the same keys and values.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "attention/details/v1/details.pb.h"
#include "attention/v1/attention.grpc.pb.h"
#include "attention/v1/session.grpc.pb.h"
#include "tests/support/messages.h"
#include "tests/support/test_server.h"

namespace attention::testing {
namespace {

constexpr int64_t kHeads = 2;
constexpr int64_t kKeySize = 4;
constexpr int64_t kValueSize = 3;

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

class SessionServiceTest : public ::testing::Test {
 protected:
  SessionServiceTest()
      : stub_(v1::SessionService::NewStub(
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
    *whole.mutable_options() = request.options();
    if (!request.not_causal()) {
      whole.mutable_options()->set_causal(v1::CAUSAL_BOTTOM_RIGHT);
    }
    return KernelAnswer(whole);
  }
  void ExpectAttends(const v1::AttendRequest& request) {
    const v1::AttendResponse got = Attend(request);
    ExpectOk();
    const v1::ComputeAttentionResponse wanted = Wanted(request);
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

TEST_F(SessionServiceTest, TellsWhatASessionIs) {
  const v1::Session session = Create("a", 2);
  ExpectOk();
  EXPECT_EQ(session.id(), "a");
  EXPECT_EQ(session.config().num_layers(), 2);
  EXPECT_EQ(session.config().data_type(), v1::DATA_TYPE_FLOAT32);
  EXPECT_EQ(session.config().lease().seconds(), 60);
  EXPECT_EQ(session.lengths_size(), 2);
  EXPECT_GT(session.expire_time().seconds(), 0);
  Append(AppendRequest("a", 5, 1));
  EXPECT_EQ(Get("a").lengths(1), 5);
  EXPECT_EQ(Create("a", 2).lengths(1), 5);
  ExpectOk();
  Create("a", 3);
  ExpectError(grpc::StatusCode::ALREADY_EXISTS, "SESSION_EXISTS");
}

TEST_F(SessionServiceTest, ChoosesIds) {
  const v1::Session one = Create("");
  const v1::Session other = Create("");
  ExpectOk();
  EXPECT_EQ(one.id().size(), 32u);
  EXPECT_NE(one.id(), other.id());
}

TEST_F(SessionServiceTest, AttendsWithTheBitsOfOneRequest) {
  Create("a");
  for (int64_t count : {1, 300, 2, 17}) {
    const int64_t length = Append(AppendRequest("a", count)).length();
    ExpectOk();
    EXPECT_EQ(Get("a").lengths(0), length);
    v1::AttendRequest request = AttendRequest("a", 1);
    ExpectAttends(request);
    request = AttendRequest("a", 5);
    request.mutable_options()->set_return_log_sum_exp(true);
    request.mutable_options()->set_softcap(3);
    ExpectAttends(request);
    request.set_not_causal(true);
    request.mutable_options()->mutable_window()->set_left(9);
    request.mutable_options()->set_return_scores(v1::SCORES_WEIGHTS);
    ExpectAttends(request);
  }
  v1::AttendRequest request = AttendRequest("a", 2);
  *request.mutable_mask() = RandomTensor(v1::DATA_TYPE_BOOL, {2, 320}, 7);
  ExpectAttends(request);
}

TEST_F(SessionServiceTest, AttendsToNothing) {
  Create("a");
  ExpectAttends(AttendRequest("a", 1));
}

TEST_F(SessionServiceTest, ForksAndTruncates) {
  Create("a");
  Append(AppendRequest("a", 30));
  v1::ForkSessionsRequest forks;
  for (const char* target : {"b", ""}) {
    auto* const fork = forks.add_forks();
    fork->set_source("a");
    fork->set_target(target);
  }
  const v1::ForkSessionsResponse made =
      Call(&v1::SessionService::Stub::ForkSessions, forks);
  ExpectOk();
  ASSERT_EQ(made.sessions_size(), 2);
  EXPECT_EQ(made.sessions(1).lengths(0), 30);
  ExpectAttends(AttendRequest(made.sessions(1).id(), 1));
  v1::TruncateSessionRequest truncate;
  truncate.set_id("b");
  truncate.set_length(31);
  Call(&v1::SessionService::Stub::TruncateSession, truncate);
  ExpectError(grpc::StatusCode::INVALID_ARGUMENT, "INVALID_FIELD");
  truncate.set_length(20);
  EXPECT_EQ(Call(&v1::SessionService::Stub::TruncateSession, truncate)
                .session()
                .lengths(0),
            20);
  EXPECT_EQ(Get("a").lengths(0), 30);
  keys_.Truncate(20);
  values_.Truncate(20);
  Append(AppendRequest("b", 3));
  ExpectAttends(AttendRequest("b", 2));
  Call(&v1::SessionService::Stub::ForkSessions, forks);
  ExpectError(grpc::StatusCode::ALREADY_EXISTS, "SESSION_EXISTS");
}

TEST_F(SessionServiceTest, ListsInPages) {
  for (const char* id : {"c", "a", "b"}) Create(id);
  v1::ListSessionsRequest request;
  request.set_page_size(2);
  v1::ListSessionsResponse page =
      Call(&v1::SessionService::Stub::ListSessions, request);
  ASSERT_EQ(page.sessions_size(), 2);
  EXPECT_EQ(page.sessions(1).id(), "b");
  request.set_page_token(page.next_page_token());
  page = Call(&v1::SessionService::Stub::ListSessions, request);
  ASSERT_EQ(page.sessions_size(), 1);
  EXPECT_EQ(page.next_page_token(), "");
}

TEST_F(SessionServiceTest, APageHasSoManyLayersAtMost) {
  for (int i = 10; i < 80; ++i) Create("s" + std::to_string(i), 1024);
  v1::ListSessionsRequest request;
  v1::ListSessionsResponse page =
      Call(&v1::SessionService::Stub::ListSessions, request);
  EXPECT_EQ(page.sessions_size(), 64);
  request.set_page_token(page.next_page_token());
  page = Call(&v1::SessionService::Stub::ListSessions, request);
  ASSERT_EQ(page.sessions_size(), 6);
  EXPECT_EQ(page.sessions(0).id(), "s74");
  EXPECT_EQ(page.next_page_token(), "");
}

TEST_F(SessionServiceTest, AConflictTellsTheTrueLength) {
  Create("a");
  Append(AppendRequest("a", 7));
  v1::AppendKeyValuesRequest request = AppendRequest("a", 1);
  request.set_expected_length(3);
  Append(request);
  details::v1::Status status;
  ASSERT_TRUE(status.ParseFromString(status_.error_details()));
  details::v1::ErrorInfo info;
  ASSERT_TRUE(info.ParseFromString(status.details(0).value()));
  EXPECT_EQ(info.reason(), "LENGTH_CONFLICT");
  EXPECT_EQ(info.metadata().at("length"), "7");
}

TEST_F(SessionServiceTest, WhatWasDeletedIsUnknown) {
  Create("a");
  v1::DeleteSessionRequest request;
  request.set_id("a");
  for (int i = 0; i < 2; ++i) {
    Call(&v1::SessionService::Stub::DeleteSession, request);
    ExpectOk();
  }
  Get("a");
  ExpectError(grpc::StatusCode::NOT_FOUND, "SESSION_UNKNOWN");
  EXPECT_EQ(DetailsOf(status_).resource, "a");
  Append(AppendRequest("a", 1));
  ExpectError(grpc::StatusCode::NOT_FOUND, "SESSION_UNKNOWN");
  Attend(AttendRequest("a", 1));
  ExpectError(grpc::StatusCode::NOT_FOUND, "SESSION_UNKNOWN");
}

TEST_F(SessionServiceTest, AppendsOnce) {
  Create("a");
  v1::AppendKeyValuesRequest request = AppendRequest("a", 4);
  request.set_expected_length(0);
  request.set_request_id("first");
  EXPECT_EQ(Append(request).length(), 4);
  EXPECT_EQ(Append(request).length(), 4);
  ExpectOk();
  EXPECT_EQ(Get("a").lengths(0), 4);
  request.mutable_value()->mutable_data()->back() ^= 1;
  Append(request);
  ExpectError(grpc::StatusCode::ABORTED, "LENGTH_CONFLICT");
  request.set_request_id("second");
  Append(request);
  ExpectError(grpc::StatusCode::ABORTED, "LENGTH_CONFLICT");
  EXPECT_EQ(Get("a").lengths(0), 4);
  v1::AttendRequest attend = AttendRequest("a", 1);
  attend.set_expected_length(3);
  Attend(attend);
  ExpectError(grpc::StatusCode::ABORTED, "LENGTH_CONFLICT");
}

TEST_F(SessionServiceTest, LargeAppendsGoThroughTheExecutor) {
  Create("a");
  EXPECT_EQ(Append(AppendRequest("a", 20000)).length(), 20000);
  ExpectOk();
  ExpectAttends(AttendRequest("a", 1));
  v1::AppendKeyValuesRequest again = AppendRequest("a", 10000);
  again.set_request_id("x");
  EXPECT_EQ(Append(again).length(), 30000);
  EXPECT_EQ(Append(again).length(), 30000);
  again.mutable_key()->mutable_data()->back() ^= 1;
  Append(again);
  ExpectError(grpc::StatusCode::ABORTED, "LENGTH_CONFLICT");
}

TEST_F(SessionServiceTest, NamesWhatIsWrong) {
  Create("a");
  Append(AppendRequest("a", 2));
  const auto field = [&] {
    EXPECT_EQ(status_.error_code(), grpc::StatusCode::INVALID_ARGUMENT)
        << status_.error_message();
    return DetailsOf(status_).field;
  };
  v1::AttendRequest attend = AttendRequest("a", 1);
  attend.mutable_query()->set_shape(0, 3);
  attend.mutable_query()->mutable_data()->resize(3 * kKeySize * 4);
  Attend(attend);
  EXPECT_EQ(field(), "query.shape");
  attend = AttendRequest("a", 1);
  attend.mutable_query()->set_data_type(v1::DATA_TYPE_INT32);
  Attend(attend);
  EXPECT_EQ(field(), "query.data_type");
  attend = AttendRequest("a", 1);
  attend.mutable_options()->set_layout(v1::LAYOUT_BHSD);
  Attend(attend);
  EXPECT_EQ(field(), "options.layout");
  attend = AttendRequest("a", 1);
  *attend.mutable_mask() = RandomTensor(v1::DATA_TYPE_BOOL, {1, 3}, 1);
  Attend(attend);
  EXPECT_EQ(field(), "mask.shape");
  attend = AttendRequest("a", 1);
  attend.set_not_causal(true);
  attend.mutable_options()->set_causal(v1::CAUSAL_TOP_LEFT);
  Attend(attend);
  EXPECT_EQ(field(), "not_causal");
  v1::AppendKeyValuesRequest append = AppendRequest("a", 1);
  append.clear_value();
  Append(append);
  EXPECT_EQ(field(), "value");
  append = AppendRequest("a", 2);
  append.mutable_key()->set_shape(1, 1);
  Append(append);
  EXPECT_EQ(field(), "key.data");
  append = AppendRequest("a", 2);
  *append.mutable_value() = values_.Add(3, 1);
  Append(append);
  EXPECT_EQ(field(), "value.shape");
  append = AppendRequest("a", 2);
  append.set_request_id(std::string(65, 'r'));
  Append(append);
  EXPECT_EQ(field(), "request_id");
  EXPECT_EQ(Get("a").lengths(0), 2);
  append = AppendRequest("a", 2, 1);
  Append(append);
  ExpectError(grpc::StatusCode::OUT_OF_RANGE, "LAYER_UNKNOWN");
  Create(std::string(129, 'a'));
  EXPECT_EQ(field(), "id");
}

TEST(SessionLimitsTest, AreThoseOfTheOptions) {
  server::Options options = TestServer::DefaultOptions();
  options.max_session_bytes = 4096;
  options.max_sessions = 1;
  TestServer server(options);
  const auto stub =
      v1::SessionService::NewStub(server.Channel(Transport::kInProcess));
  v1::CreateSessionRequest create;
  create.set_id("a");
  create.mutable_config()->set_kv_heads(1);
  create.mutable_config()->set_head_size(64);
  v1::CreateSessionResponse session;
  grpc::ClientContext first, second, third;
  ASSERT_TRUE(stub->CreateSession(&first, create, &session).ok());
  const int64_t before = server.server().sessions().totals().bytes;
  create.set_id("b");
  grpc::Status status = stub->CreateSession(&second, create, &session);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(DetailsOf(status).reason, "SESSION_COUNT");
  v1::AppendKeyValuesRequest append;
  append.set_id("a");
  *append.mutable_key() = RandomTensor(v1::DATA_TYPE_FLOAT32, {1, 64, 64}, 1);
  *append.mutable_value() = append.key();
  v1::AppendKeyValuesResponse response;
  status = stub->AppendKeyValues(&third, append, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(DetailsOf(status).reason, "SESSION_BYTES");
  EXPECT_EQ(server.server().sessions().totals().bytes, before);
}

}  // namespace
}  // namespace attention::testing
