// Sessions over gRPC: what they hold, what is refused, and that attending gives
// the bits of one request with the same keys and values.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "attention/details/v1/details.pb.h"
#include "attention/v1/attention.grpc.pb.h"
#include "attention/v1/session.grpc.pb.h"
#include "kernel/scaled.h"
#include "sessions/lease_clock.h"
#include "sessions/page.h"
#include "tests/support/messages.h"
#include "tests/support/session_fixture.h"
#include "tests/support/test_server.h"

namespace attention::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class SessionServiceTest : public SessionFixture {};

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
  request.mutable_options()->set_return_log_sum_exp(true);
  *request.mutable_sinks() =
      RandomTensor(v1::DATA_TYPE_FLOAT32, {2 * kHeads, 2}, 8);
  v1::Tensor& indices = *request.mutable_indices();
  indices.set_data_type(v1::DATA_TYPE_INT32);
  for (int64_t dim : {2, 3}) indices.add_shape(dim);
  const int32_t keys[] = {5, 310, -1, 319, 0, 256};
  indices.set_data(keys, sizeof(keys));
  ExpectAttends(request);
  *request.mutable_mask() = Packed(request.mask());
  const std::string output = Attend(request).output().data();
  *request.mutable_mask() = RandomTensor(v1::DATA_TYPE_BOOL, {2, 320}, 7);
  EXPECT_TRUE(output == Attend(request).output().data());
  EXPECT_FALSE(output.empty());
}

// The numbers that are stored, as FLOAT32: [1, Hkv, T, size] of `rows`.
v1::Tensor Stored(DataType type, const v1::Tensor& rows) {
  v1::Tensor stored = rows;
  const int64_t size = rows.shape(3);
  auto* const numbers = reinterpret_cast<float*>(stored.mutable_data()->data());
  for (size_t row = 0; row * size * sizeof(float) < rows.data().size(); ++row) {
    float* const from = numbers + row * size;
    float largest = 0;
    for (int64_t i = 0; i < size; ++i) {
      largest = std::max(largest, std::fabs(from[i]));
    }
    const uint8_t scale = ScaleOf(type, largest);
    std::vector<uint8_t> scaled(size);
    ScaleElements(type, scale, from, size, scaled.data());
    for (int64_t i = 0; i < size; ++i) {
      from[i] = ScaledElement(type, scale, scaled.data(), i);
    }
  }
  return stored;
}

