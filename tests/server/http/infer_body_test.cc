#include "server/http/infer_body.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/field_error.h"
#include "inference/inference.pb.h"
#include "tests/server/http/peak_memory.h"

namespace attention::server {
namespace {

using inference::ModelInferRequest;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Json = nlohmann::json;
using testing::Peak;

std::string BytesOf(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(buffer.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return bytes;
}

absl::StatusOr<InferBody> Read(
    const std::string& body, std::optional<int64_t> json_bytes = std::nullopt) {
  return ReadInferBody(body, json_bytes, "attention", "1");
}

ModelInferRequest RequestOf(const absl::StatusOr<InferBody>& read) {
  ModelInferRequest request;
  EXPECT_TRUE(read.ok()) << read.status();
  if (read.ok()) {
    EXPECT_TRUE(request.ParseFromString(BytesOf(read->request)));
  }
  return request;
}

template <typename T>
std::vector<T> ElementsOf(const std::string& raw) {
  EXPECT_EQ(raw.size() % sizeof(T), 0);
  std::vector<T> elements(raw.size() / sizeof(T));
  if (!raw.empty()) std::memcpy(elements.data(), raw.data(), raw.size());
  return elements;
}

template <typename T>
std::string RawOf(const std::vector<T>& elements) {
  return {reinterpret_cast<const char*>(elements.data()),
          elements.size() * sizeof(T)};
}

std::string Query(const std::string& members) {
  return absl::StrCat(R"({"inputs":[{"name":"query","shape":[1],)", members,
                      "}]}");
}

std::string QueryData(const std::string& datatype, const std::string& data) {
  return Query(absl::StrCat(R"("datatype":")", datatype, R"(","data":)", data));
}

template <typename T>
std::vector<T> DataOf(const std::string& datatype, const std::string& data) {
  const ModelInferRequest request = RequestOf(Read(QueryData(datatype, data)));
  if (request.raw_input_contents_size() != 1) return {};
  return ElementsOf<T>(request.raw_input_contents(0));
}

std::string Repeated(const std::string& text, size_t bytes) {
  std::string repeated;
  repeated.reserve(bytes + text.size());
  while (repeated.size() < bytes) repeated += text;
  return repeated;
}

TEST(InferBodyTest, ReadsAllOfIt) {
  const ModelInferRequest request = RequestOf(Read(R"({
      "id": "a\u00e9",
      "parameters": {"scale": 0.5, "causal": true, "window": -3, "text": "x",
                     "large": 18446744073709551615},
      "inputs": [{"name": "query", "shape": [1, 2], "datatype": "FP32",
                  "parameters": {"p": 1}, "data": [1, 2.5]}],
      "outputs": [{"name": "output", "parameters": {"classification": 0}}]})"));
  EXPECT_EQ(request.model_name(), "attention");
  EXPECT_EQ(request.model_version(), "1");
  EXPECT_EQ(request.id(), "a\xc3\xa9");
  const auto& parameters = request.parameters();
  ASSERT_EQ(parameters.size(), 5);
  EXPECT_EQ(parameters.at("scale").double_param(), 0.5);
  EXPECT_TRUE(parameters.at("causal").bool_param());
  EXPECT_EQ(parameters.at("window").int64_param(), -3);
  EXPECT_EQ(parameters.at("text").string_param(), "x");
  EXPECT_EQ(parameters.at("large").uint64_param(), UINT64_MAX);
  ASSERT_EQ(request.inputs_size(), 1);
  EXPECT_EQ(request.inputs(0).name(), "query");
  EXPECT_EQ(request.inputs(0).datatype(), "FP32");
  EXPECT_THAT(request.inputs(0).shape(), ElementsAre(1, 2));
  EXPECT_EQ(request.inputs(0).parameters().at("p").int64_param(), 1);
  ASSERT_EQ(request.raw_input_contents_size(), 1);
  EXPECT_THAT(ElementsOf<float>(request.raw_input_contents(0)),
              ElementsAre(1, 2.5));
  ASSERT_EQ(request.outputs_size(), 1);
  EXPECT_EQ(request.outputs(0).name(), "output");
  EXPECT_EQ(request.outputs(0).parameters().at("classification").int64_param(),
            0);
}

TEST(InferBodyTest, DataMayComeBeforeDatatypeShapeAndName) {
  const ModelInferRequest request =
      RequestOf(Read(R"({"inputs":[{"data":[[1],[-2]],"shape":[2,1],)"
                     R"("datatype":"INT32","name":"mask"}]})"));
  ASSERT_EQ(request.raw_input_contents_size(), 1);
  EXPECT_EQ(request.inputs(0).name(), "mask");
  EXPECT_THAT(ElementsOf<int32_t>(request.raw_input_contents(0)),
              ElementsAre(1, -2));
}

TEST(InferBodyTest, NestedAndEmptyData) {
  EXPECT_THAT(DataOf<float>("FP32", "[[[1,2],[3]],[[[[4]]]],[],5]"),
              ElementsAre(1, 2, 3, 4, 5));
  EXPECT_THAT(DataOf<float>("FP32", "[]"), IsEmpty());
}

TEST(InferBodyTest, EveryDatatypeThatJsonHasNumbersFor) {
  EXPECT_THAT(DataOf<int8_t>("BOOL", "[true,false,1,0,1.0]"),
              ElementsAre(1, 0, 1, 0, 1));
  EXPECT_THAT(DataOf<int8_t>("INT8", "[-128,127,1e1]"),
              ElementsAre(-128, 127, 10));
  EXPECT_THAT(DataOf<int32_t>("INT32", "[-2147483648,2147483647]"),
              ElementsAre(INT32_MIN, INT32_MAX));
  EXPECT_THAT(DataOf<int64_t>("INT64", "[-9007199254740991,9007199254740991]"),
              ElementsAre(-9007199254740991, 9007199254740991));
  EXPECT_THAT(DataOf<double>("FP64", "[0.1,-1e300,18446744073709551615]"),
              ElementsAre(0.1, -1e300, 0x1p64));
  const auto odd =
      DataOf<float>("FP32", R"(["NaN","Infinity","-Infinity",-0.0])");
  ASSERT_EQ(odd.size(), 4);
  EXPECT_TRUE(std::isnan(odd[0]));
  EXPECT_EQ(odd[1], std::numeric_limits<float>::infinity());
  EXPECT_EQ(odd[2], -std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::signbit(odd[3]));
}

TEST(InferBodyTest, FloatsAreRoundedOnceToTheNearest) {
  // The doubles nearest to these lie in the middle between two floats.
  EXPECT_THAT(DataOf<float>("FP32", "[1,7.038531e-26,1.00000005960464478]"),
              ElementsAre(1, 7.038531e-26f, 0x1.000002p0f));
  EXPECT_THAT(DataOf<float>("FP32", "[3.4028235e38,3.40282356e38,1e-60]"),
              ElementsAre(std::numeric_limits<float>::max(),
                          std::numeric_limits<float>::max(), 0));
}

TEST(InferBodyTest, TheSignOfMinusZeroIsKept) {
  for (const float number : DataOf<float>("FP32", "[-0,-0.0,-0e0]")) {
    EXPECT_TRUE(number == 0 && std::signbit(number));
  }
  EXPECT_THAT(DataOf<int32_t>("INT32", "[-0]"), ElementsAre(0));
}

TEST(InferBodyTest, BytesBehindTheJsonBesideData) {
  const std::string json =
      R"({"inputs":[{"name":"query","shape":[2],"datatype":"FP32",)"
      R"("parameters":{"binary_data_size":8}},)"
      R"({"name":"key","shape":[1],"datatype":"FP32","data":[7]},)"
      R"({"name":"mask","shape":[0],"datatype":"FP16",)"
      R"("parameters":{"binary_data_size":0}},)"
      R"({"name":"value","shape":[1],"datatype":"FP32",)"
      R"("parameters":{"binary_data_size":4}}]})";
  const ModelInferRequest request = RequestOf(
      Read(json + RawOf<float>({1, 2, 3}), static_cast<int64_t>(json.size())));
  ASSERT_EQ(request.raw_input_contents_size(), 4);
  EXPECT_THAT(ElementsOf<float>(request.raw_input_contents(0)),
              ElementsAre(1, 2));
  EXPECT_THAT(ElementsOf<float>(request.raw_input_contents(1)), ElementsAre(7));
  EXPECT_THAT(request.raw_input_contents(2), IsEmpty());
  EXPECT_THAT(ElementsOf<float>(request.raw_input_contents(3)), ElementsAre(3));
  EXPECT_FALSE(request.inputs(0).parameters().contains("binary_data_size"));
}

TEST(InferBodyTest, OutputsAsBytesOrNumbers) {
  const auto read =
      Read(R"({"parameters":{"binary_data_output":true},"outputs":[)"
           R"({"name":"a","parameters":{"binary_data":false}},)"
           R"({"parameters":{"binary_data":true},"name":"b"},{"name":"c"}]})");
  const ModelInferRequest request = RequestOf(read);
  ASSERT_TRUE(read.ok());
  EXPECT_TRUE(read->binary_by_default);
  EXPECT_THAT(read->numbers, ElementsAre("a"));
  EXPECT_THAT(read->binary, ElementsAre("b"));
  EXPECT_EQ(request.outputs_size(), 3);
  EXPECT_THAT(request.parameters(), IsEmpty());
  EXPECT_THAT(request.outputs(0).parameters(), IsEmpty());
}

TEST(InferBodyTest, TellsWhatIsWrongAndWhere) {
  const auto lists = [](size_t depth) { return std::string(depth, '['); };
  std::string many_parameters = R"({"parameters":{)";
  for (int i = 0; i < 257; ++i) {
    absl::StrAppend(&many_parameters, i == 0 ? "" : ",", "\"", i, "\":1");
  }
  const struct {
    std::string body;
    std::string field;
    std::string text;
  } cases[] = {
      {"", "", "the body is not the JSON of an inference: parse error"},
      {"{", "", "the body is not the JSON of an inference: parse error"},
      {"{} {}", "", "the body is not the JSON of an inference: parse error"},
      {"{\"id\":\"\xff\"}", "", "the body is not the JSON of an inference"},
      {"[]", "body", "wanted an object"},
      {"1", "body", "wanted an object"},
      {R"({"a":1})", "body", "got the unknown member a"},
      {R"({"id":"a","id":"b"})", "body", "got the member id twice"},
      {R"({"inputs":[],"inputs":[]})", "body", "got the member inputs twice"},
      {R"({"id":1})", "body.id", "wanted a string"},
      {R"({"id":1e999})", "body.id", "got 1e999, which is beyond FP64"},
      {R"({"id":[]})", "body.id", "wanted a string"},
      {R"({"parameters":[]})", "parameters", "wanted an object"},
      {R"({"parameters":{"a":[]}})", "parameters.a", "wanted a boolean"},
      {R"({"parameters":{"a":{}}})", "parameters.a", "wanted a boolean"},
      {R"({"parameters":{"a":null}})", "parameters.a", "wanted a boolean"},
      {R"({"parameters":{"a":-1e999}})", "parameters.a", "got -1e999"},
      {R"({"parameters":{"a":1,"a":2}})", "parameters.a", "got it twice"},
      {R"({"parameters":{"binary_data_output":1}})",
       "parameters.binary_data_output", "wanted true or false"},
      {R"({"parameters":{"binary_data_output":true,)"
       R"("binary_data_output":true}})",
       "parameters.binary_data_output", "got it twice"},
      {many_parameters, "parameters", "got more than 256"},
      {R"({"inputs":{}})", "inputs", "wanted a list"},
      {R"({"inputs":[1]})", "inputs", "wanted a list of objects"},
      {R"({"inputs":[[]]})", "inputs", "wanted a list of objects"},
      {R"({"inputs":[{}]})", "inputs[0].shape", "wanted a list of numbers"},
      {R"({"inputs":[{"a":1}]})", "inputs[0]", "got the unknown member a"},
      {R"({"inputs":[{"name":"q","shape":[1],"shape":[1]}]})", "inputs.q",
       "got the member shape twice"},
      {R"({"inputs":[{"name":"q","data":[1],"data":[1]}]})", "inputs.q",
       "got the member data twice"},
      {R"({"inputs":[{"name":1}]})", "inputs[0].name", "wanted a string"},
      {R"({"inputs":[{"name":"q\n","datatype":[]}]})", "inputs.q\\n.datatype",
       "wanted a string"},
      {R"({"inputs":[{"shape":1}]})", "inputs[0].shape", "wanted a list"},
      {R"({"inputs":[{"shape":[1.5]}]})", "inputs[0].shape",
       "wanted a list of whole numbers"},
      {R"({"inputs":[{"shape":[[1]]}]})", "inputs[0].shape",
       "wanted a list of whole numbers"},
      {R"({"inputs":[{"shape":[18446744073709551615]}]})", "inputs[0].shape",
       "got 18446744073709551615, wanted at most 9223372036854775807"},
      {absl::StrCat(R"({"inputs":[{"shape":[0)", Repeated(",0", 64), "]}]}"),
       "inputs[0].shape", "got more than 32 numbers"},
      {R"({"outputs":1})", "outputs", "wanted a list"},
      {R"({"outputs":[1]})", "outputs", "wanted a list of objects"},
      {R"({"outputs":[{},{"shape":[1]}]})", "outputs[1]",
       "got the unknown member shape"},
      {R"({"outputs":[{"name":[]}]})", "outputs[0].name", "wanted a string"},
      {R"({"outputs":[{"parameters":{"binary_data":1}}]})",
       "outputs[0].parameters.binary_data", "wanted true or false"},
      {R"({"outputs":[{"parameters":{"binary_data":"x"}}]})",
       "outputs[0].parameters.binary_data", "wanted true or false"},
      // What crashed: the data of an input that never had a list.
      {R"({"inputs":[{"data":{}},{"shape":[1,2,3,4]}]})", "inputs[0].data",
       "wanted a list of numbers or of booleans"},
      {R"({"inputs":[{"data":{"a":[1,{"b":null}]},"name":"q"}]})",
       "inputs.q.data", "wanted a list of numbers or of booleans"},
      {R"({"inputs":[{"data":null}]})", "inputs[0].data", "wanted a list"},
      {Query(R"("data":[null])"), "inputs.query.data", "wanted a list"},
      {Query(R"("data":[{}])"), "inputs.query.data", "wanted a list"},
      {Query(R"("data":["1"])"), "inputs.query.data", "wanted a list"},
      {Query(R"("data":1)"), "inputs.query.data", "wanted a list"},
      {Query(R"("data":[1e999])"), "inputs.query.data",
       "got 1e999, which is beyond FP64"},
      {Query(R"("data":[1])"), "inputs.query.datatype",
       "got \"\", wanted FP32"},
      {QueryData("UINT8", "[1]"), "inputs.query.datatype",
       "got \"UINT8\", wanted FP32"},
      {QueryData("FP16", "[1]"), "inputs.query.data",
       "got numbers for FP16, which only comes as bytes"},
      {QueryData("FP32", "[1,true]"), "inputs.query.data",
       "got booleans, wanted numbers of FP32"},
      {QueryData("FP32", "[1e300]"), "inputs.query.data",
       "got 1e+300, which is beyond FP32"},
      {QueryData("FP32", "[-3.4028236e38]"), "inputs.query.data",
       "which is beyond FP32"},
      {QueryData("BOOL", "[2]"), "inputs.query.data", "got 2, wanted true"},
      {QueryData("BOOL", "[0.5]"), "inputs.query.data", "got 0.5, wanted true"},
      {QueryData("BOOL", R"(["NaN"])"), "inputs.query.data",
       "got nan, wanted true"},
      {QueryData("INT8", "[128]"), "inputs.query.data",
       "got a number that is no INT8: 128"},
      {QueryData("INT8", "[-129]"), "inputs.query.data", "no INT8"},
      {QueryData("INT32", "[1.5]"), "inputs.query.data", "no INT32"},
      {QueryData("INT32", "[2147483648]"), "inputs.query.data", "no INT32"},
      {QueryData("INT64", R"(["Infinity"])"), "inputs.query.data", "no INT64"},
      // Whose double is 2^53, which is not what was sent.
      {QueryData("INT64", "[9007199254740993]"), "inputs.query.data",
       "too large to be exact"},
      {QueryData("INT64", "[-9007199254740993.0]"), "inputs.query.data",
       "too large to be exact"},
      {QueryData("INT64", "[18446744073709551615]"), "inputs.query.data",
       "too large to be exact"},
      {Query(R"("datatype":"FP32")"), "inputs.query.data",
       "got neither data nor parameters.binary_data_size"},
      {Query(R"("data":[1],"parameters":{"binary_data_size":0})"),
       "inputs.query.parameters.binary_data_size", "got it beside data"},
      {Query(R"("parameters":{"binary_data_size":true})"),
       "inputs.query.parameters.binary_data_size", "wanted a number of bytes"},
      {Query(R"("parameters":{"binary_data_size":-1})"),
       "inputs.query.parameters.binary_data_size",
       "got -1, and 0 bytes are left"},
      {Query(R"("parameters":{"binary_data_size":1})"),
       "inputs.query.parameters.binary_data_size",
       "got 1, and 0 bytes are left"},
      {Query(R"("parameters":{"binary_data_size":18446744073709551615})"),
       "inputs.query.parameters.binary_data_size",
       "got 18446744073709551615, wanted at most"},
      {Query(R"("data":)" + lists(10)), "body", "nested more than 12 deep"},
      // Also where what is nested is skipped, for the name to come.
      {absl::StrCat(R"({"inputs":[{"data":{"a":)", lists(9)), "body",
       "nested more than 12 deep"},
      {absl::StrCat(R"({"id":")", std::string(65537, 'a'), R"("})"), "body",
       "got a text or number of more than 65536 bytes"},
      {absl::StrCat("{\"id\":", std::string(65537, '1'), "}"), "body",
       "got a text or number of more than 65536 bytes"},
  };
  for (const auto& [body, field, text] : cases) {
    const std::string shown = body.substr(0, 200);
    const absl::Status status = Read(body).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << shown;
    EXPECT_EQ(ErrorField(status), field) << shown << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(text)) << shown;
  }
  EXPECT_EQ(ErrorField(Read("{}x", 2).status()), "inputs");
  EXPECT_THAT(Read("{}xy", 2).status().ToString(),
              HasSubstr("2 bytes of the body belong to none of them"));
  for (const int64_t json_bytes : {-1, 3}) {
    EXPECT_EQ(ErrorField(Read("{}", json_bytes).status()),
              "Inference-Header-Content-Length");
  }
}

TEST(InferBodyTest, LongTextsAndDeepListsThatAreAllowed) {
  EXPECT_EQ(RequestOf(Read(absl::StrCat(R"({"id":")", std::string(65000, 'a'),
                                        R"("})")))
                .id()
                .size(),
            65000);
  EXPECT_THAT(DataOf<float>("FP32", "[[[[[[[[1]]]]]]]]"), ElementsAre(1));
  // Long in all, but no text is.
  EXPECT_EQ(DataOf<float>("FP32", absl::StrCat("[1", Repeated(" ", 200000),
                                               Repeated(",1", 400000), "]"))
                .size(),
            200001);
}

TEST(InferBodyTest, WhatIsInSharedMemoryIsNotInTheMessage) {
  const ModelInferRequest request = RequestOf(
      Read(R"({"inputs":[{"name":"query","shape":[1],"datatype":"FP32",)"
           R"("parameters":{"shared_memory_region":"r",)"
           R"("shared_memory_offset":0,"shared_memory_byte_size":4}},)"
           R"({"name":"key","shape":[1],"datatype":"FP32","data":[1]}]})"));
  ASSERT_EQ(request.inputs_size(), 2);
  EXPECT_EQ(
      request.inputs(0).parameters().at("shared_memory_region").string_param(),
      "r");
  EXPECT_EQ(request.inputs(0)
                .parameters()
                .at("shared_memory_byte_size")
                .int64_param(),
            4);
  ASSERT_EQ(request.raw_input_contents_size(), 1);
  EXPECT_EQ(request.raw_input_contents(0).size(), sizeof(float));
}

// Is read up to the error, which comes early: the broken end is not seen.
TEST(InferBodyTest, EndsAtTheFirstError) {
  const auto error = [](const std::string& start, const std::string& more) {
    return std::string(
        Read(start + Repeated(more, 1 << 20) + "\x01").status().message());
  };
  EXPECT_THAT(error(R"({"inputs":[)", R"({"shape":[],"data":[],)"
                                      R"("datatype":"FP32"},)"),
              HasSubstr("inputs: got more than 16"));
  EXPECT_THAT(error(R"({"inputs":[)", "{},"), HasSubstr("inputs[0].shape"));
  EXPECT_THAT(error(R"({"outputs":[)", "{},"),
              HasSubstr("outputs: got more than 16"));
  EXPECT_THAT(error(R"({"a":)", "["), HasSubstr("unknown member a"));
  EXPECT_THAT(error(R"({"inputs":[{"data":)", "["), HasSubstr("nested"));
  EXPECT_THAT(error(R"({"inputs":[{"data":)", R"({"a":)"), HasSubstr("nested"));
  EXPECT_THAT(error(R"({"inputs":[{"name":"q","data":[)", "null,"),
              HasSubstr("inputs.q.data"));
  EXPECT_THAT(error(R"({"inputs":[{"shape":[)", "1,"),
              HasSubstr("more than 32"));
}

TEST(InferBodyTest, SixteenTensorsAreTaken) {
  std::string inputs, outputs;
  for (int i = 0; i < 16; ++i) {
    absl::StrAppend(&inputs, i == 0 ? "" : ",",
                    R"({"shape":[1],"datatype":"FP32","data":[1]})");
    absl::StrAppend(&outputs, i == 0 ? "{}" : ",{}");
  }
  const ModelInferRequest request = RequestOf(Read(absl::StrCat(
      R"({"inputs":[)", inputs, R"(],"outputs":[)", outputs, "]}")));
  EXPECT_EQ(request.inputs_size(), 16);
  EXPECT_EQ(request.outputs_size(), 16);
}

TEST(InferBodyTest, MemoryIsSixTimesTheJson) {
#ifdef ATTENTION_SANITIZED
  GTEST_SKIP() << "sanitizers replace the allocator that it counts";
#endif
  constexpr size_t kBytes = size_t{4} << 20;
  const auto data = [](const std::string& datatype, const std::string& list) {
    return absl::StrCat(R"({"inputs":[{"data":[)", list, R"(0],"datatype":")",
                        datatype, R"(","shape":[1]}]})");
  };
  std::string parameters = R"({"parameters":{)";
  for (int i = 0; i < 60; ++i) {
    absl::StrAppend(&parameters, R"("p)", i, R"(":")", std::string(60000, 'a'),
                    R"(",)");
  }
  const std::string bodies[] = {
      data("FP64", Repeated("1,", kBytes)),
      data("INT64", Repeated("1,", kBytes)),
      data("FP32", Repeated("1,", kBytes)),
      data("FP32", Repeated("7.038531e-26,", kBytes)),
      data("BOOL", Repeated("1,", kBytes)),
      absl::StrCat(parameters, R"("q":1}})"),
      absl::StrCat(R"({"inputs":[{"data":[1,{"a":)",
                   Repeated("[],", kBytes) + "0}]}]}"),
      absl::StrCat(R"({"a":)", Repeated("[", kBytes)),
      absl::StrCat(R"({"inputs":[{"data":)", Repeated("[", kBytes)),
      absl::StrCat(R"({"id":")", Repeated("a", kBytes)),
      absl::StrCat(R"({"id":)", Repeated("1", kBytes)),
      absl::StrCat(R"({"inputs":[)", Repeated("{},", kBytes)),
      absl::StrCat(R"({"parameters":{"a":[)", Repeated("{},", kBytes)),
  };
  for (const std::string& text : bodies) {
    std::string body = text;
    const auto bytes = static_cast<int64_t>(body.size());
    int64_t peak;
    int64_t request = 0;
    {
      const Peak counted;
      const auto read =
          ReadInferBody(std::move(body), std::nullopt, "attention", "");
      if (read.ok()) request = static_cast<int64_t>(read->request.Length());
      peak = counted.bytes();
    }
    // The body came from outside. Slices are no memory of new's; not all of
    // them are there when most else is, so that this is more than there was.
    EXPECT_LE(bytes + peak, 6 * bytes) << text.substr(0, 40);
    EXPECT_LE(bytes + request, 6 * bytes) << text.substr(0, 40);
  }
}

