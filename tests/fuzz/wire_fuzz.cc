// Fuzzes the decoders against protobuf's parser: any bytes, cut anywhere, must
// be taken by both or by neither, and mean the same.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "attention/v1/attention.pb.h"
#include "base/buffer_pool.h"
#include "google/protobuf/message.h"
#include "wire/compute_request.h"
#include "wire/compute_response.h"
#include "wire/memory_meter.h"
#include "wire/stream_request.h"
#include "wire/tensor_fields.h"

namespace attention::wire {
namespace {

constexpr size_t kMostNumbers = 4096;

void Check(bool condition, const std::string& what) {
  if (condition) return;
  std::fprintf(stderr, "%s\n", what.c_str());
  std::abort();
}

// Of `cut` bytes each; 0: one slice.
std::vector<grpc::Slice> Cut(const std::string& bytes, size_t cut) {
  if (cut == 0) return {grpc::Slice(bytes)};
  std::vector<grpc::Slice> slices;
  for (size_t begin = 0; begin < bytes.size(); begin += cut) {
    slices.emplace_back(bytes.substr(begin, cut));
  }
  return slices;
}

void Fill(const SharedMemoryFields& place, v1::SharedMemory* message) {
  SliceReader region = place.region;
  message->mutable_region()->resize(region.remaining());
  Check(region.ReadBytes(message->mutable_region()->data(), region.remaining()),
        "region is not there");
  message->set_offset(place.offset);
}

// False: more was sent than is kept.
bool Fill(const TensorFields& tensor, v1::Tensor* message) {
  message->set_data_type(static_cast<v1::DataType>(tensor.data_type));
  message->mutable_shape()->Assign(tensor.shape.begin(), tensor.shape.end());
  SliceReader data = tensor.data;
  message->mutable_data()->resize(data.remaining());
  Check(data.ReadBytes(message->mutable_data()->data(), data.remaining()),
        "data is not there");
  const auto* floats =
      reinterpret_cast<const float*>(tensor.float_values.values.data());
  message->mutable_float_values()->Assign(floats,
                                          floats + tensor.float_values.count);
  if (tensor.shared_memory.present) {
    Fill(tensor.shared_memory, message->mutable_shared_memory());
  }
  return tensor.rank <= kMaxRank;
}

template <typename Mutable>
bool FillIfPresent(const TensorFields& tensor, Mutable message) {
  return !tensor.present || Fill(tensor, message());
}

void Fill(const OutputMemoryFields& fields, v1::OutputMemory* message) {
  const auto fill = [](const SharedMemoryFields& place, auto mutable_place) {
    if (place.present) Fill(place, mutable_place());
  };
  fill(fields.output, [&] { return message->mutable_output(); });
  fill(fields.log_sum_exp, [&] { return message->mutable_log_sum_exp(); });
  fill(fields.scores, [&] { return message->mutable_scores(); });
  fill(fields.present_key, [&] { return message->mutable_present_key(); });
  fill(fields.present_value, [&] { return message->mutable_present_value(); });
}

bool Fill(const RequestFields& fields, v1::ComputeAttentionRequest* message) {
  const auto assign = [](const std::vector<int64_t>& numbers, auto* list) {
    list->Assign(numbers.begin(), numbers.end());
  };
  assign(fields.valid_lengths, message->mutable_valid_lengths());
  assign(fields.query_starts, message->mutable_query_starts());
  assign(fields.key_starts, message->mutable_key_starts());
  *message->mutable_options() = fields.options;
  if (fields.outputs.present) {
    Fill(fields.outputs, message->mutable_outputs());
  }
  return FillIfPresent(fields.query,
                       [&] { return message->mutable_query(); }) &&
         FillIfPresent(fields.key, [&] { return message->mutable_key(); }) &&
         FillIfPresent(fields.value,
                       [&] { return message->mutable_value(); }) &&
         FillIfPresent(fields.mask, [&] { return message->mutable_mask(); }) &&
         FillIfPresent(fields.past_key,
                       [&] { return message->mutable_past_key(); }) &&
         FillIfPresent(fields.past_value,
                       [&] { return message->mutable_past_value(); }) &&
         FillIfPresent(fields.indices,
                       [&] { return message->mutable_indices(); }) &&
         FillIfPresent(fields.sinks, [&] { return message->mutable_sinks(); });
}

bool Fill(const ResponseFields& fields, v1::ComputeAttentionResponse* message) {
  *message->mutable_timing() = fields.timing;
  return FillIfPresent(fields.output,
                       [&] { return message->mutable_output(); }) &&
         FillIfPresent(fields.log_sum_exp,
                       [&] { return message->mutable_log_sum_exp(); }) &&
         FillIfPresent(fields.scores,
                       [&] { return message->mutable_scores(); }) &&
         FillIfPresent(fields.present_key,
                       [&] { return message->mutable_present_key(); }) &&
         FillIfPresent(fields.present_value,
                       [&] { return message->mutable_present_value(); });
}

bool Fill(const StreamRequestFields& fields,
          v1::StreamAttentionRequest* message) {
  if (const auto* header = std::get_if<RequestFields>(&fields)) {
    return Fill(*header, message->mutable_header());
  }
  const auto* chunk = std::get_if<ChunkFields>(&fields);
  if (chunk == nullptr) return true;
  v1::KeyValueChunk* to = message->mutable_chunk();
  return FillIfPresent(chunk->key, [&] { return to->mutable_key(); }) &&
         FillIfPresent(chunk->value, [&] { return to->mutable_value(); }) &&
         FillIfPresent(chunk->mask, [&] { return to->mutable_mask(); });
}

// Fields that a decoder does not tell from absent ones.
void Normalize(v1::ComputeAttentionRequest* message) {
  message->mutable_options();
}
void Normalize(v1::ComputeAttentionResponse* message) {
  message->mutable_timing();
}
void Normalize(v1::StreamAttentionRequest* message) {
  if (message->has_header()) Normalize(message->mutable_header());
}

// What is refused by a limit of ours is not the parser's to judge.
bool IsLimit(const absl::Status& status) {
  return !absl::StrContains(status.message(), " is not a valid ");
}

template <typename Message, typename Fields>
void Compare(const std::string& bytes, const absl::StatusOr<Fields>& fields) {
  Message wanted;
  const bool valid = wanted.ParseFromString(bytes);
  if (!fields.ok()) {
    Check(!valid || IsLimit(fields.status()),
          "refused: " + std::string(fields.status().message()));
    return;
  }
  Check(valid, "taken, unlike by protobuf");
  Message got;
  if (!Fill(*fields, &got)) return;
  Normalize(&wanted);
  wanted.DiscardUnknownFields();
  got.DiscardUnknownFields();
  Check(got.SerializeAsString() == wanted.SerializeAsString(),
        "got " + got.ShortDebugString() + "\nwanted " +
            wanted.ShortDebugString());
}

void Run(uint8_t kind, size_t cut, const std::string& bytes) {
  static const auto pool = BufferPool::Create(0);
  const std::vector<grpc::Slice> slices = Cut(bytes, cut);
  MemoryMeter meter;
  switch (kind % 3) {
    case 0:
      return Compare<v1::ComputeAttentionRequest>(
          bytes, DecodeRequest(slices, *pool, meter, kMostNumbers));
    case 1:
      return Compare<v1::StreamAttentionRequest>(
          bytes, DecodeStreamRequest(slices, *pool, meter, kMostNumbers));
    case 2:
      return Compare<v1::ComputeAttentionResponse>(
          bytes, DecodeResponse(slices, *pool, meter));
  }
}

}  // namespace
}  // namespace attention::wire

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  attention::wire::Run(
      data[0], data[1] % 16,
      std::string(reinterpret_cast<const char*>(data) + 2, size - 2));
  return 0;
}