TEST_F(SessionServiceTest, AttendsToScaledRows) {
  for (const auto& [name, wire, type] :
       {std::tuple("int8", v1::DATA_TYPE_INT8, DataType::kInt8),
        std::tuple("fp8", v1::DATA_TYPE_FLOAT8_E4M3, DataType::kFloat8E4M3)}) {
    keys_.Truncate(0);
    values_.Truncate(0);
    v1::CreateSessionRequest create;
    create.set_id(name);
    create.mutable_config()->set_kv_heads(kHeads);
    create.mutable_config()->set_head_size(kKeySize);
    create.mutable_config()->set_value_head_size(kValueSize);
    create.mutable_config()->set_data_type(wire);
    EXPECT_EQ(Call(&v1::SessionService::Stub::CreateSession, create)
                  .session()
                  .config()
                  .data_type(),
              wire);
    for (int64_t count : {1, 300, 2}) {
      v1::AppendKeyValuesRequest append = AppendRequest(name, count);
      append.set_request_id(std::to_string(count));
      Append(append);
      ExpectOk();
      Append(append);
      ExpectOk();
      const v1::AttendRequest request = AttendRequest(name, 1);
      const v1::AttendResponse got = Attend(request);
      ExpectOk();
      v1::ComputeAttentionRequest whole;
      *whole.mutable_query() = request.query();
      whole.mutable_query()->mutable_shape()->Clear();
      for (int64_t dim : {int64_t{1}, 2 * kHeads, int64_t{1}, kKeySize}) {
        whole.mutable_query()->add_shape(dim);
      }
      *whole.mutable_key() = Stored(type, keys_.All());
      *whole.mutable_value() = Stored(type, values_.All());
      whole.mutable_options()->set_causal(v1::CAUSAL_BOTTOM_RIGHT);
      EXPECT_TRUE(got.output().data() == KernelAnswer(whole).output().data());
    }
    v1::AttendRequest half = AttendRequest(name, 1);
    *half.mutable_query() =
        RandomTensor(v1::DATA_TYPE_FLOAT16, {2 * kHeads, 1, kKeySize}, 1);
    Attend(half);
    EXPECT_EQ(DetailsOf(status_).field, "query.data_type");
  }
  v1::AppendKeyValuesRequest eight = AppendRequest("fp8", 1);
  eight.mutable_key()->set_data_type(v1::DATA_TYPE_FLOAT8_E4M3);
  Append(eight);
  EXPECT_EQ(DetailsOf(status_).field, "key.data_type");
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

TEST_F(SessionServiceTest, AnIncarnationTellsSessionsOfOneIdApart) {
  const uint64_t old = Create("a").incarnation();
  EXPECT_NE(old, 0);
  EXPECT_EQ(Create("a").incarnation(), old);
  EXPECT_EQ(Get("a").incarnation(), old);
  v1::DeleteSessionRequest deletion;
  deletion.set_id("a");
  Call(&v1::SessionService::Stub::DeleteSession, deletion);
  const uint64_t now = Create("a").incarnation();
  EXPECT_NE(now, old);
  Append(AppendRequest("a", 2));
  ExpectOk();

  const auto expect_another = [&] {
    ExpectError(grpc::StatusCode::NOT_FOUND, "SESSION_UNKNOWN");
    EXPECT_EQ(DetailsOf(status_).resource, "a");
    EXPECT_THAT(status_.error_message(), HasSubstr("another one, made since"));
  };
  v1::GetSessionRequest get;
  get.set_id("a");
  get.set_incarnation(old);
  Call(&v1::SessionService::Stub::GetSession, get);
  expect_another();
  v1::TruncateSessionRequest truncation;
  truncation.set_id("a");
  truncation.set_incarnation(old);
  Call(&v1::SessionService::Stub::TruncateSession, truncation);
  expect_another();
  v1::ForkSessionsRequest forks;
  forks.add_forks()->set_source("a");
  forks.mutable_forks(0)->set_source_incarnation(old);
  Call(&v1::SessionService::Stub::ForkSessions, forks);
  expect_another();
  v1::AppendKeyValuesRequest append = AppendRequest("a", 1);
  append.set_incarnation(old);
  Append(append);
  expect_another();
  keys_.Truncate(2);
  values_.Truncate(2);
  v1::AttendRequest attend = AttendRequest("a", 1);
  attend.set_incarnation(old);
  Attend(attend);
  expect_another();
  // It has ended already.
  deletion.set_incarnation(old);
  Call(&v1::SessionService::Stub::DeleteSession, deletion);
  ExpectOk();

  get.set_incarnation(now);
  EXPECT_EQ(
      Call(&v1::SessionService::Stub::GetSession, get).session().lengths(0), 2);
  attend.set_incarnation(now);
  ExpectAttends(attend);
  append.set_incarnation(now);
  EXPECT_EQ(Append(append).length(), 3);
  forks.mutable_forks(0)->set_source_incarnation(now);
  const v1::Session fork =
      Call(&v1::SessionService::Stub::ForkSessions, forks).sessions(0);
  EXPECT_NE(fork.incarnation(), 0);
  EXPECT_NE(fork.incarnation(), now);
  truncation.set_incarnation(now);
  Call(&v1::SessionService::Stub::TruncateSession, truncation);
  ExpectOk();
  deletion.set_incarnation(now);
  Call(&v1::SessionService::Stub::DeleteSession, deletion);
  Get("a");
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
  attend.mutable_indices()->set_data_type(v1::DATA_TYPE_INT32);
  for (int64_t dim : {2, 0}) attend.mutable_indices()->add_shape(dim);
  Attend(attend);
  EXPECT_EQ(field(), "indices.shape");
  attend = AttendRequest("a", 1);
  *attend.mutable_sinks() = RandomTensor(v1::DATA_TYPE_FLOAT32, {1, 1}, 1);
  Attend(attend);
  EXPECT_EQ(field(), "sinks.shape");
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

// Of an error's ErrorInfo.
std::string Metadata(const grpc::Status& status, const std::string& name) {
  details::v1::Status details;
  EXPECT_TRUE(details.ParseFromString(status.error_details()));
  for (const auto& detail : details.details()) {
    details::v1::ErrorInfo info;
    if (detail.type_url() != "type.googleapis.com/google.rpc.ErrorInfo")
      continue;
    EXPECT_TRUE(info.ParseFromString(detail.value()));
    const auto found = info.metadata().find(name);
    return found == info.metadata().end() ? "none" : found->second;
  }
  return "none";
}

TEST_F(SessionServiceTest, TellsTheWindowsOfLayers) {
  const v1::Session session = CreateWithWindows("a", 2, {100}, std::nullopt);
  ExpectOk();
  EXPECT_THAT(session.config().retain_window(), ElementsAre(100, 100));
  EXPECT_EQ(session.config().rollback_tokens(), 256);
  CreateWithWindows("a", 2, {100, 100}, 256);
  ExpectOk();
  CreateWithWindows("a", 2, {100, 0}, 256);
  ExpectError(grpc::StatusCode::ALREADY_EXISTS, "SESSION_EXISTS");
  EXPECT_THAT(CreateWithWindows("b", 2, {0, 0}, 0).config().retain_window(),
              ElementsAre());
  ExpectOk();
  EXPECT_EQ(Get("b").config().rollback_tokens(), 0);
  const auto refused = [&](int64_t layers, const std::vector<int64_t>& windows,
                           std::optional<int64_t> rollback) {
    CreateWithWindows("c", layers, windows, rollback);
    ExpectError(grpc::StatusCode::INVALID_ARGUMENT, "INVALID_FIELD");
    return DetailsOf(status_).field;
  };
  EXPECT_EQ(refused(2, {1, 2, 3}, 0), "config.retain_window");
  EXPECT_EQ(refused(2, {1, -2}, 0), "config.retain_window[1]");
  EXPECT_EQ(refused(2, {int64_t{1} << 62}, 0), "config.retain_window[0]");
  EXPECT_EQ(refused(2, {5}, -1), "config.rollback_tokens");
  EXPECT_EQ(refused(int64_t{1} << 60, {5}, 0), "config.num_layers");
  EXPECT_EQ(refused(-1, {5}, 0), "config.num_layers");
}

TEST_F(SessionServiceTest, ALayerWithAWindowAnswersWithinIt) {
  CreateWithWindows("a", 1, {100}, 0);
  const int64_t empty = server_.server().sessions().totals().bytes;
  Append(AppendRequest("a", 600));
  ExpectOk();
  const v1::Session session = Get("a");
  EXPECT_THAT(session.lengths(), ElementsAre(600));
  EXPECT_THAT(session.first_tokens(), ElementsAre(256));
  EXPECT_THAT(session.least_lengths(), ElementsAre(356));
  const PageFormat format = {
      .kv_heads = kHeads, .key_size = kKeySize, .value_size = kValueSize};
  EXPECT_EQ(server_.server().sessions().totals().bytes,
            empty + 2 * Page::Bytes(format, 256) + PageTable::Bytes(2));

  v1::AttendRequest request = AttendRequest("a", 20);
  v1::AttentionOptions& options = *request.mutable_options();
  for (int64_t left : {-2, -1, 100}) {
    options.mutable_window()->clear_left();
    if (left > -2) options.mutable_window()->set_left(left);
    Attend(request);
    ExpectError(grpc::StatusCode::INVALID_ARGUMENT, "INVALID_FIELD");
    EXPECT_EQ(DetailsOf(status_).field, "options.window.left");
  }
  options.mutable_window()->set_left(99);
  options.set_return_scores(v1::SCORES_WEIGHTS);
  Attend(request);
  ExpectError(grpc::StatusCode::INVALID_ARGUMENT, "INVALID_FIELD");
  EXPECT_EQ(DetailsOf(status_).field, "options.return_scores");
  options.clear_return_scores();
  options.set_return_log_sum_exp(true);
  for (double slope : {0.5, 1.0, 0.25, 2.0}) options.add_alibi_slopes(slope);
  ExpectAttends(request);
  options.set_causal(v1::CAUSAL_TOP_LEFT);
  Attend(request);
  ExpectError(grpc::StatusCode::FAILED_PRECONDITION, "TOKENS_RELEASED");
  EXPECT_EQ(Metadata(status_, "first_token"), "256");
  options.clear_causal();

  // A mask of all columns, and one without those that nobody sees.
  *request.mutable_mask() = RandomTensor(v1::DATA_TYPE_BOOL, {20, 600}, 7);
  const v1::ComputeAttentionResponse wanted = Wanted(request);
  ExpectAttends(request, wanted);
  std::string columns;
  for (int64_t query = 0; query < 20; ++query) {
    columns += request.mask().data().substr(query * 600 + 256, 344);
  }
  request.mutable_mask()->set_data(columns);
  request.mutable_mask()->set_shape(1, 344);
  request.set_mask_begin(256);
  ExpectAttends(request, wanted);
  request.set_mask_begin(512);
  Attend(request);
  ExpectError(grpc::StatusCode::INVALID_ARGUMENT, "INVALID_FIELD");
  EXPECT_EQ(DetailsOf(status_).field, "mask_begin");

  // The first of so many sees token 255.
  for (int64_t queries : {246, 245}) {
    request = AttendRequest("a", queries);
    request.mutable_options()->mutable_window()->set_left(99);
    if (queries == 245) {
      ExpectAttends(request);
      continue;
    }
    Attend(request);
    ExpectError(grpc::StatusCode::FAILED_PRECONDITION, "TOKENS_RELEASED");
    EXPECT_EQ(Metadata(status_, "first_token"), "256");
  }
}

TEST_F(SessionServiceTest, ALayerWithAWindowIsTruncatedAsFarAsItSays) {
  CreateWithWindows("a", 1, {100}, 10);
  Append(AppendRequest("a", 600));
  v1::TruncateSessionRequest truncate;
  truncate.set_id("a");
  truncate.set_length(355);
  Call(&v1::SessionService::Stub::TruncateSession, truncate);
  ExpectError(grpc::StatusCode::FAILED_PRECONDITION, "TOKENS_RELEASED");
  EXPECT_EQ(Metadata(status_, "least_length"), "356");
  EXPECT_THAT(Get("a").lengths(), ElementsAre(600));
  truncate.set_length(356);
  Call(&v1::SessionService::Stub::TruncateSession, truncate);
  ExpectOk();
  keys_.Truncate(356);
  values_.Truncate(356);
  v1::AttendRequest request = AttendRequest("a", 1);
  request.mutable_options()->mutable_window()->set_left(99);
  ExpectAttends(request);
  truncate.set_length(0);
  EXPECT_THAT(Call(&v1::SessionService::Stub::TruncateSession, truncate)
                  .session()
                  .first_tokens(),
              ElementsAre(0));
  ExpectOk();
}

// Stands still unless it is moved.
class TestClock final : public LeaseClock {
 public:
  LeaseTime Now() const override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return now_;
  }
  absl::Time WallTime() const override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return wall_;
  }
  void Pass(absl::Duration time) {
    const std::lock_guard<std::mutex> lock(mutex_);
    now_ += time;
    wall_ += time;
  }
  void JumpTo(absl::Time wall) {
    const std::lock_guard<std::mutex> lock(mutex_);
    wall_ = wall;
  }

 private:
  mutable std::mutex mutex_;
  LeaseTime now_{absl::Seconds(1000)};
  absl::Time wall_ = absl::FromUnixSeconds(2000000);
};