// Wherever memory fails, all that was taken is given back; a leak is seen by
// the sanitizers, and by the count.
TEST(InferBodyTest, NothingIsKeptWhereMemoryFails) {
#ifdef ATTENTION_SANITIZED
  GTEST_SKIP() << "sanitizers replace the allocator that it counts";
#endif
  const std::string json =
      R"({"id":"an id that is too long to be kept in place","inputs":[)"
      R"({"name":"query","shape":[2],"datatype":"FP32",)"
      R"("parameters":{"binary_data_size":8}},)"
      R"({"name":"key","shape":[1],"datatype":"FP32","data":[7]},)"
      R"({"name":"value","shape":[1],"datatype":"FP32",)"
      R"("parameters":{"binary_data_size":400}}]})";
  const std::string whole = json + std::string(408, 'x');
  ASSERT_TRUE(Read(whole, static_cast<int64_t>(json.size())).ok());
  // How many allocations succeed, until they are as many as it takes.
  int64_t allocations = 0;
  for (bool failed = true; failed; ++allocations) {
    failed = false;
    int64_t kept;
    {
      const Peak counted(allocations);
      try {
        static_cast<void>(Read(whole, static_cast<int64_t>(json.size())));
      } catch (const std::bad_alloc&) {
        failed = true;
      }
      kept = Peak::live_bytes();
    }
    EXPECT_EQ(kept, 0) << "after " << allocations << " allocations";
    ASSERT_LT(allocations, 1000);
  }
  EXPECT_GT(allocations, 10);
}

