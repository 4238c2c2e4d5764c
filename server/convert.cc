#include "server/convert.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "wire/data_type.h"
#include "wire/kernel_options.h"

namespace attention::server {
namespace {

using wire::TensorFields;

// A copy of so much takes about half a millisecond.
constexpr size_t kCopyBytes = size_t{4} << 20;

absl::StatusOr<DataType> TypeOf(absl::string_view field,
                                const TensorFields& tensor) {
  const std::string path = absl::StrCat(field, ".data_type");
  const bool has_data = tensor.data.remaining() > 0;
  const bool has_floats = tensor.float_values.count > 0;
  const bool shared = tensor.shared_memory.present;
  if (has_data && has_floats) {
    return FieldError(field, "got both data and float_values, wanted one");
  }
  if (shared && (has_data || has_floats)) {
    return FieldError(field, absl::StrCat("got both shared_memory and ",
                                          has_data ? "data" : "float_values",
                                          ", wanted one"));
  }
  if (tensor.data_type == v1::DATA_TYPE_UNSPECIFIED) {
    if (!has_data && !shared) return DataType::kFloat32;
    return FieldError(
        path, absl::StrCat("missing, wanted the type of the elements in ",
                           shared ? "shared_memory" : "data"));
  }
  if (tensor.data_type == v1::DATA_TYPE_BITS) {
    if (has_floats) {
      return FieldError(path,
                        "got BITS with float_values, wanted FLOAT32 or none");
    }
    return FieldError(path,
                      "got BITS, wanted another type: only for masks, "
                      "and not of StreamAttention");
  }
  const std::optional<DataType> type = wire::FromWire(tensor.data_type);
  if (!type) {
    return FieldError(path, absl::StrCat("got ", tensor.data_type,
                                         ", wanted a value of DataType"));
  }
  if (has_floats && *type != DataType::kFloat32) {
    return FieldError(
        path, absl::StrCat("got ", Name(*type),
                           " with float_values, wanted FLOAT32 or none"));
  }
  return *type;
}

// Bytes that the elements take.
absl::StatusOr<int64_t> SizeOf(absl::string_view field,
                               const TensorFields& tensor, DataType type) {
  const std::string path = absl::StrCat(field, ".shape");
  if (tensor.rank > wire::kMaxRank) {
    return FieldError(path, absl::StrCat("got ", tensor.rank,
                                         " dimensions, wanted at most 4"));
  }
  for (int64_t dim : tensor.shape) {
    if (dim >= 0) continue;
    return FieldError(path, absl::StrCat("got ", ToString(tensor.shape),
                                         ", wanted no negative dimension"));
  }
  const std::optional<int64_t> elements = NumElements(tensor.shape);
  int64_t bytes;
  if (!elements ||
      __builtin_mul_overflow(
          *elements, static_cast<int64_t>(attention::SizeOf(type)), &bytes)) {
    return FieldError(path, absl::StrCat("got ", ToString(tensor.shape),
                                         ", wanted fewer than 2^60 elements"));
  }
  return bytes;
}

absl::Status WrongLength(absl::string_view path, const TensorFields& tensor,
                         int64_t got, absl::string_view unit, int64_t wanted,
                         absl::string_view type) {
  return FieldError(
      path, absl::StrCat("got ", got, " ", unit, ", wanted ", wanted,
                         " for shape ", ToString(tensor.shape), " of ", type));
}

// Whether the payload is as long as type and shape say.
absl::Status CheckPayload(absl::string_view field, const TensorFields& tensor,
                          DataType type, int64_t bytes) {
  const auto numbers = static_cast<int64_t>(tensor.float_values.count);
  const auto wanted_numbers = bytes / static_cast<int64_t>(sizeof(float));
  if (numbers > 0 && numbers != wanted_numbers) {
    return WrongLength(absl::StrCat(field, ".float_values"), tensor, numbers,
                       "numbers", wanted_numbers, Name(type));
  }
  if (numbers == 0 && tensor.data.remaining() != bytes) {
    return WrongLength(absl::StrCat(field, ".data"), tensor,
                       tensor.data.remaining(), "bytes", bytes, Name(type));
  }
  return absl::OkStatus();
}

// Bytes of so many bits.
int64_t PackedBytes(int64_t bits) { return bits / 8 + (bits % 8 != 0); }

// For messages that all hold their elements.
absl::Status CheckNotShared(absl::string_view field,
                            const TensorFields& tensor) {
  if (!tensor.shared_memory.present) return absl::OkStatus();
  return FieldError(absl::StrCat(field, ".shared_memory"),
                    "got one, wanted none: only with ComputeAttention");
}

absl::Status CheckNoPayload(absl::string_view field,
                            const TensorFields& tensor) {
  if (absl::Status status = CheckNotShared(field, tensor); !status.ok()) {
    return status;
  }
  if (tensor.data.remaining() > 0) {
    return FieldError(absl::StrCat(field, ".data"),
                      absl::StrCat("got ", tensor.data.remaining(),
                                   " bytes, wanted none: they come in chunks"));
  }
  if (tensor.float_values.count > 0) {
    return FieldError(
        absl::StrCat(field, ".float_values"),
        absl::StrCat("got ", tensor.float_values.count,
                     " numbers, wanted none: they come in chunks"));
  }
  return absl::OkStatus();
}

class Converter {
 public:
  // What comes with the message: all elements; those of all but keys and
  // values; or those of query, indices and sinks.
  enum class Elements : uint8_t { kAll, kNoKeys, kQuery };

