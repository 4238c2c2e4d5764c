#include "client/python/native/outcome.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/cord.h"
#include "absl/time/time.h"
#include "attention/status.h"

namespace attention::python {

namespace nb = nanobind;

namespace {

constexpr char kErrorInfo[] = "type.googleapis.com/google.rpc.ErrorInfo";

// Fewer bytes are copied: a small answer would keep the whole slice that it
// came in, of up to 64 KiB.
constexpr size_t kKeptBytes = size_t{16} << 10;

int GetBuffer(PyObject* object, Py_buffer* view, int flags) {
  const auto* memory = nb::inst_ptr<Memory>(nb::handle(object));
  return PyBuffer_FillInfo(view, object, memory->elements.get(),
                           static_cast<Py_ssize_t>(memory->bytes),
                           /*readonly=*/0, flags);
}

// Other bytes than UTF-8, of a proxy perhaps, are shown as such.
nb::object Text(const std::string& text) {
  return nb::steal(PyUnicode_DecodeUTF8(
      text.data(), static_cast<Py_ssize_t>(text.size()), "backslashreplace"));
}

nb::object MemoryOf(Tensor tensor) {
  const std::span<const std::byte> bytes = tensor.bytes();
  if (bytes.size() >= kKeptBytes) {
    const auto owner = std::make_shared<Tensor>(std::move(tensor));
    // Nobody else has these elements: each answer has memory of its own.
    auto* const elements = const_cast<std::byte*>(bytes.data());
    return nb::cast(Memory{{owner, elements}, bytes.size()});
  }
  PyObject* const copy =
      PyByteArray_FromStringAndSize(reinterpret_cast<const char*>(bytes.data()),
                                    static_cast<Py_ssize_t>(bytes.size()));
  if (copy == nullptr) throw nb::python_error();
  return nb::steal(copy);
}

nb::object TensorOf(std::optional<Tensor> tensor) {
  if (!tensor) return nb::none();
  nb::list shape;
  for (const int64_t length : tensor->shape()) shape.append(length);
  const int type = tensor->type();
  return nb::make_tuple(type, nb::tuple(shape), MemoryOf(*std::move(tensor)));
}

bool HasPayload(const absl::Status& status) {
  bool has = false;
  status.ForEachPayload(
      [&has](absl::string_view, const absl::Cord&) { has = true; });
  return has;
}

// Whether the client has refused to send a request because of its size. What a
// server refuses has details.
bool IsTooLarge(const absl::Status& status, int64_t request_bytes) {
  constexpr int64_t kSurelyFits =
      std::numeric_limits<int32_t>::max() - (int64_t{1} << 20);
  return absl::IsInvalidArgument(status) && request_bytes > kSurelyFits &&
         !HasPayload(status);
}

}  // namespace

void DefineOutcomes(nb::module_& module) {
  static PyType_Slot memory_slots[] = {
      {Py_bf_getbuffer, reinterpret_cast<void*>(GetBuffer)}, {0, nullptr}};
  const nb::class_<Memory> memory(module, "Memory",
                                  nb::type_slots(memory_slots));
  nb::class_<Failure>(module, "Failure")
      .def_prop_ro("code",
                   [](const Failure& failure) {
                     return static_cast<int>(failure.status.code());
                   })
      .def_prop_ro("message",
                   [](const Failure& failure) {
                     return Text(std::string(failure.status.message()));
                   })
      .def_prop_ro("field_violations",
                   [](const Failure& failure) {
                     nb::list violations;
                     for (const auto& wrong : FieldViolations(failure.status)) {
                       violations.append(nb::make_tuple(
                           Text(wrong.field), Text(wrong.description)));
                     }
                     return violations;
                   })
      .def_prop_ro("reason",
                   [](const Failure& failure) {
                     return Text(ErrorReason(failure.status));
                   })
      .def_prop_ro("error_info",
                   [](const Failure& failure) {
                     const auto info = failure.status.GetPayload(kErrorInfo);
                     const std::string bytes(info.value_or(absl::Cord()));
                     return nb::bytes(bytes.data(), bytes.size());
                   })
      .def_prop_ro("retry_delay_us",
                   [](const Failure& failure) -> nb::object {
                     const auto delay = RetryDelay(failure.status);
                     if (!delay) return nb::none();
                     return nb::int_(absl::ToInt64Microseconds(*delay));
                   })
      .def_prop_ro(
          "forbids_retry",
          [](const Failure& failure) { return ForbidsRetry(failure.status); })
      .def_ro("too_large", &Failure::too_large);
}

nb::object OutcomeOf(absl::StatusOr<ComputeResult> result,
                     int64_t request_bytes) {
  if (!result.ok()) {
    const bool too_large = IsTooLarge(result.status(), request_bytes);
    return nb::cast(Failure{result.status(), too_large ? request_bytes : 0});
  }
  const v1::Timing& timing = result->timing;
  return nb::make_tuple(
      TensorOf(std::move(result->output)),
      TensorOf(std::move(result->log_sum_exp)),
      TensorOf(std::move(result->scores)),
      TensorOf(std::move(result->present_key)),
      TensorOf(std::move(result->present_value)),
      nb::make_tuple(timing.queue_us(), timing.decode_us(), timing.compute_us(),
                     timing.encode_us()));
}

nb::object OutcomeOf(const absl::Status& status,
                     const grpc::ByteBuffer& message) {
  if (!status.ok()) return nb::cast(Failure{status});
  std::vector<grpc::Slice> slices;
  static_cast<void>(message.Dump(&slices));
  std::string bytes;
  bytes.reserve(message.Length());
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return nb::bytes(bytes.data(), bytes.size());
}

nb::object AnswerOf(const absl::Status& status,
                    const grpc::ByteBuffer& message) {
  if (!status.ok()) return nb::cast(Failure{status});
  auto slices = std::make_shared<std::vector<grpc::Slice>>();
  static_cast<void>(message.Dump(slices.get()));
  if (slices->size() == 1) {
    // Nobody else has these bytes.
    auto* const bytes = reinterpret_cast<std::byte*>(
        const_cast<uint8_t*>(slices->front().begin()));
    return nb::cast(Memory{{slices, bytes}, slices->front().size()});
  }
  const std::shared_ptr<std::byte[]> joined(
      new std::byte[std::max<size_t>(1, message.Length())]);
  std::byte* to = joined.get();
  for (const grpc::Slice& slice : *slices) {
    std::memcpy(to, slice.begin(), slice.size());
    to += slice.size();
  }
  return nb::cast(Memory{{joined, joined.get()}, message.Length()});
}

}  // namespace attention::python
