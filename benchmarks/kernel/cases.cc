#include "benchmarks/kernel/cases.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <random>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "kernel/cpu/convert.h"
#include "kernel/scaled.h"

namespace attention::benchmarks {
namespace {

std::string TypeName(const Case& c) {
  if (c.scaled) return *c.scaled == DataType::kInt8 ? "int8" : "fp8";
  switch (c.type) {
    case DataType::kFloat16:
      return "f16";
    case DataType::kBFloat16:
      return c.math == MathMode::kFast ? "bf16_fast" : "bf16";
    case DataType::kFloat64:
      return "f64";
    default:
      return "f32";
  }
}

std::string Describe(const Case& c) {
  std::string name = absl::StrCat(
      c.name, "/", TypeName(c), "/B", c.batch, "/H", c.query_heads, "_",
      c.kv_heads, "/S", c.query_length, "/T", c.key_length, "/d", c.head_size);
  if (c.value_head_size != c.head_size) {
    absl::StrAppend(&name, "_", c.value_head_size);
  }
  if (c.selected > 0) absl::StrAppend(&name, "/k", c.selected);
  return name;
}

void MustBeOk(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::abort();
}

}  // namespace

std::vector<Case> AllCases() {
  std::vector<Case> cases;
  const auto add = [&cases](Case c, int64_t d) {
    c.head_size = c.value_head_size = d;
    cases.push_back(std::move(c));
  };
  constexpr MathMode kExact = MathMode::kReproducible;
  const std::pair<DataType, MathMode> kinds[] = {
      {DataType::kFloat32, kExact},
      {DataType::kFloat16, kExact},
      {DataType::kBFloat16, kExact},
      {DataType::kBFloat16, MathMode::kFast},
      {DataType::kFloat64, kExact}};
  for (const auto& [type, math] : kinds) {
    for (int64_t d : {64, 128}) {
      add({.name = "dense", .type = type, .math = math}, d);
      add({.name = "causal",
           .type = type,
           .math = math,
           .query_length = 2048,
           .key_length = 2048,
           .causal = Causal::kTopLeft},
          d);
      add({.name = "causal_gqa",
           .type = type,
           .math = math,
           .query_heads = 32,
           .causal = Causal::kTopLeft},
          d);
    }
  }
  for (const auto& [type, math] : kinds) {
    const Case decode = {.name = "decode",
                         .type = type,
                         .math = math,
                         .query_heads = 32,
                         .query_length = 1,
                         .decode = true};
    for (int64_t keys : {2048, 8192, 32768}) {
      Case c = decode;
      c.key_length = keys;
      add(c, 128);
    }
    Case many = decode;
    many.batch = 8;
    many.key_length = 2048;
    add(many, 128);
  }
  for (DataType type : {DataType::kInt8, DataType::kFloat8E4M3}) {
    add({.name = "decode",
         .query_heads = 32,
         .query_length = 1,
         .key_length = 32768,
         .decode = true,
         .scaled = type},
        128);
  }
  // Sparse attention: 2,048 keys of 32,768, and only so many keys for
  // comparison. The second kind of heads is that of latent attention (MLA).
  for (int64_t rows : {1, 64}) {
    for (const bool selected : {true, false}) {
      Case c = {.name = selected ? "selected" : "not_selected",
                .type = DataType::kBFloat16,
                .query_heads = 32,
                .query_length = rows,
                .key_length = selected ? 32768 : 2048,
                .selected = selected ? 2048 : 0,
                .for_peers = false};
      add(c, 128);
      c.query_heads = 128;
      c.kv_heads = 1;
      c.head_size = 576;
      c.value_head_size = 512;
      cases.push_back(c);
    }
  }
  add({.name = "small",
       .query_heads = 1,
       .kv_heads = 1,
       .query_length = 16,
       .key_length = 16},
      64);
  add({.name = "small", .query_length = 128, .key_length = 128}, 64);
  add({.name = "window256",
       .query_length = 4096,
       .key_length = 4096,
       .causal = Causal::kTopLeft,
       .window_left = 255},
      64);
  add({.name = "additive_mask", .mask = Mask::kAdditive}, 64);
  add({.name = "bool_mask", .mask = Mask::kBool}, 64);
  add({.name = "ragged",
       .causal = Causal::kTopLeft,
       .ragged = {37, 1500, 256, 3, 900, 129, 600, 2048}},
      64);
  for (int64_t d : {80, 96, 256}) add({.name = "dense"}, d);
  cases.push_back({.name = "dense", .head_size = 192, .value_head_size = 128});
  for (Case& c : cases) c.name = Describe(c);
  return cases;
}

Limit LimitOf(const Case& c) {
  if (c.decode) return Limit::kRead;
  if (c.type == DataType::kFloat64) return Limit::kDouble;
  if (c.math == MathMode::kFast && HasFastMath()) return Limit::kBFloat16;
  return Limit::kFloat;
}

Workload::Workload(const Case& c) {
  int64_t batch = c.batch, rows = c.query_length, keys = c.key_length;
  AttentionOptions options;
  options.math_mode = c.math;
  options.causal = c.causal;
  options.window_left = c.window_left;
  AttentionInputs inputs;
  Shape query_shape = {batch, c.query_heads, rows, c.head_size};
  Shape key_shape = {batch, c.kv_heads, keys, c.head_size};
  Shape value_shape = {batch, c.kv_heads, keys, c.value_head_size};
  if (!c.ragged.empty()) {
    options.layout = Layout::kRagged;
    starts_.push_back(0);
    for (int64_t length : c.ragged) starts_.push_back(starts_.back() + length);
    inputs.query_starts = inputs.key_starts = starts_;
    query_shape = {starts_.back(), c.query_heads, c.head_size};
    key_shape = {starts_.back(), c.kv_heads, c.head_size};
    value_shape = {starts_.back(), c.kv_heads, c.value_head_size};
  }
  inputs.query = Fill(c.type, query_shape, 1);
  inputs.key = Fill(c.type, key_shape, 2);
  inputs.value = Fill(c.type, value_shape, 3);
  if (c.mask == Mask::kAdditive) {
    inputs.mask = Fill(DataType::kFloat32, {rows, keys}, 4);
  } else if (c.mask == Mask::kBool) {
    inputs.mask = Fill(DataType::kBool, {rows, keys}, 4);
  }
  if (c.selected > 0) inputs.indices = Select(c);
  auto plan = PlanAttention(inputs, options);
  MustBeOk(plan.status());
  plan_ = *std::move(plan);
  output_.resize(plan_->output.num_bytes());
  const auto bytes = [](const ConstTensorView& view) {
    return static_cast<double>(*NumElements(view.shape)) *
           static_cast<double>(SizeOf(view.type));
  };
  key_value_bytes_ = bytes(inputs.key) + bytes(inputs.value);
  if (c.scaled) Scale(c);
}

void Workload::Scale(const Case& c) {
  const int64_t rows = c.kv_heads * c.key_length;
  const auto scaled = [&](const Bytes& numbers) {
    Bytes elements(rows * c.head_size);
    Bytes scales(rows);
    const float* row = reinterpret_cast<const float*>(numbers.data());
    for (int64_t i = 0; i < rows; ++i, row += c.head_size) {
      float largest = 0;
      for (int64_t k = 0; k < c.head_size; ++k) {
        largest = std::max(largest, std::fabs(row[k]));
      }
      const uint8_t scale = ScaleOf(*c.scaled, largest);
      scales[i] = static_cast<char>(scale);
      ScaleElements(*c.scaled, scale, row, c.head_size,
                    &elements[i * c.head_size]);
    }
    key_value_bytes_ += static_cast<double>(elements.size() + scales.size());
    tensors_.push_back(std::move(elements));
    tensors_.push_back(std::move(scales));
  };
  key_value_bytes_ = 0;
  tensors_.reserve(tensors_.size() + 4);
  const size_t first = tensors_.size();
  scaled(tensors_[1]);
  scaled(tensors_[2]);
  for (int64_t begin = 0; begin < c.key_length; begin += kKeyBlock) {
    const auto scales = [&](size_t i) {
      return reinterpret_cast<const uint8_t*>(&tensors_[first + i][begin]);
    };
    blocks_.push_back({.key = &tensors_[first][begin * c.head_size],
                       .value = &tensors_[first + 2][begin * c.head_size],
                       .key_head_stride = c.key_length * c.head_size,
                       .value_head_stride = c.key_length * c.head_size,
                       .key_scales = scales(1),
                       .value_scales = scales(3),
                       .scale_head_stride = c.key_length});
  }
  view_ = {.length = c.key_length,
           .key_row_stride = c.head_size,
           .value_row_stride = c.head_size,
           .blocks = blocks_};
  auto plan =
      WithKeys(*std::move(plan_), absl::MakeConstSpan(&view_, 1), c.scaled);
  MustBeOk(plan.status());
  plan_ = *std::move(plan);
}

ConstTensorView Workload::Fill(DataType type, const Shape& shape,
                               unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  const int64_t count = *NumElements(shape);
  Bytes& bytes = tensors_.emplace_back(count * SizeOf(type));
  if (type == DataType::kBool) {
    for (char& byte : bytes) byte = random() % 2 == 0;
  } else {
    std::vector<float> numbers(count);
    for (float& number : numbers) number = normal(random);
    StoreElements(numbers.data(), count, type, bytes.data(), 0);
  }
  return {.type = type, .shape = shape, .strides = {}, .data = bytes.data()};
}

ConstTensorView Workload::Select(const Case& c) {
  std::mt19937 random(5);
  const int64_t rows = c.batch * c.query_length;
  Bytes& bytes = tensors_.emplace_back(rows * c.selected * sizeof(int32_t));
  auto* list = reinterpret_cast<int32_t*>(bytes.data());
  std::vector<int32_t> keys(c.key_length);
  for (int64_t i = 0; i < c.key_length; ++i) keys[i] = static_cast<int32_t>(i);
  for (int64_t row = 0; row < rows; ++row, list += c.selected) {
    for (int64_t n = 0; n < c.selected; ++n) {
      std::swap(keys[n], keys[n + random() % (c.key_length - n)]);
      list[n] = keys[n];
    }
  }
  return {.type = DataType::kInt32,
          .shape = {c.batch, c.query_length, c.selected},
          .strides = {},
          .data = bytes.data()};
}

void Workload::Run(Executor& executor) {
  MustBeOk(RunAttention(*plan_, {.output = output_.data()}, executor));
}

void Workload::Save(const std::string& directory) const {
  const auto save = [&directory](absl::string_view name, const Bytes& bytes) {
    std::ofstream file(absl::StrCat(directory, "/", name, ".bin"),
                       std::ios::binary);
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    if (file.flush()) return;
    std::fprintf(stderr, "cannot write to %s\n", directory.c_str());
    std::abort();
  };
  // As the constructor fills them.
  const absl::string_view names[] = {"query", "key", "value", "mask"};
  for (size_t i = 0; i < tensors_.size(); ++i) save(names[i], tensors_[i]);
  save("output", output_);
}

}  // namespace attention::benchmarks
