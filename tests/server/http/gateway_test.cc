// Calls over HTTP, in JSON.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "attention/v1/attention.grpc.pb.h"
#include "attention/v1/session.grpc.pb.h"
#include "google/protobuf/util/json_util.h"
#include "server/auth/token_file.h"
#include "tests/support/certificates.h"
#include "tests/support/http_client.h"
#include "tests/support/messages.h"
#include "tests/support/test_server.h"

namespace attention::testing {
namespace {

using Json = nlohmann::json;
using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kCompute[] = "/v1/attention:compute";

std::string Request(const std::string& method, const std::string& path,
                    const std::string& body = "",
                    const std::vector<std::string>& headers = {}) {
  std::string text = absl::StrCat(
      method, " ", path,
      " HTTP/1.1\r\nHost: test\r\nContent-Length: ", body.size(), "\r\n");
  for (const std::string& header : headers) {
    absl::StrAppend(&text, header, "\r\n");
  }
  return absl::StrCat(text, "\r\n", body);
}

class GatewayTest : public ::testing::Test {
 protected:
  static server::Options WithHttp() {
    server::Options options = TestServer::DefaultOptions();
    options.http_listen = "127.0.0.1:0";
    options.http_timeout = absl::Hours(1);
    return options;
  }

  void Start(const server::Options& options = WithHttp()) {
    server_ = std::make_unique<TestServer>(options);
  }

  // One that is good, of the tenant "a".
  void StartWithToken(const std::string& token) {
    const server::TokenHash hash = server::HashOf(token);
    server::Options options = WithHttp();
    options.tokens = folder_.Write(
        "tokens", absl::StrCat(absl::BytesToHexString(absl::string_view(
                                   reinterpret_cast<const char*>(hash.data()),
                                   hash.size())),
                               " a\n"));
    Start(options);
  }

  std::unique_ptr<HttpClient> Connect() {
    return std::make_unique<HttpClient>(server_->server().http_address());
  }

  HttpClient::Response Send(const std::string& method, const std::string& path,
                            const std::string& body = "",
                            std::vector<std::string> headers = {}) {
    if (method == "POST") headers.push_back("Content-Type: application/json");
    const auto client = Connect();
    client->Send(Request(method, path, body, headers));
    return client->Read(/*bodyless=*/method == "OPTIONS");
  }
  Json Post(const std::string& path, const Json& body, int status = 200) {
    const HttpClient::Response response = Send("POST", path, body.dump());
    EXPECT_EQ(response.status, status) << response.body;
    EXPECT_THAT(response.headers, HasSubstr("Content-Type: application/json"));
    return Json::parse(response.body);
  }