class SessionLeaseTest : public SessionFixture {
 protected:
  SessionLeaseTest() : SessionLeaseTest(std::make_shared<TestClock>()) {}
  explicit SessionLeaseTest(const std::shared_ptr<TestClock>& clock)
      : SessionFixture(WithClock(clock)), clock_(clock) {}

  static server::Options WithClock(std::shared_ptr<const LeaseClock> clock) {
    server::Options options = TestServer::DefaultOptions();
    options.lease_clock = std::move(clock);
    return options;
  }
  static int64_t ExpiryOf(const v1::Session& session) {
    return session.expire_time().seconds();
  }
  int64_t sessions() { return server_.server().sessions().totals().sessions; }

  const std::shared_ptr<TestClock> clock_;
};

TEST_F(SessionLeaseTest, AJumpOfWallTimeEndsNoSession) {
  EXPECT_EQ(ExpiryOf(Create("a")), 2000060);
  Append(AppendRequest("a", 3));
  for (const int64_t wall : {9000000, 1000}) {
    clock_->JumpTo(absl::FromUnixSeconds(wall));
    // So much of the lease is over that an eviction is due.
    clock_->Pass(absl::Seconds(50));
    v1::ListSessionsRequest list;
    const auto listed = Call(&v1::SessionService::Stub::ListSessions, list);
    ASSERT_EQ(listed.sessions_size(), 1);
    EXPECT_EQ(ExpiryOf(listed.sessions(0)), wall + 60);
    EXPECT_EQ(ExpiryOf(Get("a")), wall + 110);
    ExpectAttends(AttendRequest("a", 1));
  }
}

TEST_F(SessionLeaseTest, WhatNothingUsesIsEvicted) {
  Create("a");
  Create("b");
  clock_->Pass(absl::Seconds(59));
  Get("b");
  clock_->Pass(absl::Seconds(2));
  Get("a");
  ExpectError(grpc::StatusCode::NOT_FOUND, "SESSION_UNKNOWN");
  EXPECT_TRUE(WaitUntil([&] { return sessions() == 1; }));
  // Wall time that is set back puts nothing off.
  clock_->JumpTo(absl::FromUnixSeconds(0));
  clock_->Pass(absl::Seconds(60));
  EXPECT_TRUE(WaitUntil([&] { return sessions() == 0; }));
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