  Converter(wire::RequestFields fields, Elements elements, BufferPool& pool,
            wire::MemoryMeter& meter, const CallerRegions& regions)
      : fields_(std::move(fields)),
        elements_(elements),
        pool_(pool),
        meter_(meter),
        regions_(regions) {}

  absl::StatusOr<KernelRequest> Convert() {
    request_.float_values = fields_.query.float_values.count > 0;
    AttentionInputs& inputs = request_.inputs;
    Required("query", fields_.query, &inputs.query);
    Required("key", fields_.key, &inputs.key);
    Required("value", fields_.value, &inputs.value);
    Optional("mask", fields_.mask, &inputs.mask);
    Optional("past_key", fields_.past_key, &inputs.past_key);
    Optional("past_value", fields_.past_value, &inputs.past_value);
    Optional("indices", fields_.indices, &inputs.indices);
    Optional("sinks", fields_.sinks, &inputs.sinks);
    if (error_.ok()) error_ = FindOutputs();
    if (error_.ok()) error_ = TakeLists();
    if (!error_.ok()) return error_;
    auto options = wire::ToKernelOptions(fields_.options);
    if (!options.ok()) return options.status();
    request_.options = *std::move(options);
    request_.valid_lengths = std::move(fields_.valid_lengths);
    request_.query_starts = std::move(fields_.query_starts);
    request_.key_starts = std::move(fields_.key_starts);
    inputs.valid_lengths = request_.valid_lengths;
    inputs.query_starts = request_.query_starts;
    inputs.key_starts = request_.key_starts;
    return std::move(request_);
  }

 private:
  // Of all lists: of lengths, which the decoder has taken memory for, and of
  // the options, which are still to be copied. The planner keeps a copy of
  // each.
  absl::Status TakeLists() {
    int64_t held = 0, copied = 0;
    for (const std::vector<int64_t>* list :
         {&fields_.valid_lengths, &fields_.query_starts, &fields_.key_starts}) {
      held += static_cast<int64_t>(list->capacity() * sizeof(int64_t));
      copied += static_cast<int64_t>(list->size() * sizeof(int64_t));
    }
    const int64_t of_options =
        static_cast<int64_t>(sizeof(double)) *
        (fields_.options.alibi_slopes_size() + fields_.options.sinks_size());
    copied += 2 * of_options;
    request_.bytes += held + copied;
    return meter_.Take(copied);
  }

