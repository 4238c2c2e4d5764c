#include "tests/support/messages.h"

#include <gtest/gtest.h>

#include <cstring>
#include <list>
#include <random>

#include "absl/strings/str_cat.h"
#include "attention/details/v1/details.pb.h"
#include "base/executor.h"
#include "kernel/attention.h"

namespace attention::testing {
namespace {

template <typename T>
void Append(T value, std::string* bytes) {
  bytes->append(reinterpret_cast<const char*>(&value), sizeof(value));
}

void SetShape(const std::vector<int64_t>& shape, v1::Tensor* tensor) {
  tensor->mutable_shape()->Add(shape.begin(), shape.end());
}

DataType KernelType(v1::DataType type) {
  constexpr DataType kTypes[] = {
      DataType::kFloat32,  DataType::kFloat32, DataType::kFloat16,
      DataType::kBFloat16, DataType::kFloat64, DataType::kBool,
      DataType::kInt8,     DataType::kInt32,   DataType::kInt64};
  return kTypes[type];
}

v1::DataType WireType(DataType type) {
  for (int wire = v1::DATA_TYPE_FLOAT32; wire <= v1::DATA_TYPE_INT64; ++wire) {
    if (KernelType(static_cast<v1::DataType>(wire)) == type) {
      return static_cast<v1::DataType>(wire);
    }
  }
  return v1::DATA_TYPE_UNSPECIFIED;
}

// std::string memory is aligned for any element.
ConstTensorView ViewOf(const v1::Tensor& tensor) {
  return {.type = KernelType(tensor.data_type()),
          .shape = Shape(tensor.shape().begin(), tensor.shape().end()),
          .strides = {},
          .data = tensor.data().data()};
}

// Memory for the tensor in its own `data`.
void* Prepare(const TensorSpec& spec, v1::Tensor* tensor) {
  tensor->set_data_type(WireType(spec.type));
  tensor->mutable_shape()->Add(spec.shape.begin(), spec.shape.end());
  tensor->mutable_data()->resize(spec.num_bytes());
  return tensor->mutable_data()->data();
}

AttentionOptions KernelOptions(const v1::AttentionOptions& options) {
  AttentionOptions result;
  result.layout = static_cast<Layout>(options.layout());
  result.query_heads = options.query_heads();
  result.kv_heads = options.kv_heads();
  if (options.has_scale()) result.scale = options.scale();
  result.softcap = options.softcap();
  result.causal = static_cast<Causal>(options.causal());
  if (options.window().has_left()) result.window_left = options.window().left();
  result.chunk_size = options.chunk_size();
  if (options.window().has_right()) {
    result.window_right = options.window().right();
  }
  result.alibi_slopes = {options.alibi_slopes().begin(),
                         options.alibi_slopes().end()};
  result.sinks = {options.sinks().begin(), options.sinks().end()};
  if (options.softmax_precision() != v1::DATA_TYPE_UNSPECIFIED) {
    result.softmax_precision = KernelType(options.softmax_precision());
  }
  result.return_log_sum_exp = options.return_log_sum_exp();
  result.return_scores = static_cast<Scores>(options.return_scores());
  result.return_present = options.return_present();
  return result;
}

}  // namespace

v1::Tensor DataTensor(const std::vector<int64_t>& shape,
                      const std::vector<float>& values) {
  v1::Tensor tensor;
  tensor.set_data_type(v1::DATA_TYPE_FLOAT32);
  SetShape(shape, &tensor);
  for (float value : values) Append(value, tensor.mutable_data());
  return tensor;
}

v1::Tensor FloatTensor(const std::vector<int64_t>& shape,
                       const std::vector<float>& values) {
  v1::Tensor tensor;
  SetShape(shape, &tensor);
  tensor.mutable_float_values()->Add(values.begin(), values.end());
  return tensor;
}

v1::Tensor RandomTensor(v1::DataType type, const std::vector<int64_t>& shape,
                        uint32_t seed) {
  v1::Tensor tensor;
  tensor.set_data_type(type);
  SetShape(shape, &tensor);
  int64_t count = 1;
  for (int64_t dim : shape) count *= dim;
  std::mt19937 random(seed);
  for (int64_t i = 0; i < count; ++i) {
    const float unit = static_cast<float>(random() >> 8) * 0x1p-23f - 1;
    uint32_t bits;
    std::memcpy(&bits, &unit, sizeof(bits));
    switch (type) {
      case v1::DATA_TYPE_FLOAT64:
        Append(static_cast<double>(unit), tensor.mutable_data());
        break;
      case v1::DATA_TYPE_FLOAT16:
        // Sign, exponent 14 (a half to one), random mantissa.
        Append(static_cast<uint16_t>((bits >> 31 << 15) | 14 << 10 |
                                     (random() & 0x3ff)),
               tensor.mutable_data());
        break;
      case v1::DATA_TYPE_BFLOAT16:
        Append(static_cast<uint16_t>(bits >> 16), tensor.mutable_data());
        break;
      case v1::DATA_TYPE_BOOL:
      case v1::DATA_TYPE_INT8:
        Append(static_cast<uint8_t>(unit > 0), tensor.mutable_data());
        break;
      case v1::DATA_TYPE_INT32:
        Append(static_cast<int32_t>(unit > 0), tensor.mutable_data());
        break;
      case v1::DATA_TYPE_INT64:
        Append(static_cast<int64_t>(unit > 0), tensor.mutable_data());
        break;
      default:
        Append(unit, tensor.mutable_data());
    }
  }
  return tensor;
}

v1::Tensor Packed(const v1::Tensor& bools) {
  v1::Tensor bits = bools;
  bits.set_data_type(v1::DATA_TYPE_BITS);
  // What stands past the last element does not matter.
  bits.set_data(std::string((bools.data().size() + 7) / 8, '\xff'));
  for (size_t i = 0; i < bools.data().size(); ++i) {
    if (bools.data()[i] == 0) {
      (*bits.mutable_data())[i / 8] =
          static_cast<char>(bits.data()[i / 8] & ~(1 << i % 8));
    }
  }
  return bits;
}

v1::ComputeAttentionRequest SmallRequest() {
  v1::ComputeAttentionRequest request;
  *request.mutable_query() =
      RandomTensor(v1::DATA_TYPE_FLOAT32, {1, 2, 3, 4}, 1);
  *request.mutable_key() = RandomTensor(v1::DATA_TYPE_FLOAT32, {1, 1, 5, 4}, 2);
  *request.mutable_value() =
      RandomTensor(v1::DATA_TYPE_FLOAT32, {1, 1, 5, 2}, 3);
  return request;
}

v1::ComputeAttentionRequest LongRequest(int64_t length) {
  v1::ComputeAttentionRequest request;
  *request.mutable_query() =
      RandomTensor(v1::DATA_TYPE_FLOAT32, {length, 1}, 1);
  *request.mutable_key() = RandomTensor(v1::DATA_TYPE_FLOAT32, {length, 1}, 2);
  *request.mutable_value() =
      RandomTensor(v1::DATA_TYPE_FLOAT32, {length, 1}, 3);
  return request;
}

std::vector<float> FloatsOf(const v1::Tensor& tensor) {
  EXPECT_EQ(tensor.data_type(), v1::DATA_TYPE_FLOAT32);
  std::vector<float> values(tensor.data().size() / sizeof(float));
  if (!values.empty()) {
    std::memcpy(values.data(), tensor.data().data(), tensor.data().size());
  }
  return values;
}

v1::ComputeAttentionResponse KernelAnswer(
    const v1::ComputeAttentionRequest& request) {
  AttentionInputs inputs;
  inputs.query = ViewOf(request.query());
  inputs.key = ViewOf(request.key());
  inputs.value = ViewOf(request.value());
  if (request.has_mask()) inputs.mask = ViewOf(request.mask());
  if (request.has_past_key()) inputs.past_key = ViewOf(request.past_key());
  if (request.has_past_value()) {
    inputs.past_value = ViewOf(request.past_value());
  }
  if (request.has_indices()) inputs.indices = ViewOf(request.indices());
  if (request.has_sinks()) inputs.sinks = ViewOf(request.sinks());
  inputs.valid_lengths = request.valid_lengths();
  inputs.query_starts = request.query_starts();
  inputs.key_starts = request.key_starts();
  v1::ComputeAttentionResponse answer;
  const auto plan = PlanAttention(inputs, KernelOptions(request.options()));
  if (!plan.ok()) {
    ADD_FAILURE() << plan.status();
    return answer;
  }
  AttentionOutputs outputs;
  outputs.output = Prepare(plan->output, answer.mutable_output());
  if (plan->log_sum_exp) {
    outputs.log_sum_exp =
        Prepare(*plan->log_sum_exp, answer.mutable_log_sum_exp());
  }
  if (plan->scores) {
    outputs.scores = Prepare(*plan->scores, answer.mutable_scores());
  }
  if (plan->present_key) {
    outputs.present_key =
        Prepare(*plan->present_key, answer.mutable_present_key());
  }
  if (plan->present_value) {
    outputs.present_value =
        Prepare(*plan->present_value, answer.mutable_present_value());
  }
  Executor executor(0);
  EXPECT_TRUE(RunAttention(*plan, outputs, executor).ok());
  return answer;
}

Details DetailsOf(const grpc::Status& status) {
  Details result;
  if (status.error_details().empty()) return result;
  details::v1::Status details;
  EXPECT_TRUE(details.ParseFromString(status.error_details()));
  EXPECT_EQ(details.code(), status.error_code());
  EXPECT_EQ(details.message(), status.error_message());
  for (const auto& detail : details.details()) {
    if (detail.type_url() == "type.googleapis.com/google.rpc.BadRequest") {
      details::v1::BadRequest bad_request;
      EXPECT_TRUE(bad_request.ParseFromString(detail.value()));
      EXPECT_EQ(bad_request.field_violations_size(), 1);
      if (bad_request.field_violations_size() != 1) continue;
      result.field = bad_request.field_violations(0).field();
      result.description = bad_request.field_violations(0).description();
    } else if (detail.type_url() ==
               "type.googleapis.com/google.rpc.RetryInfo") {
      details::v1::RetryInfo info;
      EXPECT_TRUE(info.ParseFromString(detail.value()));
      result.retry_delay = absl::Seconds(info.retry_delay().seconds()) +
                           absl::Nanoseconds(info.retry_delay().nanos());
    } else if (detail.type_url() ==
               "type.googleapis.com/google.rpc.ErrorInfo") {
      details::v1::ErrorInfo info;
      EXPECT_TRUE(info.ParseFromString(detail.value()));
      EXPECT_EQ(info.domain(), "attention");
      result.reason = info.reason();
    } else if (detail.type_url() ==
               "type.googleapis.com/google.rpc.QuotaFailure") {
      details::v1::QuotaFailure failure;
      EXPECT_TRUE(failure.ParseFromString(detail.value()));
      EXPECT_EQ(failure.violations_size(), 1);
      result.quota_subject = failure.violations(0).subject();
      EXPECT_EQ(failure.violations(0).description(), status.error_message());
    } else if (detail.type_url() ==
               "type.googleapis.com/google.rpc.ResourceInfo") {
      details::v1::ResourceInfo info;
      EXPECT_TRUE(info.ParseFromString(detail.value()));
      EXPECT_TRUE(info.resource_type() == "attention.v1.SharedMemory" ||
                  info.resource_type() == "attention.v1.Session")
          << info.resource_type();
      result.resource = info.resource_name();
    } else {
      ADD_FAILURE() << "unknown detail " << detail.type_url();
    }
  }
  return result;
}

}  // namespace attention::testing