class AnswerTest : public ::testing::Test {
 protected:
  template <typename T>
  void Add(const std::string& name, const std::string& datatype,
           const std::vector<T>& elements) {
    auto& output = *answer_.add_outputs();
    output.set_name(name);
    output.set_datatype(datatype);
    output.add_shape(static_cast<int64_t>(elements.size()));
    answer_.add_raw_output_contents(RawOf(elements));
  }
  // In slices of some bytes each, so that numbers lie in two of them.
  absl::StatusOr<HttpResponse> Write(const InferBody& asked = {}) {
    const std::string bytes = answer_.SerializeAsString();
    std::vector<grpc::Slice> slices;
    constexpr size_t kSlice = 1021;
    for (size_t i = 0; i < bytes.size(); i += kSlice) {
      slices.emplace_back(bytes.substr(i, kSlice));
    }
    return WriteInferBody(grpc::ByteBuffer(slices.data(), slices.size()),
                          asked);
  }

  inference::ModelInferResponse answer_;
};

TEST_F(AnswerTest, NumbersAreTheShortestText) {
  answer_.set_model_name("attention");
  answer_.set_model_version("1");
  answer_.set_id("a\"b");
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  Add<float>("output", "FP32",
             {0.1f, -1, 1e-45f, std::nanf(""), kInfinity, -kInfinity});
  Add<double>("scores", "FP64", {0.1, 1e300});
  Add<float>("present_key", "FP32", {});
  const auto response = Write();
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->content_type, "application/json");
  EXPECT_EQ(
      response->body,
      R"({"model_name":"attention","model_version":"1","id":"a\"b",)"
      R"("outputs":[{"name":"output","datatype":"FP32","shape":[6],)"
      R"("data":[0.1,-1,1e-45,"NaN","Infinity","-Infinity"]},)"
      R"({"name":"scores","datatype":"FP64","shape":[2],)"
      R"("data":[0.1,1e+300]},)"
      R"({"name":"present_key","datatype":"FP32","shape":[0],"data":[]}]})");
}

