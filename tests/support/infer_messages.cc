#include "tests/support/infer_messages.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <vector>

#include "absl/strings/str_join.h"

namespace attention::testing {
namespace {

using inference::ModelInferRequest;

const std::map<v1::DataType, std::string>& Datatypes() {
  static const std::map<v1::DataType, std::string> names = {
      {v1::DATA_TYPE_FLOAT32, "FP32"},  {v1::DATA_TYPE_FLOAT16, "FP16"},
      {v1::DATA_TYPE_BFLOAT16, "BF16"}, {v1::DATA_TYPE_FLOAT64, "FP64"},
      {v1::DATA_TYPE_BOOL, "BOOL"},     {v1::DATA_TYPE_INT8, "INT8"},
      {v1::DATA_TYPE_INT32, "INT32"},   {v1::DATA_TYPE_INT64, "INT64"}};
  return names;
}

template <typename Element, typename List>
void AddNumbers(const std::string& data, List* list) {
  for (size_t at = 0; at < data.size(); at += sizeof(Element)) {
    Element element;
    std::memcpy(&element, data.data() + at, sizeof(element));
    list->Add(element);
  }
}

void SetNumbers(const v1::Tensor& tensor,
                inference::InferTensorContents* contents) {
  const std::string& data = tensor.data();
  switch (tensor.data_type()) {
    case v1::DATA_TYPE_FLOAT32:
      return AddNumbers<float>(data, contents->mutable_fp32_contents());
    case v1::DATA_TYPE_FLOAT64:
      return AddNumbers<double>(data, contents->mutable_fp64_contents());
    case v1::DATA_TYPE_BOOL:
      return AddNumbers<bool>(data, contents->mutable_bool_contents());
    case v1::DATA_TYPE_INT8:
      return AddNumbers<int8_t>(data, contents->mutable_int_contents());
    case v1::DATA_TYPE_INT32:
      return AddNumbers<int32_t>(data, contents->mutable_int_contents());
    case v1::DATA_TYPE_INT64:
      return AddNumbers<int64_t>(data, contents->mutable_int64_contents());
    default:
      ADD_FAILURE() << "no numbers of " << tensor.data_type();
  }
}

void AddInput(const std::string& name, bool present, const v1::Tensor& tensor,
              Elements elements, ModelInferRequest* request) {
  if (!present) return;
  auto* const input = request->add_inputs();
  input->set_name(name);
  input->set_datatype(Datatypes().at(tensor.data_type()));
  *input->mutable_shape() = tensor.shape();
  if (elements == Elements::kNumbers) {
    SetNumbers(tensor, input->mutable_contents());
  } else {
    request->add_raw_input_contents(tensor.data());
  }
}

void SetOptions(const v1::AttentionOptions& from, ModelInferRequest* request) {
  auto& to = *request->mutable_parameters();
  // Alternately as a number and as a text.
  if (from.layout() != 0) to["layout"].set_int64_param(from.layout());
  if (from.query_heads() != 0) {
    to["query_heads"].set_uint64_param(from.query_heads());
  }
  if (from.kv_heads() != 0) {
    to["kv_heads"].set_string_param(std::to_string(from.kv_heads()));
  }
  if (from.has_scale()) to["scale"].set_double_param(from.scale());
  if (from.softcap() != 0) {
    to["softcap"].set_string_param(absl::StrCat(from.softcap()));
  }
  if (from.causal() != 0) {
    to["causal"].set_string_param(v1::Causal_Name(from.causal()));
  }
  if (from.chunk_size() != 0) {
    to["chunk_size"].set_int64_param(from.chunk_size());
  }
  if (from.window().has_left()) {
    to["window.left"].set_int64_param(from.window().left());
  }
  if (from.window().has_right()) {
    to["window.right"].set_int64_param(from.window().right());
  }
  if (!from.alibi_slopes().empty()) {
    to["alibi_slopes"].set_string_param(
        absl::StrJoin(from.alibi_slopes(), ", "));
  }
  if (!from.sinks().empty()) {
    to["sinks"].set_string_param(absl::StrJoin(from.sinks(), ","));
  }
  if (from.softmax_precision() != 0) {
    to["softmax_precision"].set_string_param("float64");
  }
  if (from.return_log_sum_exp()) to["return_log_sum_exp"].set_bool_param(true);
  if (from.return_scores() != 0) {
    to["return_scores"].set_int64_param(from.return_scores());
  }
  if (from.return_present()) to["return_present"].set_string_param("true");
}

}  // namespace

ModelInferRequest InferRequestOf(const v1::ComputeAttentionRequest& request,
                                 Elements elements) {
  ModelInferRequest result;
  result.set_model_name("attention");
  // By name, as perf_analyzer sends them.
  AddInput("key", request.has_key(), request.key(), elements, &result);
  AddInput("mask", request.has_mask(), request.mask(), elements, &result);
  AddInput("indices", request.has_indices(), request.indices(), elements,
           &result);
  AddInput("past_key", request.has_past_key(), request.past_key(), elements,
           &result);
  AddInput("past_value", request.has_past_value(), request.past_value(),
           elements, &result);
  AddInput("query", request.has_query(), request.query(), elements, &result);
  AddInput("sinks", request.has_sinks(), request.sinks(), elements, &result);
  AddInput("value", request.has_value(), request.value(), elements, &result);
  SetOptions(request.options(), &result);
  const auto set_list = [&](const char* name, const auto& numbers) {
    if (numbers.empty()) return;
    (*result.mutable_parameters())[name].set_string_param(
        absl::StrJoin(numbers, ","));
  };
  set_list("valid_lengths", request.valid_lengths());
  set_list("query_starts", request.query_starts());
  set_list("key_starts", request.key_starts());
  return result;
}

std::string RawOutput(const inference::ModelInferResponse& response,
                      const std::string& name) {
  EXPECT_EQ(response.raw_output_contents_size(), response.outputs_size());
  for (int i = 0; i < response.outputs_size(); ++i) {
    if (response.outputs(i).name() == name &&
        i < response.raw_output_contents_size()) {
      return response.raw_output_contents(i);
    }
  }
  ADD_FAILURE() << "no output " << name;
  return "";
}

void ExpectSameOutputs(const inference::ModelInferResponse& got,
                       const v1::ComputeAttentionResponse& wanted) {
  int outputs = 0;
  const auto expect = [&](const std::string& name, bool present,
                          const v1::Tensor& tensor) {
    if (!present) return;
    ++outputs;
    // Not EXPECT_EQ, which would print megabytes.
    EXPECT_TRUE(RawOutput(got, name) == tensor.data()) << name;
    for (const auto& output : got.outputs()) {
      if (output.name() != name) continue;
      EXPECT_EQ(output.datatype(), Datatypes().at(tensor.data_type()));
      EXPECT_EQ(absl::StrJoin(output.shape(), ","),
                absl::StrJoin(tensor.shape(), ","));
    }
  };
  expect("output", wanted.has_output(), wanted.output());
  expect("log_sum_exp", wanted.has_log_sum_exp(), wanted.log_sum_exp());
  expect("scores", wanted.has_scores(), wanted.scores());
  expect("present_key", wanted.has_present_key(), wanted.present_key());
  expect("present_value", wanted.has_present_value(), wanted.present_value());
  EXPECT_EQ(got.outputs_size(), outputs);
}

}  // namespace attention::testing
