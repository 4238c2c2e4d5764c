// The Open Inference Protocol over HTTP.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "tests/support/http_client.h"
#include "tests/support/test_server.h"

namespace attention::testing {
namespace {

using Json = nlohmann::json;
using ::testing::HasSubstr;

constexpr char kInfer[] = "/v2/models/attention/infer";

class InferenceGatewayTest : public ::testing::Test {
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

  HttpClient::Response Send(const std::string& method, const std::string& path,
                            const std::string& body = "",
                            const std::vector<std::string>& headers = {}) {
    HttpClient client(server_->server().http_address());
    std::string text =
        absl::StrCat(method, " ", path, " HTTP/1.1\r\nHost: test\r\n",
                     "Content-Length: ", body.size(), "\r\n");
    for (const std::string& header : headers) {
      absl::StrAppend(&text, header, "\r\n");
    }
    client.Send(absl::StrCat(text, "\r\n", body));
    return client.Read();
  }
  std::string ErrorOf(const std::string& body, int status = 400,
                      const std::vector<std::string>& headers = {}) {
    const HttpClient::Response response = Send("POST", kInfer, body, headers);
    EXPECT_EQ(response.status, status) << response.body;
    const Json json = Json::parse(response.body, nullptr, false);
    EXPECT_TRUE(json.contains("error")) << response.body;
    return json.value("error", "");
  }