TEST_F(AnswerTest, BytesBehindTheJson) {
  Add<float>("output", "FP32", {1});
  Add<int16_t>("scores", "FP16", {1, 2, 3});
  Add<float>("present_key", "FP32", std::vector<float>(1000, 0.5f));
  InferBody asked;
  asked.binary_by_default = true;
  asked.numbers = {"output"};
  const auto response = Write(asked);
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->content_type, "application/octet-stream");
  ASSERT_EQ(response->headers.size(), 1);
  EXPECT_EQ(response->headers[0].first, "Inference-Header-Content-Length");
  const size_t json_bytes = std::stoul(response->headers[0].second);
  const Json json = Json::parse(response->body.substr(0, json_bytes));
  EXPECT_EQ(json["outputs"][0]["data"], Json({1}));
  EXPECT_EQ(json["outputs"][1]["parameters"]["binary_data_size"], 6);
  EXPECT_FALSE(json["outputs"][1].contains("data"));
  EXPECT_EQ(
      response->body.substr(json_bytes),
      RawOf<int16_t>({1, 2, 3}) + RawOf<float>(std::vector<float>(1000, 0.5f)));
}

TEST_F(AnswerTest, WhatIsNoAnswer) {
  Add<int16_t>("scores", "FP16", {1});
  EXPECT_EQ(ErrorField(Write().status()), "outputs.scores");
  answer_.add_raw_output_contents("");
  EXPECT_EQ(Write().status().code(), absl::StatusCode::kInternal);
  const grpc::Slice slice(std::string("\xff"));
  EXPECT_EQ(WriteInferBody(grpc::ByteBuffer(&slice, 1), {}).status().code(),
            absl::StatusCode::kInternal);
}