  TestFolder folder_;
  std::unique_ptr<TestServer> server_;
};

const Json& SmallJson() {
  static const Json json = {{"query", {{1, 0}}},
                            {"key", {{1, 0}, {0, 1}}},
                            {"value", {{1, 2}, {3, 4}}}};
  return json;
}

TEST_F(GatewayTest, ComputesWhatNestedListsSay) {
  Start();
  const Json answer = Post(kCompute, SmallJson());
  EXPECT_EQ(answer["output"]["shape"], (Json{"1", "2"}));
  EXPECT_NEAR(answer["output"]["floatValues"][0], 1.6604769, 1e-6);
  EXPECT_NEAR(answer["output"]["floatValues"][1], 2.6604769, 1e-6);
}

TEST_F(GatewayTest, GivesTheBitsOfGrpc) {
  Start();
  for (const bool as_data : {false, true}) {
    v1::ComputeAttentionRequest request = SmallRequest();
    request.mutable_options()->set_return_log_sum_exp(true);
    if (as_data) {
      for (v1::Tensor* tensor : {request.mutable_query(), request.mutable_key(),
                                 request.mutable_value()}) {
        const std::vector<float> values(tensor->float_values().begin(),
                                        tensor->float_values().end());
        if (values.empty()) continue;
        tensor->set_data_type(v1::DATA_TYPE_FLOAT32);
        tensor->set_data(values.data(), values.size() * sizeof(float));
        tensor->clear_float_values();
      }
    }
    grpc::ClientContext context;
    v1::ComputeAttentionResponse wanted;
    ASSERT_TRUE(
        v1::AttentionService::NewStub(server_->Channel(Transport::kLoopback))
            ->ComputeAttention(&context, request, &wanted)
            .ok());
    std::string json;
    ASSERT_TRUE(
        google::protobuf::util::MessageToJsonString(request, &json).ok());
    const HttpClient::Response response = Send("POST", kCompute, json);
    ASSERT_EQ(response.status, 200) << response.body;
    v1::ComputeAttentionResponse got;
    ASSERT_TRUE(
        google::protobuf::util::JsonStringToMessage(response.body, &got).ok());
    got.clear_timing();
    wanted.clear_timing();
    EXPECT_EQ(got.SerializeAsString(), wanted.SerializeAsString());
  }
}

template <typename T>
std::vector<Json> ElementsOf(const std::string& data) {
  std::vector<T> elements(data.size() / sizeof(T));
  std::memcpy(elements.data(), data.data(), data.size());
  return {elements.begin(), elements.end()};
}

// A tensor of FLOAT32, BOOL or INT32 as nested lists.
Json NestedLists(const v1::Tensor& tensor) {
  std::vector<Json> parts;
  if (tensor.data_type() == v1::DATA_TYPE_FLOAT32) {
    parts = ElementsOf<float>(tensor.data());
  } else if (tensor.data_type() == v1::DATA_TYPE_INT32) {
    parts = ElementsOf<int32_t>(tensor.data());
  } else {
    for (const char byte : tensor.data()) parts.emplace_back(byte != 0);
  }
  for (int axis = tensor.shape_size() - 1; axis >= 0; --axis) {
    std::vector<Json> lists;
    const auto length = static_cast<size_t>(tensor.shape(axis));
    for (size_t i = 0; i < parts.size(); i += length) {
      lists.emplace_back(
          Json::array_t(parts.begin() + i, parts.begin() + i + length));
    }
    parts = std::move(lists);
  }
  return parts.at(0);
}

// The JSON of a request whose every tensor is nested lists.
std::string WithLists(const google::protobuf::Message& request) {
  std::string text;
  EXPECT_TRUE(google::protobuf::util::MessageToJsonString(request, &text).ok());
  Json json = Json::parse(text);
  std::vector<const google::protobuf::FieldDescriptor*> fields;
  request.GetReflection()->ListFields(request, &fields);
  for (const auto* field : fields) {
    if (field->message_type() != v1::Tensor::descriptor()) continue;
    json[field->json_name()] = NestedLists(static_cast<const v1::Tensor&>(
        request.GetReflection()->GetMessage(request, field)));
  }
  return json.dump();
}

// An answer in JSON without its timing.
template <typename T>
std::string AnswerIn(const HttpClient::Response& response) {
  EXPECT_EQ(response.status, 200) << response.body;
  T answer;
  EXPECT_TRUE(
      google::protobuf::util::JsonStringToMessage(response.body, &answer).ok());
  answer.clear_timing();
  return answer.DebugString();
}

// The query in float_values, so that the answer is in them too.
template <typename T>
T AskingForFloats(T request) {
  const std::vector<float> values = FloatsOf(request.query());
  request.mutable_query()->clear_data();
  request.mutable_query()->mutable_float_values()->Add(values.begin(),
                                                       values.end());
  return request;
}

v1::Tensor IntTensor(const std::vector<int64_t>& shape,
                     const std::vector<int32_t>& values) {
  v1::Tensor tensor = RandomTensor(v1::DATA_TYPE_INT32, shape, 0);
  tensor.set_data(values.data(), values.size() * sizeof(int32_t));
  return tensor;
}

TEST_F(GatewayTest, TakesEveryTensorAsNestedLists) {
  Start();
  constexpr v1::DataType kFloat = v1::DATA_TYPE_FLOAT32;
  v1::ComputeAttentionRequest dense;
  *dense.mutable_query() = RandomTensor(kFloat, {1, 2, 3, 4}, 1);
  *dense.mutable_key() = RandomTensor(kFloat, {1, 1, 5, 4}, 2);
  *dense.mutable_value() = RandomTensor(kFloat, {1, 1, 5, 2}, 3);
  *dense.mutable_sinks() = RandomTensor(kFloat, {1, 2, 3}, 4);
  *dense.mutable_mask() = RandomTensor(kFloat, {3, 5}, 5);
  dense.add_valid_lengths(4);
  dense.mutable_options()->set_return_log_sum_exp(true);
  dense.mutable_options()->set_return_scores(v1::SCORES_WEIGHTS);
  dense.mutable_options()->set_return_present(true);
  for (const double slope : {0.5, 0.25}) {
    dense.mutable_options()->add_alibi_slopes(slope);
  }

  v1::ComputeAttentionRequest past = dense;
  past.clear_valid_lengths();
  *past.mutable_past_key() = RandomTensor(kFloat, {1, 1, 2, 4}, 6);
  *past.mutable_past_value() = RandomTensor(kFloat, {1, 1, 2, 2}, 7);
  *past.mutable_mask() = RandomTensor(v1::DATA_TYPE_BOOL, {3, 7}, 8);
  *past.mutable_indices() =
      IntTensor({1, 3, 4}, {0, 1, 2, 6, -1, 6, 5, 4, 3, 3, 0, -1});

  v1::ComputeAttentionRequest ragged;
  *ragged.mutable_query() = RandomTensor(kFloat, {3, 1, 4}, 1);
  *ragged.mutable_key() = RandomTensor(kFloat, {5, 1, 4}, 2);
  *ragged.mutable_value() = RandomTensor(kFloat, {5, 1, 2}, 3);
  *ragged.mutable_indices() = IntTensor({3, 2}, {1, 0, 2, -1, 0, 2});
  ragged.mutable_options()->set_layout(v1::LAYOUT_RAGGED);
  for (const int64_t start : {0, 1, 3}) ragged.add_query_starts(start);
  for (const int64_t start : {0, 2, 5}) ragged.add_key_starts(start);

  const auto stub =
      v1::AttentionService::NewStub(server_->Channel(Transport::kLoopback));
  for (const v1::ComputeAttentionRequest& request : {dense, past, ragged}) {
    grpc::ClientContext context;
    v1::ComputeAttentionResponse wanted;
    const grpc::Status status =
        stub->ComputeAttention(&context, AskingForFloats(request), &wanted);
    ASSERT_TRUE(status.ok()) << status.error_message();
    wanted.clear_timing();
    EXPECT_EQ(AnswerIn<v1::ComputeAttentionResponse>(
                  Send("POST", kCompute, WithLists(request))),
              wanted.DebugString());
  }
}

TEST_F(GatewayTest, SessionsTakeEveryTensorAsNestedLists) {
  Start();
  constexpr v1::DataType kFloat = v1::DATA_TYPE_FLOAT32;
  Post("/v1/sessions",
       {{"id", "a"}, {"config", {{"kvHeads", 1}, {"headSize", 4}}}});
  v1::AppendKeyValuesRequest append;
  *append.mutable_key() = RandomTensor(kFloat, {1, 5, 4}, 1);
  *append.mutable_value() = RandomTensor(kFloat, {1, 5, 4}, 2);
  const std::string path = "/v1/sessions/a";
  ASSERT_EQ(Send("POST", path + ":append", WithLists(append)).status, 200);

  v1::AttendRequest attend;
  attend.set_id("a");
  *attend.mutable_query() = RandomTensor(kFloat, {2, 3, 4}, 3);
  *attend.mutable_mask() = RandomTensor(v1::DATA_TYPE_BOOL, {2, 3, 5}, 4);
  *attend.mutable_indices() =
      IntTensor({2, 3, 2}, {0, 1, 1, -1, 3, 4, 4, 0, 2, 1, 2, 2});
  *attend.mutable_sinks() = RandomTensor(kFloat, {2, 3}, 5);
  attend.mutable_options()->set_return_log_sum_exp(true);
  attend.mutable_options()->set_return_scores(v1::SCORES_BIASED);
  grpc::ClientContext context;
  v1::AttendResponse wanted;
  const grpc::Status status =
      v1::SessionService::NewStub(server_->Channel(Transport::kLoopback))
          ->Attend(&context, AskingForFloats(attend), &wanted);
  ASSERT_TRUE(status.ok()) << status.error_message();
  wanted.clear_timing();
  EXPECT_EQ(AnswerIn<v1::AttendResponse>(
                Send("POST", path + ":attend", WithLists(attend))),
            wanted.DebugString());
}

TEST_F(GatewayTest, SessionsLiveAcrossRequests) {
  Start();
  const Json config = {{"numLayers", 1}, {"kvHeads", 1}, {"headSize", 2}};
  const Json created =
      Post("/v1/sessions", {{"id", "a/b:c"}, {"config", config}});
  EXPECT_EQ(created["session"]["id"], "a/b:c");
  const std::string path = "/v1/sessions/a%2Fb%3Ac";
  EXPECT_EQ(Post(path + ":append", {{"key", {{{1, 0}, {0, 1}}}},
                                    {"value", {{{1, 2}, {3, 4}}}}})["length"],
            "2");
  const Json attended = Post(path + ":attend", {{"query", {{{1, 0}}}}});
  EXPECT_NEAR(attended["output"]["floatValues"][0], 1.6604769, 1e-6);
  const Json forked =
      Post("/v1/sessions:fork",
           {{"forks", Json::array({{{"source", "a/b:c"}, {"target", "d"}}})}});
  EXPECT_EQ(forked["sessions"][0]["lengths"], (Json{"2"}));
  const Json cut = Post("/v1/sessions/d:truncate", {{"length", 1}});
  EXPECT_EQ(cut["session"]["lengths"], (Json{"1"}));
  const Json got = Json::parse(Send("GET", path).body);
  EXPECT_EQ(got["session"]["lengths"], (Json{"2"}));
  const Json page = Json::parse(Send("GET", "/v1/sessions?page_size=1").body);
  ASSERT_EQ(page["sessions"].size(), 1);
  const std::string token = page["nextPageToken"];
  const Json next = Json::parse(
      Send("GET", "/v1/sessions?page_size=1&page_token=" + token).body);
  ASSERT_EQ(next["sessions"].size(), 1);
  EXPECT_NE(page["sessions"][0]["id"], next["sessions"][0]["id"]);
  EXPECT_EQ(Send("DELETE", path).status, 200);
  EXPECT_EQ(Send("GET", path).status, 404);
}

TEST_F(GatewayTest, AnIdStandsInThePath) {
  Start();
  const Json error = Post("/v1/sessions/a:truncate", {{"id", "b"}}, 400);
  EXPECT_EQ(error["message"], "id: got b in the body and a in the path");
  EXPECT_EQ(Post("/v1/sessions/a:truncate", {{"id", "a"}}, 404)["code"], 5);
}

TEST_F(GatewayTest, TellsWhatIsWrong) {
  Start();
  const struct {
    std::string body;
    std::string message;
    std::string field;  // empty: MALFORMED_MESSAGE
  } cases[] = {
      {R"({"query": [[1]], "key": [[1, 2]], "value": [[1]]})",
       "key.shape: got (1, 2), wanted query's head size 1", "key.shape"},
      {R"({"query": [[1], [1, 2]]})",
       "query: lists of one level have lengths 1 and 2", "query"},
      {R"({"indices": [[[0, 4294967296]]]})",
       "indices: got 4294967296 in a list of integers of 32 bits", "indices"},
      {R"({"query": [[1]], "kee": []})", "kee", ""},
      {R"({"options": {"causal": "CAUSAL_ODD"}})", "got \"CAUSAL_ODD\", wanted",
       "causal"},
      {R"({"options": {"causal": "top_left"}})",
       "got \"top_left\", wanted CAUSAL_TOP_LEFT, CAUSAL_BOTTOM_RIGHT",
       "causal"},
      {R"({"query": {"dataType": "FLOAT32"}})",
       "got \"FLOAT32\", wanted DATA_TYPE_FLOAT32, DATA_TYPE_FLOAT16, ",
       "dataType"},
      {"{", "at byte", ""},
      {"[]", "the body is not the JSON of attention.v1.Compute", ""},
      {"", "the body is not the JSON of attention.v1.Compute", ""},
  };
  for (const auto& [body, message, field] : cases) {
    const HttpClient::Response response = Send("POST", kCompute, body);
    EXPECT_EQ(response.status, 400) << body;
    const Json json = Json::parse(response.body);
    EXPECT_EQ(json["code"], 3);
    EXPECT_THAT(std::string(json["message"]), HasSubstr(message)) << body;
    if (field.empty()) {
      EXPECT_EQ(json["details"][0]["reason"], "MALFORMED_MESSAGE") << body;
    } else {
      EXPECT_EQ(json["details"][0]["fieldViolations"][0]["field"], field);
    }
  }
}

TEST_F(GatewayTest, OtherPathsAndMethodsAndTypes) {
  Start();
  EXPECT_EQ(Send("GET", "/v1/other").status, 404);
  EXPECT_EQ(Json::parse(Send("GET", "/v1/other").body)["code"], 5);
  // What ends in a verb is no id.
  EXPECT_THAT(Send("GET", "/v1/sessions/a:append").headers,
              HasSubstr("Allow: POST\r\n"));
  const HttpClient::Response wrong = Send("GET", kCompute);
  EXPECT_EQ(wrong.status, 405);
  EXPECT_THAT(wrong.headers, HasSubstr("Allow: POST"));
  EXPECT_EQ(Json::parse(wrong.body)["code"], 12);
  for (const char* type : {"Content-Type: text/plain",
                           "Content-Type: application/jsonx", "X: y"}) {
    const auto client = Connect();
    client->Send(Request("POST", kCompute, SmallJson().dump(), {type}));
    EXPECT_EQ(client->Read().status, 415) << type;
  }
  const auto client = Connect();
  client->Send(Request("POST", kCompute, SmallJson().dump(),
                       {"content-type: Application/JSON; charset=utf-8"}));
  EXPECT_EQ(client->Read().status, 200);
}

TEST_F(GatewayTest, BodiesAndAnswersAreBounded) {
  server::Options options = WithHttp();
  options.http_max_body_bytes = 4096;
  Start(options);
  const HttpClient::Response large =
      Send("POST", kCompute, std::string(4097, ' '));
  EXPECT_EQ(large.status, 413);
  EXPECT_EQ(Json::parse(large.body)["code"], 8);
  // The outer product is larger than both.
  const Json wide = {
      {"query", Json(100, Json{1})}, {"key", {{1}}}, {"value", {Json(100, 1)}}};
  // Refused before it is computed, and not worth trying again.
  const Json error = Post(kCompute, wide, 413);
  EXPECT_EQ(error["code"], 8);
  EXPECT_EQ(error["details"][0]["reason"], "ANSWER_TOO_LARGE");
}

TEST_F(GatewayTest, RequestsWithoutTensorsAreSmall) {
  Start();
  const std::string spaces((1 << 20) + 1, ' ');
  EXPECT_EQ(Send("POST", "/v1/sessions", spaces).status, 413);
  EXPECT_EQ(Send("POST", kCompute, spaces + SmallJson().dump()).status, 200);
}

TEST_F(GatewayTest, ManyFailuresLeaveNothingBehind) {
  server::Options options = WithHttp();
  options.http_max_body_bytes = 4096;
  Start(options);
  for (int i = 0; i < 50; ++i) {
    Connect()->Send(Request("POST", kCompute, std::string(4000, '['),
                            {"Content-Type: application/json"}));
    Send("POST", kCompute, std::string(4000, '{'));
  }
  EXPECT_TRUE(WaitUntil([&] {
    return Send("POST", kCompute, SmallJson().dump()).status == 200;
  }));
}

TEST_F(GatewayTest, NoByteOfAPathIsCutOff) {
  Start();
  const Json config = {{"numLayers", 1}, {"kvHeads", 1}, {"headSize", 2}};
  Post("/v1/sessions", {{"id", "a"}, {"config", config}});
  EXPECT_EQ(Send("GET", "/v1/sessions/a%00b").status, 404);
  EXPECT_EQ(Send("DELETE", "/v1/sessions/a%00b").status, 200);
  EXPECT_EQ(Send("GET", "/v1/sessions/a").status, 200);
  EXPECT_EQ(Send("GET", "/v1/sessions?page_size=5%00x").status, 400);
  EXPECT_EQ(Send("GET", "/v1/sessions/%61").status, 200);
}

TEST_F(GatewayTest, TokensHoldAsForGrpc) {
  StartWithToken("secret-token");
  const std::string body = SmallJson().dump();
  const HttpClient::Response none = Send("POST", kCompute, body);
  EXPECT_EQ(none.status, 401);
  EXPECT_THAT(none.headers, HasSubstr("WWW-Authenticate: Bearer"));
  EXPECT_EQ(
      Send("POST", kCompute, body, {"Authorization: Bearer wrong"}).status,
      401);
  // No byte of it ends the process.
  EXPECT_EQ(
      Send("POST", kCompute, body, {"Authorization: Bearer \xff\x01"}).status,
      401);
  EXPECT_EQ(Send("POST", kCompute, body, {"Authorization: Bearer secret-token"})
                .status,
            200);
  EXPECT_EQ(Connect()->Get("/livez").status, 200);
  // Before the body comes.
  const auto client = Connect();
  client->Send(absl::StrCat("POST ", kCompute,
                            " HTTP/1.1\r\nHost: test\r\nContent-Length: 50\r\n"
                            "Content-Type: application/json\r\n\r\n"));
  EXPECT_EQ(client->Read().status, 401);
}

TEST_F(GatewayTest, SeveralTokensAreNone) {
  StartWithToken("secret-token");
  const HttpClient::Response response =
      Send("POST", kCompute, SmallJson().dump(),
           {"Authorization: Bearer secret-token", "authorization: Bearer b"});
  EXPECT_EQ(response.status, 401);
  EXPECT_EQ(Json::parse(response.body)["details"][0]["reason"],
            "TOKEN_MALFORMED");
}

// Whatever is answered, and by whom, it says which call it answers and which
// page may read it.
TEST_F(GatewayTest, EveryAnswerNamesItsCall) {
  server::Options options = WithHttp();
  options.http_max_body_bytes = 4096;
  options.http_allow_origins = {"https://a.example"};
  Start(options);
  const auto check = [&](const std::string& path, const std::string& body,
                         int status, std::vector<std::string> more = {}) {
    more.push_back("X-Request-Id: order 17");
    more.push_back("Origin: https://a.example");
    const HttpClient::Response response = Send("POST", path, body, more);
    EXPECT_EQ(response.status, status) << response.body;
    EXPECT_THAT(response.headers, HasSubstr("x-request-id: order 17\r\n"));
    EXPECT_THAT(
        response.headers,
        HasSubstr("Access-Control-Allow-Origin: https://a.example\r\n"));
  };
  const std::string good = SmallJson().dump();
  for (const std::string path : {kCompute, "/v2/models/attention/infer"}) {
    check(path, "{", 400);
    check(path, std::string(4097, ' '), 413);
    check(path, good, 415, {"Content-Encoding: gzip"});
    check(path, good, 400, {"Grpc-Timeout: soon"});
  }
  check(kCompute, good, 200);
  check("/v1/nothing", good, 404);
}

TEST_F(GatewayTest, AnswersAndWhatTheyHoldAreCounted) {
  Start();
  Post(kCompute, SmallJson());
  Send("POST", kCompute, "{");
  EXPECT_TRUE(WaitUntil([&] {
    const std::string metrics = Connect()->Get("/metrics").body;
    return absl::StrContains(
               metrics, "attention_http_answers_total{status=\"400\"} 1\n") &&
           absl::StrContains(metrics,
                             "attention_memory_bytes{kind=\"http\"} 0\n");
  }));
  EXPECT_THAT(Connect()->Get("/metrics").body,
              HasSubstr("attention_memory_bytes{kind=\"http\"} 0\n"));
}

// Else it would be computed each time that the client is told to try again.
TEST_F(GatewayTest, AnswersThatCannotBeWrittenAreNotComputed) {
  server::Options options = WithHttp();
  options.max_inflight_bytes = int64_t{16} << 20;
  options.max_request_bytes = options.max_response_bytes = int64_t{4} << 20;
  options.http_max_body_bytes = int64_t{4} << 20;
  Start(options);
  const auto request = [](int64_t rows, int64_t columns) {
    const auto tensor = [](int64_t rows, int64_t columns) {
      return Json{{"shape", {rows, columns}},
                  {"floatValues", std::vector<float>(rows * columns, 1)}};
    };
    return Json{{"query", tensor(rows, 1)},
                {"key", tensor(1, 1)},
                {"value", tensor(1, columns)}};
  };
  // A fortieth of the budget, as for bodies.
  const int64_t most = options.max_inflight_bytes / 40;
  const int64_t rows = 100;
  const int64_t columns = most / (rows * sizeof(float));
  Post(kCompute, request(rows, columns - 10));
  const Json refused = Post(kCompute, request(rows, columns + 1), 413);
  EXPECT_THAT(refused["details"].dump(), HasSubstr("ANSWER_TOO_LARGE"));
}

// What is sent over HTTP comes out of the one budget, of which bodies have
// half.
TEST_F(GatewayTest, BodiesComeOutOfTheBudget) {
  server::Options options = WithHttp();
  options.max_inflight_bytes = int64_t{16} << 20;
  options.max_request_bytes = options.max_response_bytes = int64_t{4} << 20;
  options.http_max_body_bytes = int64_t{4} << 20;
  // An end that comes with the last bytes may be seen only then.
  options.http_timeout = absl::Seconds(3);
  Start(options);
  // A fortieth of the budget, as reading takes ten times as much.
  const size_t most = options.max_inflight_bytes / 40;
  EXPECT_EQ(Send("POST", kCompute, std::string(most + 1, ' ')).status, 413);
  EXPECT_EQ(Send("POST", kCompute, std::string(most, ' ')).status, 400);
  // Bodies whose end does not come.
  std::vector<std::unique_ptr<HttpClient>> clients;
  for (int i = 0; i < 40; ++i) {
    clients.push_back(Connect());
    clients.back()->Send(absl::StrCat(
        "POST ", kCompute,
        " HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
        "Content-Length: ",
        most, "\r\n\r\n", std::string(most - 1, ' ')));
  }
  const auto held = [&] {
    const std::string metrics = Connect()->Get("/metrics").body;
    const std::string name = "attention_memory_bytes{kind=\"http\"} ";
    return std::stod(metrics.substr(metrics.find(name) + name.size()));
  };
  EXPECT_TRUE(WaitUntil([&] { return held() > 7e6; }));
  EXPECT_LE(held(), static_cast<double>(options.max_inflight_bytes) / 2);
  // gRPC has the other half.
  grpc::ClientContext context;
  v1::ComputeAttentionResponse response;
  EXPECT_TRUE(
      v1::AttentionService::NewStub(server_->Channel(Transport::kLoopback))
          ->ComputeAttention(&context, SmallRequest(), &response)
          .ok());
  clients.clear();
  EXPECT_TRUE(WaitUntil([&] { return held() == 0; })) << held();
}

TEST_F(GatewayTest, PagesOfOtherOriginsCallOnlyIfNamed) {
  server::Options options = WithHttp();
  options.http_allow_origins = {"https://a.example"};
  Start(options);
  const HttpClient::Response asked = Send(
      "OPTIONS", kCompute, "",
      {"Origin: https://a.example", "Access-Control-Request-Method: POST"});
  EXPECT_EQ(asked.status, 204);
  EXPECT_THAT(asked.headers,
              HasSubstr("Access-Control-Allow-Origin: https://a.example\r\n"));
  EXPECT_THAT(asked.headers, HasSubstr("Access-Control-Allow-Methods: POST"));
  const HttpClient::Response answer =
      Send("POST", kCompute, SmallJson().dump(), {"Origin: https://a.example"});
  EXPECT_EQ(answer.status, 200);
  EXPECT_THAT(answer.headers,
              HasSubstr("Access-Control-Allow-Origin: https://a.example\r\n"));
  // What a browser sends without asking has no effect either.
  EXPECT_EQ(
      Send("POST", kCompute, SmallJson().dump(), {"Origin: https://b.example"})
          .status,
      403);
  // A page of this server, by an address; by a name that anybody could have
  // made to point here.
  const auto status_of = [&](const std::string& host) {
    const auto client = Connect();
    const std::string body = SmallJson().dump();
    client->Send(absl::StrCat("POST ", kCompute, " HTTP/1.1\r\nHost: ", host,
                              "\r\nOrigin: http://", host,
                              "\r\nContent-Type: application/json\r\n"
                              "Content-Length: ",
                              body.size(), "\r\n\r\n", body));
    return client->Read().status;
  };
  EXPECT_EQ(status_of("127.0.0.1:80"), 200);
  EXPECT_EQ(status_of("localhost:80"), 200);
  EXPECT_EQ(status_of("[::1]:80"), 200);
  EXPECT_EQ(status_of("b.example:80"), 403);
  const HttpClient::Response other =
      Send("OPTIONS", kCompute, "", {"Origin: https://b.example"});
  EXPECT_EQ(other.status, 405);
  EXPECT_THAT(other.headers, Not(HasSubstr("Access-Control-")));
}

// A minute of work.
Json LongJson() {
  constexpr int64_t kTokens = int64_t{1} << 18;
  const Json tensor = {
      {"shape", {kTokens, 1}},
      {"dataType", "DATA_TYPE_FLOAT16"},
      {"data", absl::Base64Escape(std::string(kTokens * 2, '\0'))}};
  return {{"query", tensor}, {"key", tensor}, {"value", tensor}};
}

TEST_F(GatewayTest, ADeadlineIsKept) {
  Start();
  const std::string body = SmallJson().dump();
  for (const char* text : {"5", "S", "-1S", "123456789S", "1x", "1.5S"}) {
    const HttpClient::Response bad =
        Send("POST", kCompute, body, {absl::StrCat("Grpc-Timeout: ", text)});
    EXPECT_EQ(bad.status, 400) << text;
  }
  EXPECT_EQ(Send("POST", kCompute, body, {"Grpc-Timeout: 1M"}).status, 200);
  // Far less than it takes.
  EXPECT_THAT(
      Send("POST", kCompute, LongJson().dump(), {"Grpc-Timeout: 200m"}).status,
      AnyOf(504, 429));
}

TEST_F(GatewayTest, GivesBackTheNameOfACall) {
  Start();
  const HttpClient::Response response =
      Send("POST", kCompute, SmallJson().dump(), {"X-Request-Id: order 17"});
  EXPECT_THAT(response.headers, HasSubstr("x-request-id: order 17\r\n"));
}

TEST_F(GatewayTest, AClientThatGoesEndsItsCall) {
  Start();
  auto client = Connect();
  client->Send(Request("POST", kCompute, LongJson().dump(),
                       {"Content-Type: application/json"}));
  EXPECT_TRUE(
      WaitUntil([&] { return server_->server().running_calls() == 1; }));
  client.reset();
  EXPECT_TRUE(
      WaitUntil([&] { return server_->server().running_calls() == 0; }));
}

TEST_F(GatewayTest, CallsGoOnWhileTheServerDrainsAndNoneComesIn) {
  Start();
  auto client = Connect();
  client->Send(Request("POST", kCompute, LongJson().dump(),
                       {"Content-Type: application/json"}));
  EXPECT_TRUE(
      WaitUntil([&] { return server_->server().running_calls() == 1; }));
  server_->server().Shutdown(absl::InfiniteFuture());
  std::thread wait([&] { server_->server().Wait(); });
  EXPECT_TRUE(WaitUntil([&] {
    return Send("POST", kCompute, SmallJson().dump()).status == 503;
  }));
  // A call that was refused is gone a moment after its answer.
  EXPECT_TRUE(
      WaitUntil([&] { return server_->server().running_calls() == 1; }));
  EXPECT_FALSE(client->IsClosed());
  // Even what the end of the server ends is told.
  server_->server().Shutdown(absl::InfinitePast());
  const HttpClient::Response response = client->Read();
  EXPECT_THAT(response.status, AnyOf(499, 503)) << response.body;
  EXPECT_TRUE(Json::parse(response.body).contains("message"));
  wait.join();
}

TEST_F(GatewayTest, ManyAtOnce) {
  Start();
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      const auto client = Connect();
      for (int call = 0; call < 20; ++call) {
        client->Send(Request("POST", kCompute, SmallJson().dump(),
                             {"Content-Type: application/json"}));
        EXPECT_EQ(client->Read().status, 200);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace attention::testing
