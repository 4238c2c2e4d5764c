// Fuzzes the way of a request from bytes to a plan and through the computation:
// absurd shapes and endless lists must take no more memory than was asked for
// before it is allocated.
#include <fuzzer/FuzzedDataProvider.h>
#include <sanitizer/allocator_interface.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_join.h"
#include "absl/types/span.h"
#include "attention/v1/attention.pb.h"
#include "base/buffer_pool.h"
#include "base/executor.h"
#include "inference/inference.pb.h"
#include "kernel/attention.h"
#include "server/convert.h"
#include "server/inference/request.h"
#include "wire/compute_request.h"
#include "wire/infer_request.h"
#include "wire/memory_meter.h"

namespace attention::server {
namespace {

// What a request may take, its own bytes aside: little enough that an input
// soon asks for too much.
constexpr int64_t kBudget = int64_t{16} << 20;
// Objects of fixed size, texts of errors, what allocators round up.
constexpr int64_t kSlack = int64_t{64} << 10;
// Small enough that an input takes milliseconds.
constexpr AttentionLimits kLimits = {.head_size = 4096,
                                     .heads = 1024,
                                     .batch = 2048,
                                     .batch_heads = 4096,
                                     .work = 2e8};
constexpr size_t kMostNumbers = 2049;

std::atomic<int64_t> live_bytes{0};
std::atomic<int64_t> peak_bytes{0};

void CountMalloc(const volatile void* memory, size_t bytes) {
  if (memory == nullptr) return;
  const int64_t live = live_bytes += static_cast<int64_t>(bytes);
  if (live > peak_bytes) peak_bytes = live;
}

void CountFree(const volatile void* memory) {
  if (memory == nullptr) return;
  live_bytes -= static_cast<int64_t>(
      __sanitizer_get_allocated_size(const_cast<const void*>(memory)));
}

// The most that was allocated since its construction and not freed.
class Peak {
 public:
  Peak() : before_(live_bytes) { peak_bytes = before_; }
  int64_t bytes() const { return peak_bytes - before_; }

 private:
  const int64_t before_;
};

void Check(bool condition, const char* what, int64_t got, int64_t wanted) {
  if (condition) return;
  std::fprintf(stderr, "%s: got %lld, wanted %lld\n", what,
               static_cast<long long>(got), static_cast<long long>(wanted));
  std::abort();
}

// A request whose shapes mostly fit together, of any sizes at all, with the
// payloads that they imply where these are small.
class Author {
 public:
  Author(const uint8_t* data, size_t size) : source_(data, size) {}