TEST_F(AnswerTest, EveryFloatComesBack) {
  std::mt19937 random(7);  // NOLINT(bugprone-random-generator-seed)
  std::vector<float> floats = {7.038531e-26f, 1e-45f,
                               std::numeric_limits<float>::max(),
                               std::numeric_limits<float>::min()};
  std::vector<double> doubles = {0.1, 5e-324,
                                 std::numeric_limits<double>::max()};
  while (floats.size() < 20000) {
    const auto bits = static_cast<uint32_t>(random());
    float number;
    std::memcpy(&number, &bits, sizeof(number));
    if (std::isfinite(number)) floats.push_back(number);
    const uint64_t more_bits = uint64_t{bits} << 32 | random();
    double large;
    std::memcpy(&large, &more_bits, sizeof(large));
    if (std::isfinite(large)) doubles.push_back(large);
  }
  Add("query", "FP32", floats);
  Add("key", "FP64", doubles);
  const auto response = Write();
  ASSERT_TRUE(response.ok()) << response.status();
  const std::string inputs =
      response->body.substr(response->body.find("\"outputs\":") + 10);
  const ModelInferRequest request =
      RequestOf(Read(absl::StrCat(R"({"inputs":)", inputs)));
  ASSERT_EQ(request.raw_input_contents_size(), 2);
  EXPECT_TRUE(request.raw_input_contents(0) == RawOf(floats));
  EXPECT_TRUE(request.raw_input_contents(1) == RawOf(doubles));
}

// For the longest numbers that there are.
TEST_F(AnswerTest, MemoryIsFiveTimesTheMessage) {
#ifdef ATTENTION_SANITIZED
  GTEST_SKIP() << "sanitizers replace the allocator that it counts";
#endif
  Add<float>("output", "FP32", std::vector<float>(1 << 20, -1.00000075e-36f));
  Add<double>("scores", "FP64",
              std::vector<double>(1 << 18, -2.2250738585072014e-308));
  const grpc::Slice slice(answer_.SerializeAsString());
  answer_.Clear();
  const grpc::ByteBuffer message(&slice, 1);
  const auto bytes = static_cast<int64_t>(message.Length());
  int64_t peak;
  std::string body;
  {
    const Peak counted;
    auto response = WriteInferBody(message, {});
    peak = counted.bytes();
    if (response.ok()) body = std::move(response->body);
  }
  EXPECT_GT(static_cast<int64_t>(body.size()), 3 * bytes);
  EXPECT_LE(bytes + peak, 5 * bytes + 4096);
}

}  // namespace
}  // namespace attention::server