  std::unique_ptr<TestServer> server_;
};

Json Input(const std::string& name, const Json& shape, const Json& data) {
  return {
      {"name", name}, {"datatype", "FP32"}, {"shape", shape}, {"data", data}};
}

Json SmallInputs() {
  return {Input("query", {1, 2}, {1, 0}),
          Input("key", {2, 2}, {{1, 0}, {0, 1}}),
          Input("value", {2, 2}, {1, 2, 3, 4})};
}

std::string Bytes(const std::vector<float>& numbers) {
  return {reinterpret_cast<const char*>(numbers.data()),
          numbers.size() * sizeof(float)};
}

Json BinaryInput(const std::string& name, const Json& shape, int64_t bytes) {
  return {{"name", name},
          {"datatype", "FP32"},
          {"shape", shape},
          {"parameters", {{"binary_data_size", bytes}}}};
}

TEST_F(InferenceGatewayTest, NumbersInJson) {
  Start();
  const HttpClient::Response response =
      Send("POST", kInfer, Json{{"id", "7"}, {"inputs", SmallInputs()}}.dump());
  ASSERT_EQ(response.status, 200) << response.body;
  EXPECT_THAT(response.headers, HasSubstr("Content-Type: application/json"));
  const Json json = Json::parse(response.body);
  EXPECT_EQ(json["model_name"], "attention");
  EXPECT_EQ(json["id"], "7");
  const Json& output = json["outputs"][0];
  EXPECT_EQ(output["name"], "output");
  EXPECT_EQ(output["datatype"], "FP32");
  EXPECT_EQ(output["shape"], (Json{1, 2}));
  EXPECT_NEAR(output["data"][0], 1.6604769, 1e-6);
  EXPECT_NEAR(output["data"][1], 2.6604769, 1e-6);
}

TEST_F(InferenceGatewayTest, BytesBehindTheJson) {
  Start();
  const Json json = {
      {"inputs",
       {BinaryInput("query", {1, 2}, 8), Input("key", {2, 2}, {1, 0, 0, 1}),
        BinaryInput("value", {2, 2}, 16)}},
      {"outputs",
       {{{"name", "log_sum_exp"}, {"parameters", {{"binary_data", false}}}},
        {{"name", "output"}, {"parameters", {{"binary_data", true}}}}}}};
  const std::string text = json.dump();
  const HttpClient::Response response =
      Send("POST", kInfer, text + Bytes({1, 0}) + Bytes({1, 2, 3, 4}),
           {absl::StrCat("Inference-Header-Content-Length: ", text.size())});
  ASSERT_EQ(response.status, 200) << response.body;
  const std::string head = "Inference-Header-Content-Length: ";
  const size_t at = response.headers.find(head);
  ASSERT_NE(at, std::string::npos) << response.headers;
  const size_t bytes = std::stoul(response.headers.substr(at + head.size()));
  const Json answer = Json::parse(response.body.substr(0, bytes));
  std::string raw = response.body.substr(bytes);
  ASSERT_EQ(raw.size(), 8);
  float output[2];
  std::memcpy(output, raw.data(), 8);
  EXPECT_NEAR(output[0], 1.6604769, 1e-6);
  bool numbers = false, binary = false;
  for (const Json& one : answer["outputs"]) {
    numbers |= one["name"] == "log_sum_exp" && one["data"].size() == 1;
    binary |= one["name"] == "output" &&
              one["parameters"]["binary_data_size"] == 8 &&
              !one.contains("data");
  }
  EXPECT_TRUE(numbers) << answer;
  EXPECT_TRUE(binary) << answer;
}

TEST_F(InferenceGatewayTest, BooleansIntegersAndWhatIsNotFinite) {
  Start();
  Json inputs = SmallInputs();
  inputs.push_back({{"name", "mask"},
                    {"datatype", "BOOL"},
                    {"shape", {1, 2}},
                    {"data", {{false, true}}}});
  const Json masked =
      Json::parse(Send("POST", kInfer, Json{{"inputs", inputs}}.dump()).body);
  EXPECT_EQ(masked["outputs"][0]["data"], (Json{3.0, 4.0}));
  inputs.back() = {{"name", "mask"},
                   {"datatype", "FP32"},
                   {"shape", {1, 2}},
                   {"data", {"-Infinity", 0}}};
  const Json biased =
      Json::parse(Send("POST", kInfer, Json{{"inputs", inputs}}.dump()).body);
  EXPECT_EQ(biased["outputs"][0]["data"], (Json{3.0, 4.0}));
  inputs[2] = Input("value", {2, 2}, {"NaN", "Infinity", 3, 4});
  inputs.erase(3);
  const Json odd =
      Json::parse(Send("POST", kInfer, Json{{"inputs", inputs}}.dump()).body);
  EXPECT_EQ(odd["outputs"][0]["data"], (Json{"NaN", "Infinity"}));
}

TEST_F(InferenceGatewayTest, Descriptions) {
  Start();
  const auto get = [&](const std::string& path) {
    const HttpClient::Response response = Send("GET", path);
    EXPECT_EQ(response.status, 200) << path << response.body;
    return response.body.empty() ? Json() : Json::parse(response.body);
  };
  EXPECT_EQ(get("/v2")["name"], "attention_server");
  EXPECT_EQ(get("/v2/")["name"], "attention_server");
  get("/v2/health/live");
  get("/v2/health/ready");
  get("/v2/models/attention/ready");
  get("/v2/models/attention/versions/1/ready");
  EXPECT_EQ(get("/v2/models/attention")["inputs"][0]["name"], "query");
  EXPECT_EQ(get("/v2/models/attention/config")["name"], "attention");
  EXPECT_EQ(get("/v2/models/stats")["model_stats"][0]["inference_count"], 0);
  Send("POST", kInfer, Json{{"inputs", SmallInputs()}}.dump());
  EXPECT_EQ(
      get("/v2/models/attention/stats")["model_stats"][0]["inference_count"],
      1);
  EXPECT_EQ(get("/v2/systemsharedmemory/status"), Json::array());
  EXPECT_EQ(get("/v2/cudasharedmemory/region/a/status"), Json::array());
  EXPECT_EQ(Json::parse(Send("POST", "/v2/repository/index").body)[0]["name"],
            "attention");
  for (const char* path : {"/v2/systemsharedmemory/unregister",
                           "/v2/systemsharedmemory/region/x/unregister",
                           "/v2/cudasharedmemory/unregister"}) {
    EXPECT_EQ(Send("POST", path).status, 200) << path;
  }
  const std::string region = "/v2/systemsharedmemory/region/x/register";
  EXPECT_EQ(Send("POST", region, R"({"key":"/k","byte_size":4})").status, 501);
  for (const std::string body :
       {"", "[]", R"({"key":1})", R"({"key":"/k","byte_size":-1})",
        R"({"key":"/k","bytes":4})", R"({"offset":1.5})"}) {
    EXPECT_EQ(Send("POST", region, body).status, 400) << body;
  }
  EXPECT_EQ(Send("GET", "/v2/models/other").status, 404);
  EXPECT_EQ(Send("GET", "/v2/models/attention/versions/2").status, 404);
  for (const char* path :
       {"/v2/other", "/v2/models", "/v2/models/attention/other",
        "/v2/models/attention/versions/1/infer/x", "/v2/systemsharedmemory",
        "/v2/health"}) {
    const HttpClient::Response response = Send("GET", path);
    EXPECT_EQ(response.status, 404) << path;
    EXPECT_TRUE(Json::parse(response.body).contains("error"));
  }
  EXPECT_EQ(Send("GET", kInfer).status, 405);
  EXPECT_EQ(Send("POST", "/v2/health/live").status, 405);
}

TEST_F(InferenceGatewayTest, NotReadyWhileDraining) {
  Start();
  server_->server().Shutdown(absl::InfiniteFuture());
  EXPECT_EQ(Send("GET", "/v2/health/live").status, 200);
  EXPECT_EQ(Send("GET", "/v2/health/ready").status, 503);
  EXPECT_EQ(Send("GET", "/v2/models/attention/ready").status, 503);
}

// However many calls are being worked on, and also while they end.
TEST_F(InferenceGatewayTest, HealthIsAlwaysTold) {
  server::Options options = WithHttp();
  options.http_max_connections = 4;
  // None is refused for the work of the others.
  options.max_queue = absl::Hours(1);
  options.max_inflight_bytes = int64_t{1} << 30;
  Start(options);
  constexpr int64_t kTokens = int64_t{1} << 18;
  Json inputs = Json::array();
  for (const char* name : {"query", "key", "value"}) {
    inputs.push_back(BinaryInput(name, {kTokens, 1}, kTokens * 4));
  }
  const std::string text = Json{{"inputs", inputs}}.dump();
  std::vector<std::unique_ptr<HttpClient>> busy;
  for (int i = 0; i < 3; ++i) {
    busy.push_back(
        std::make_unique<HttpClient>(server_->server().http_address()));
    busy.back()->Send(absl::StrCat(
        "POST ", kInfer, " HTTP/1.1\r\nHost: test\r\nContent-Length: ",
        text.size() + 3 * kTokens * 4, "\r\nInference-Header-Content-Length: ",
        text.size(), "\r\n\r\n", text, std::string(3 * kTokens * 4, '\0')));
  }
  EXPECT_TRUE(
      WaitUntil([&] { return server_->server().running_calls() == 3; }));
  EXPECT_EQ(Send("GET", "/v2/health/ready").status, 200);
  EXPECT_THAT(ErrorOf("{}", 503), HasSubstr("try again"));
  server_->server().Shutdown(absl::InfiniteFuture());
  std::thread wait([&] { server_->server().Wait(); });
  EXPECT_TRUE(
      WaitUntil([&] { return Send("GET", "/v2/health/ready").status == 503; }));
  EXPECT_EQ(Send("GET", "/v2/health/live").status, 200);
  server_->server().Shutdown(absl::InfinitePast());
  wait.join();
}

TEST_F(InferenceGatewayTest, LargeBodiesAreRefusedAsThisProtocolDoes) {
  server::Options options = WithHttp();
  options.http_max_body_bytes = 4096;
  Start(options);
  EXPECT_THAT(ErrorOf(std::string(5000, ' '), 413),
              HasSubstr("longer than 4096 bytes"));
}

TEST_F(InferenceGatewayTest, TellsWhatIsWrong) {
  Start();
  const auto inputs_with = [](const std::string& changes) {
    Json query = Input("query", {1, 2}, {1, 0});
    query.merge_patch(Json::parse(changes));
    Json inputs = SmallInputs();
    inputs[0] = query;
    return Json{{"inputs", inputs}}.dump();
  };
  const std::pair<std::string, std::string> cases[] = {
      {"{", "the body is not the JSON of an inference: parse error"},
      {"[]", "body: wanted an object"},
      {"{\"a\": 1}", "body: got the unknown member a"},
      {"{\"inputs\": 1}", "inputs: wanted a list"},
      {"{\"inputs\": [1]}", "inputs: wanted a list of objects"},
      {"{\"inputs\": [{}]}", "inputs[0].shape: wanted a list of numbers"},
      {"{\"id\": 1}", "body.id: wanted a string"},
      {"{\"parameters\": {\"a\": []}}", "parameters.a: wanted a boolean"},
      {"{\"parameters\": {\"binary_data_output\": 1}}",
       "parameters.binary_data_output: wanted true or false"},
      {inputs_with(R"({"shape": [1.5, 2]})"),
       "inputs.query.shape: wanted a list of whole numbers"},
      {inputs_with(R"({"data": null})"), "inputs.query.data: got neither"},
      {inputs_with(R"({"data": 1})"), "inputs.query.data: wanted a list"},
      {inputs_with(R"({"data": ["a", 1]})"),
       "inputs.query.data: wanted a list"},
      {inputs_with(R"({"data": [true, false]})"),
       "inputs.query.data: got booleans, wanted numbers of FP32"},
      {inputs_with(R"({"data": [{}, 1]})"), "inputs.query.data: wanted a list"},
      {inputs_with(R"({"datatype": "FP16"})"),
       "inputs.query.data: got numbers for FP16"},
      {inputs_with(R"({"datatype": "INT8", "data": [1000, 0]})"),
       "inputs.query.data: got a number that is no INT8"},
      {inputs_with(R"({"parameters": {"binary_data_size": 8}})"),
       "inputs.query.parameters.binary_data_size: got it beside data"},
      {inputs_with(R"({"data": null, "parameters": {"binary_data_size": 8}})"),
       "inputs.query.parameters.binary_data_size: got 8, and 0 bytes are left"},
      {inputs_with(R"({"data": null, "parameters": {"binary_data_size": -1}})"),
       "inputs.query.parameters.binary_data_size: got -1"},
      {inputs_with(R"({"data": [1]})"), "inputs.query"},
      {inputs_with(R"({"name": "kwery"})"), "kwery"},
      {"{}", "query"},
  };
  for (const auto& [body, wanted] : cases) {
    EXPECT_THAT(ErrorOf(body), HasSubstr(wanted)) << body;
  }
  EXPECT_THAT(
      ErrorOf(Json{{"inputs", SmallInputs()}}.dump() + "xx", 400,
              {absl::StrCat("Inference-Header-Content-Length: ",
                            Json{{"inputs", SmallInputs()}}.dump().size())}),
      HasSubstr("2 bytes of the body belong to none of them"));
  for (const char* length : {"-1", "x", "99"}) {
    EXPECT_THAT(
        ErrorOf("{}", 400,
                {absl::StrCat("Inference-Header-Content-Length: ", length)}),
        HasSubstr("Inference-Header-Content-Length: got "));
  }
  EXPECT_THAT(ErrorOf("{}", 415, {"Content-Encoding: gzip"}),
              HasSubstr("Content-Encoding"));
  EXPECT_THAT(ErrorOf("{}", 403, {"Origin: https://b.example"}),
              HasSubstr("another origin"));
}

TEST_F(InferenceGatewayTest, HalvesOnlyComeAsBytes) {
  Start();
  const auto half = [](const std::string& name, const Json& shape,
                       int64_t bytes) {
    Json input = BinaryInput(name, shape, bytes);
    input["datatype"] = "FP16";
    return input;
  };
  Json json = {{"inputs",
                {half("query", {1, 1}, 2), half("key", {1, 1}, 2),
                 half("value", {1, 1}, 2)}}};
  const auto send = [&] {
    const std::string text = json.dump();
    return Send(
        "POST", kInfer, text + std::string(6, '\0'),
        {absl::StrCat("Inference-Header-Content-Length: ", text.size())});
  };
  const HttpClient::Response refused = send();
  EXPECT_EQ(refused.status, 400);
  EXPECT_THAT(refused.body, HasSubstr("outputs.output: it is FP16"));
  json["parameters"] = {{"binary_data_output", true}};
  EXPECT_EQ(send().status, 200);
}

}  // namespace
}  // namespace attention::testing
