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
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "attention/v1/attention.pb.h"
#include "base/buffer_pool.h"
#include "base/executor.h"
#include "kernel/attention.h"
#include "server/convert.h"
#include "wire/compute_request.h"
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

void Run(const std::string& message) {
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
  auto fields = wire::DecodeRequest(slices, *pool, meter, kMostNumbers);
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

}  // namespace
}  // namespace attention::server

extern "C" int LLVMFuzzerInitialize(int* /*argc*/, char*** /*argv*/) {
  using attention::server::CountFree;
  using attention::server::CountMalloc;
  return __sanitizer_install_malloc_and_free_hooks(CountMalloc, CountFree) == 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  // Every other input is the message itself.
  if (data[0] % 2 == 0) {
    attention::server::Run(
        std::string(reinterpret_cast<const char*>(data) + 1, size - 1));
  } else {
    attention::server::Run(
        attention::server::Author(data + 1, size - 1).Write());
  }
  return 0;
}