  // The first error stays; what follows it does nothing.
  void Required(absl::string_view field, TensorFields& tensor,
                ConstTensorView* view) {
    if (!error_.ok()) return;
    if (!tensor.present) {
      error_ = FieldError(field, "missing");
      return;
    }
    auto converted =
        Comes(tensor) ? ToView(field, tensor) : Declared(field, tensor);
    if (converted.ok()) {
      *view = *std::move(converted);
    } else {
      error_ = converted.status();
    }
  }

  bool Comes(const TensorFields& tensor) const {
    return elements_ == Elements::kAll || &tensor == &fields_.query ||
           &tensor == &fields_.indices || &tensor == &fields_.sinks ||
           (elements_ == Elements::kNoKeys && &tensor == &fields_.mask);
  }

  bool streamed() const { return elements_ == Elements::kQuery; }

  void Optional(absl::string_view field, TensorFields& tensor,
                std::optional<ConstTensorView>* view) {
    if (tensor.present) Required(field, tensor, &view->emplace());
  }

  absl::Status FindOutputs() {
    const wire::OutputMemoryFields& from = fields_.outputs;
    if (!from.present) return absl::OkStatus();
    if (streamed()) {
      return FieldError("outputs",
                        "got it, wanted none: not with StreamAttention");
    }
    if (request_.float_values) {
      return FieldError("outputs",
                        "got it with float_values in query, whose answer has "
                        "them too; wanted query in data or shared_memory");
    }
    OutputPlaces& to = request_.outputs;
    absl::Status status;
    const auto find = [&](absl::string_view field,
                          const wire::SharedMemoryFields& memory,
                          SharedPlace& place) {
      if (!status.ok() || !memory.present) return;
      auto found = FindPlace(field, memory, regions_);
      status = found.status();
      if (found.ok()) place = *std::move(found);
    };
    find("outputs.output", from.output, to.output);
    find("outputs.log_sum_exp", from.log_sum_exp, to.log_sum_exp);
    find("outputs.scores", from.scores, to.scores);
    find("outputs.present_key", from.present_key, to.present_key);
    find("outputs.present_value", from.present_value, to.present_value);
    return status;
  }

  absl::StatusOr<ConstTensorView> ToView(absl::string_view field,
                                         TensorFields& tensor) {
    if (elements_ != Elements::kAll) {
      absl::Status status = CheckNotShared(field, tensor);
      if (!status.ok()) return status;
    }
    if (&tensor == &fields_.mask && tensor.data_type == v1::DATA_TYPE_BITS &&
        tensor.float_values.count == 0) {
      return Unpacked(field, tensor);
    }
    const absl::StatusOr<DataType> type = TypeOf(field, tensor);
    if (!type.ok()) return type.status();
    const absl::StatusOr<int64_t> bytes = SizeOf(field, tensor, *type);
    if (!bytes.ok()) return bytes.status();
    ConstTensorView view{
        .type = *type, .shape = tensor.shape, .strides = {}, .data = nullptr};
    if (tensor.shared_memory.present) {
      absl::Status status =
          UseShared(field, tensor.shared_memory, *bytes, view);
      if (!status.ok()) return status;
      return view;
    }
    if (absl::Status status = CheckPayload(field, tensor, *type, *bytes);
        !status.ok()) {
      return status;
    }
    if (tensor.float_values.count > 0) {
      request_.payloads.push_back(std::move(tensor.float_values.values));
    } else {
      if (absl::Status taken = meter_.Take(*bytes); !taken.ok()) return taken;
      request_.payloads.push_back(pool_.Allocate(*bytes));
      AddCopies(tensor.data, request_.payloads.back().data(), *bytes);
    }
    request_.bytes += static_cast<int64_t>(request_.payloads.back().capacity());
    view.data = request_.payloads.back().data();
    return view;
  }