  std::string Write() {
    v1::ComputeAttentionRequest request;
    v1::AttentionOptions& options = *request.mutable_options();
    const auto layout = static_cast<v1::Layout>(Integer(0, 6));
    options.set_layout(layout);
    const int64_t batch = Size(), kv_heads = Size(), query_length = Size(),
                  key_length = Size(), head_size = Size(),
                  value_head_size = Size();
    int64_t query_heads;
    if (__builtin_mul_overflow(kv_heads, Integer(0, 4), &query_heads)) {
      query_heads = kv_heads;
    }
    if (layout == v1::LAYOUT_PACKED || Integer(0, 7) == 0) {
      options.set_query_heads(query_heads);
      options.set_kv_heads(kv_heads);
    }
    type_ = static_cast<v1::DataType>(Integer(1, 4));
    const auto set = [&](int64_t heads, int64_t length, int64_t size,
                         v1::Tensor* tensor) {
      Fill(ShapeIn(layout, batch, heads, length, size), tensor);
    };
    set(query_heads, query_length, head_size, request.mutable_query());
    set(kv_heads, key_length, head_size, request.mutable_key());
    set(kv_heads, key_length, value_head_size, request.mutable_value());
    if (layout == v1::LAYOUT_RAGGED) {
      Starts(query_length, request.mutable_query_starts());
      Starts(key_length, request.mutable_key_starts());
    } else if (Integer(0, 3) == 0) {
      for (int64_t n = std::min<int64_t>(batch, 3000); n > 0; --n) {
        request.add_valid_lengths(0);
      }
    }
    if (Integer(0, 3) == 0) {
      const Shape past = {batch, kv_heads, Size(), head_size};
      Fill(past, request.mutable_past_key());
      Fill({batch, kv_heads, past[2], value_head_size},
           request.mutable_past_value());
    }
    if (Integer(0, 3) == 0) {
      Fill({query_length, key_length}, request.mutable_mask());
    }
    if (Integer(0, 3) == 0) {
      Fill({batch, query_heads, query_length}, request.mutable_sinks());
    }
    if (Integer(0, 3) == 0) {
      v1::Tensor& indices = *request.mutable_indices();
      indices.set_data_type(v1::DATA_TYPE_INT32);
      const Shape shape = {batch, query_length, Integer(0, 1) * Size()};
      indices.mutable_shape()->Add(shape.begin(), shape.end());
      indices.set_data(std::string(4 * FewElements(shape), '\0'));
    }
    if (Integer(0, 5) == 0) {
      v1::Tensor& mask = *request.mutable_mask();
      mask.Clear();
      mask.set_data_type(v1::DATA_TYPE_BITS);
      const Shape shape = {query_length, key_length};
      mask.mutable_shape()->Add(shape.begin(), shape.end());
      mask.set_data(std::string((FewElements(shape) + 7) / 8, '\x5a'));
    }
    if (Integer(0, 3) == 0) {
      const auto numbers =
          static_cast<int>(std::clamp<int64_t>(query_heads, 0, 2000));
      options.mutable_sinks()->Resize(numbers, 1);
      options.mutable_alibi_slopes()->Resize(numbers, 1);
    }
    options.set_causal(static_cast<v1::Causal>(Integer(0, 2)));
    options.set_return_log_sum_exp(Integer(0, 1) == 1);
    options.set_return_scores(static_cast<v1::Scores>(Integer(0, 4)));
    options.set_return_present(Integer(0, 1) == 1);
    std::string bytes = request.SerializeAsString();
    // What may follow is anything: unknown fields, numbers one by one.
    return bytes + source_.ConsumeRemainingBytesAsString();
  }

 private:
  int64_t Integer(int64_t low, int64_t high) {
    return source_.ConsumeIntegralInRange<int64_t>(low, high);
  }

  // The number of elements, of a message that stays short.
  static int64_t FewElements(const Shape& shape) {
    return std::clamp<int64_t>(NumElements(shape).value_or(0), 0, 100000);
  }

  int64_t Size() {
    switch (Integer(0, 7)) {
      case 0:
        return 0;
      case 1:
        return Integer(0, 5000);
      case 2:
        return (int64_t{1} << Integer(0, 62)) + Integer(-1, 1);
      case 3:
        return source_.ConsumeIntegral<int64_t>();
      default:
        return Integer(1, 4);
    }
  }

  static Shape ShapeIn(v1::Layout layout, int64_t batch, int64_t heads,
                       int64_t length, int64_t size) {
    int64_t width;
    if (__builtin_mul_overflow(heads, size, &width)) width = size;
    switch (layout) {
      case v1::LAYOUT_MATRIX:
        return {length, size};
      case v1::LAYOUT_PACKED:
        return {batch, length, width};
      case v1::LAYOUT_RAGGED:
        return {length, heads, size};
      case v1::LAYOUT_BSHD:
        return {batch, length, heads, size};
      default:
        return {batch, heads, length, size};
    }
  }

  void Fill(const Shape& shape, v1::Tensor* tensor) {
    constexpr int64_t kMostElements = 100000;
    tensor->set_data_type(type_);
    for (int64_t dim : shape) tensor->add_shape(dim);
    const int64_t elements = NumElements(shape).value_or(0);
    if (elements < 0 || elements > kMostElements) return;
    if (type_ == v1::DATA_TYPE_FLOAT32 && Integer(0, 3) == 0) {
      tensor->mutable_float_values()->Resize(static_cast<int>(elements), 1);
      return;
    }
    constexpr std::array<int, 5> kSizes = {0, 4, 2, 2, 8};
    tensor->set_data(std::string(elements * kSizes[type_], '\1'));
  }