  // A mask of BITS as BOOL.
  absl::StatusOr<ConstTensorView> Unpacked(absl::string_view field,
                                           TensorFields& tensor) {
    const absl::StatusOr<int64_t> count =
        SizeOf(field, tensor, DataType::kBool);
    if (!count.ok()) return count.status();
    const int64_t packed = PackedBytes(*count);
    std::optional<SharedPlace> place;
    if (tensor.shared_memory.present) {
      if (tensor.data.remaining() > 0) {
        return FieldError(field, "got both shared_memory and data, wanted one");
      }
      const std::string path = absl::StrCat(field, ".shared_memory");
      auto found = FindPlace(path, tensor.shared_memory, regions_);
      if (!found.ok()) return found.status();
      absl::Status status = CheckPlace(path, *found, packed, DataType::kBool);
      if (!status.ok()) return status;
      place = *std::move(found);
    } else if (tensor.data.remaining() != packed) {
      return WrongLength(absl::StrCat(field, ".data"), tensor,
                         tensor.data.remaining(), "bytes", packed, "BITS");
    }
    if (absl::Status taken = meter_.Take(*count); !taken.ok()) return taken;
    request_.payloads.push_back(pool_.Allocate(*count));
    const Buffer& bools = request_.payloads.back();
    request_.bytes += static_cast<int64_t>(bools.capacity());
    wire::SliceReader from = tensor.data;
    for (int64_t begin = 0; begin < *count; begin += kCopyBytes) {
      const size_t piece = std::min<int64_t>(*count - begin, kCopyBytes);
      request_.copies.push_back(
          {.from = from,
           .shared = place ? place->data() + begin / 8 : nullptr,
           .to = bools.data() + begin,
           .bytes = piece,
           .unpacks_bits = true});
      if (!place) from.Skip(PackedBytes(static_cast<int64_t>(piece)));
    }
    if (place) request_.regions.push_back(std::move(place->region));
    ConstTensorView view;
    view.type = DataType::kBool;
    view.shape = tensor.shape;
    view.data = bools.data();
    return view;
  }

  absl::Status UseShared(absl::string_view field,
                         const wire::SharedMemoryFields& memory, int64_t bytes,
                         ConstTensorView& view) {
    const std::string path = absl::StrCat(field, ".shared_memory");
    auto place = FindPlace(path, memory, regions_);
    if (!place.ok()) return place.status();
    absl::Status status = CheckPlace(path, *place, bytes, view.type);
    if (!status.ok()) return status;
    view.data = place->data();
    if (view.type == DataType::kBool) {
      if (absl::Status taken = meter_.Take(bytes); !taken.ok()) return taken;
      request_.payloads.push_back(pool_.Allocate(bytes));
      const Buffer& copy = request_.payloads.back();
      AddSharedCopies(place->data(), copy.data(), bytes);
      request_.bytes += static_cast<int64_t>(copy.capacity());
      view.data = copy.data();
    }
    request_.regions.push_back(std::move(place->region));
    return absl::OkStatus();
  }

  void AddSharedCopies(const std::byte* from, std::byte* to, size_t bytes) {
    for (size_t begin = 0; begin < bytes; begin += kCopyBytes) {
      request_.copies.push_back({.shared = from + begin,
                                 .to = to + begin,
                                 .bytes = std::min(bytes - begin, kCopyBytes)});
    }
  }

  // A tensor whose elements are still to come.
  absl::StatusOr<ConstTensorView> Declared(absl::string_view field,
                                           const TensorFields& tensor) {
    absl::Status status = CheckNoPayload(field, tensor);
    if (!status.ok()) return status;
    const absl::StatusOr<DataType> type = TypeOf(field, tensor);
    if (!type.ok()) return type.status();
    status = SizeOf(field, tensor, *type).status();
    if (!status.ok()) return status;
    ConstTensorView view;
    view.type = *type;
    view.shape = tensor.shape;
    return view;
  }

  void AddCopies(wire::SliceReader from, std::byte* to, size_t bytes) {
    while (bytes > 0) {
      const size_t piece = std::min(bytes, kCopyBytes);
      request_.copies.push_back({.from = from, .to = to, .bytes = piece});
      from.Skip(piece);
      to += piece;
      bytes -= piece;
    }
  }

  wire::RequestFields fields_;
  const Elements elements_;
  BufferPool& pool_;
  wire::MemoryMeter& meter_;
  const CallerRegions regions_;
  KernelRequest request_;
  absl::Status error_;
};

}  // namespace

void PayloadCopy::Run() {
  if (unpacks_bits) {
    std::byte packed[4096];
    for (size_t done = 0; done < bytes;) {
      const size_t count = std::min(bytes - done, 8 * sizeof(packed));
      const auto size = static_cast<size_t>(PackedBytes(count));
      if (shared == nullptr) {
        from.ReadBytes(packed, size);
      } else {
        std::memcpy(packed, shared + done / 8, size);
      }
      for (size_t i = 0; i < count; ++i) {
        to[done + i] = (packed[i / 8] >> i % 8) & std::byte{1};
      }
      done += count;
    }
    return;
  }
  if (shared == nullptr) {
    from.ReadBytes(to, bytes);
  } else {
    std::memcpy(to, shared, bytes);
  }
}

absl::StatusOr<KernelRequest> ToKernel(wire::RequestFields fields,
                                       BufferPool& pool,
                                       wire::MemoryMeter& meter,
                                       const CallerRegions& regions) {
  return Converter(std::move(fields), Converter::Elements::kAll, pool, meter,
                   regions)
      .Convert();
}

absl::StatusOr<KernelRequest> ToKernelWithoutKeys(wire::RequestFields fields,
                                                  BufferPool& pool,
                                                  wire::MemoryMeter& meter) {
  return Converter(std::move(fields), Converter::Elements::kNoKeys, pool, meter,
                   {})
      .Convert();
}

absl::Status CheckOutputs(const OutputPlaces& outputs,
                          const AttentionPlan& plan) {
  struct Output {
    absl::string_view field;
    const SharedPlace& place;
    const std::optional<TensorSpec>& spec;
  };
  const std::optional<TensorSpec> output = plan.output;
  const Output all[] = {
      {"outputs.output", outputs.output, output},
      {"outputs.log_sum_exp", outputs.log_sum_exp, plan.log_sum_exp},
      {"outputs.scores", outputs.scores, plan.scores},
      {"outputs.present_key", outputs.present_key, plan.present_key},
      {"outputs.present_value", outputs.present_value, plan.present_value}};
  for (const auto& [field, place, spec] : all) {
    if (place.region == nullptr) continue;
    if (!spec) {
      return FieldError(field,
                        "got it, wanted none: options do not ask for it");
    }
    absl::Status status =
        CheckPlace(field, place, spec->num_bytes(), spec->type);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<KernelRequest> ToStreamedKernel(wire::RequestFields fields,
                                               BufferPool& pool,
                                               wire::MemoryMeter& meter) {
  return Converter(std::move(fields), Converter::Elements::kQuery, pool, meter,
                   {})
      .Convert();
}

absl::StatusOr<TensorSpec> CheckTensor(absl::string_view field,
                                       const wire::TensorFields& tensor) {
  if (!tensor.present) return FieldError(field, "missing");
  absl::Status status = CheckNotShared(field, tensor);
  if (!status.ok()) return status;
  const absl::StatusOr<DataType> type = TypeOf(field, tensor);
  if (!type.ok()) return type.status();
  const absl::StatusOr<int64_t> bytes = SizeOf(field, tensor, *type);
  if (!bytes.ok()) return bytes.status();
  status = CheckPayload(field, tensor, *type, *bytes);
  if (!status.ok()) return status;
  return TensorSpec{*type, tensor.shape};
}

}  // namespace attention::server