  void Starts(int64_t length,
              google::protobuf::RepeatedField<int64_t>* starts) {
    const int64_t count = Integer(0, 3) == 0 ? Integer(0, 3000) : Integer(0, 4);
    for (int64_t i = 0; i < count; ++i) starts->Add(i < length ? i : length);
    if (Integer(0, 15) != 0) starts->Add(length);
  }

  FuzzedDataProvider source_;
  v1::DataType type_ = v1::DATA_TYPE_FLOAT32;
};

void Compute(const AttentionPlan& plan) {
  int64_t bytes = WorkingBytes(plan, /*threads=*/1);
  Check(bytes >= 0, "working bytes", bytes, 0);
  if (bytes > kBudget) return;
  const auto buffer = [&](const std::optional<TensorSpec>& spec) {
    std::vector<char> memory;
    if (spec && spec->num_bytes() <= kBudget - bytes) {
      memory.resize(spec->num_bytes());
    } else if (spec) {
      bytes = kBudget + 1;
    }
    return memory;
  };
  std::vector<char> output = buffer(plan.output),
                    log_sum_exp = buffer(plan.log_sum_exp),
                    scores = buffer(plan.scores),
                    present_key = buffer(plan.present_key),
                    present_value = buffer(plan.present_value);
  if (bytes > kBudget) return;  // As a server would refuse it.
  static auto* const executor = new Executor(0);
  const Peak peak;
  const absl::Status status =
      RunAttention(plan,
                   {output.data(), log_sum_exp.data(), scores.data(),
                    present_key.data(), present_value.data()},
                   *executor);
  Check(status.ok(), "status", status.raw_code(), 0);
  Check(peak.bytes() <= bytes + kSlack, "bytes to compute", peak.bytes(),
        bytes);
}

// What a message asks for. Tensors refer to the slices, and to `contents`.
absl::StatusOr<wire::RequestFields> Decode(
    absl::Span<const grpc::Slice> slices, BufferPool& pool,
    wire::MemoryMeter& meter, std::deque<grpc::Slice>& /*contents*/) {
  return wire::DecodeRequest(slices, pool, meter, kMostNumbers);
}

// The same of one of the Open Inference Protocol.
absl::StatusOr<wire::RequestFields> DecodeInfer(
    absl::Span<const grpc::Slice> slices, BufferPool& pool,
    wire::MemoryMeter& meter, std::deque<grpc::Slice>& contents) {
  wire::InferRequestFields fields;
  absl::Status status = wire::DecodeInferRequest(slices, pool, meter, &fields);
  if (!status.ok()) return status;
  auto request = ToInferRequest(std::move(fields), kMostNumbers, pool, meter);
  if (!request.ok()) return request.status();
  contents = std::move(request->contents);
  return std::move(request->fields);
}

void Run(const std::string& message, decltype(&Decode) decode) {
  static const auto pool = BufferPool::Create(0);
  const std::vector<grpc::Slice> slices = {grpc::Slice(message)};
  const auto size = static_cast<int64_t>(message.size());
  int64_t granted = size;
  wire::MemoryMeter meter(granted, [&](int64_t bytes) {
    if (bytes > size + kBudget) return absl::ResourceExhaustedError("");
    granted = bytes;
    return absl::OkStatus();
  });
  const Peak peak;
  std::deque<grpc::Slice> contents;
  auto fields = decode(slices, *pool, meter, contents);
  Check(peak.bytes() <= granted + kSlack, "bytes to decode", peak.bytes(),
        granted);
  if (!fields.ok()) return;
  auto request = ToKernel(*std::move(fields), *pool, meter);
  Check(peak.bytes() <= granted + kSlack, "bytes to decode", peak.bytes(),
        granted);
  if (!request.ok()) return;
  for (PayloadCopy& copy : request->copies) copy.Run();
  const auto plan = PlanAttention(request->inputs, request->options, kLimits);
  Check(peak.bytes() <= granted + kSlack, "bytes to plan", peak.bytes(),
        granted);
  if (plan.ok()) return Compute(*plan);
  Check(absl::IsInvalidArgument(plan.status()), "code",
        plan.status().raw_code(), 3);
  Check(!ErrorField(plan.status()).empty(), "length of the field", 0, 1);
}

// The message as one of the Open Inference Protocol, with what it cannot say
// left out; then `rest`.
std::string AsInference(const std::string& message, const std::string& rest) {
  v1::ComputeAttentionRequest from;
  inference::ModelInferRequest to;
  if (!from.ParseFromString(message)) return rest;
  to.set_model_name("attention");
  const auto add = [&](const char* name, bool present,
                       const v1::Tensor& tensor) {
    if (!present) return;
    constexpr std::array<const char*, 5> kNames = {"FP32", "FP32", "FP16",
                                                   "BF16", "FP64"};
    auto* const input = to.add_inputs();
    input->set_name(name);
    // What follows the author's message may have changed it.
    const auto type = static_cast<size_t>(tensor.data_type());
    input->set_datatype(type < kNames.size() ? kNames[type] : "BOOL");
    *input->mutable_shape() = tensor.shape();
    *input->mutable_contents()->mutable_fp32_contents() = tensor.float_values();
    to.add_raw_input_contents(tensor.data());
  };
  add("query", from.has_query(), from.query());
  add("key", from.has_key(), from.key());
  add("value", from.has_value(), from.value());
  add("mask", from.has_mask(), from.mask());
  add("past_key", from.has_past_key(), from.past_key());
  add("past_value", from.has_past_value(), from.past_value());
  add("indices", from.has_indices(), from.indices());
  add("sinks", from.has_sinks(), from.sinks());
  // Only one of the two holds elements.
  if (!from.query().float_values().empty()) to.clear_raw_input_contents();
  const v1::AttentionOptions& options = from.options();
  const auto set = [&](const char* name, int64_t number) {
    if (number != 0) {
      (*to.mutable_parameters())[name].set_int64_param(number);
    }
  };
  set("layout", options.layout());
  set("query_heads", options.query_heads());
  set("kv_heads", options.kv_heads());
  set("causal", options.causal());
  set("return_scores", options.return_scores());
  const auto set_list = [&](const char* name, const auto& numbers) {
    if (!numbers.empty()) {
      (*to.mutable_parameters())[name].set_string_param(
          absl::StrJoin(numbers, ","));
    }
  };
  set_list("valid_lengths", from.valid_lengths());
  set_list("query_starts", from.query_starts());
  set_list("key_starts", from.key_starts());
  set_list("sinks", options.sinks());
  set_list("alibi_slopes", options.alibi_slopes());
  if (options.return_log_sum_exp()) to.add_outputs()->set_name("log_sum_exp");
  return to.SerializeAsString() + rest;
}

}  // namespace
}  // namespace attention::server

extern "C" int LLVMFuzzerInitialize(int* /*argc*/, char*** /*argv*/) {
  // Descriptors are made when they are first asked for, and stay.
  attention::v1::AttentionOptions::default_instance().GetReflection();
  attention::v1::AttentionOptions::descriptor();
  inference::InferTensorContents::descriptor();
  using attention::server::CountFree;
  using attention::server::CountMalloc;
  return __sanitizer_install_malloc_and_free_hooks(CountMalloc, CountFree) == 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  namespace server = attention::server;
  const std::string rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  // Every other input is the message itself, and every other one of another
  // protocol.
  const bool written = data[0] % 2 != 0, infer = data[0] / 2 % 2 != 0;
  std::string message =
      written ? server::Author(data + 1, size - 1).Write() : rest;
  if (written && infer) message = server::AsInference(message, rest);
  server::Run(message, infer ? server::DecodeInfer : server::Decode);
  return 0;
}
