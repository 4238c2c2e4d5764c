// What calls end with, as Python sees it.
#ifndef ATTENTION_CLIENT_PYTHON_NATIVE_OUTCOME_H_
#define ATTENTION_CLIENT_PYTHON_NATIVE_OUTCOME_H_

#include <grpcpp/support/byte_buffer.h>
#include <nanobind/nanobind.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "attention/client.h"

namespace attention::python {

// Adds the types below to the module.
void DefineOutcomes(nanobind::module_& module);

// Elements of an answer, or those to be. Has Python's buffer protocol, and may
// be written to.
struct Memory {
  std::shared_ptr<std::byte> elements;
  size_t bytes;
};

// Why a call failed.
struct Failure {
  absl::Status status;
  // The bytes of a request that no message can hold; else 0.
  int64_t too_large = 0;
};

// A Failure, or a tuple of output, log_sum_exp, scores, present_key and
// present_value, (data type, shape, memory) or None each, and of the times.
// `request_bytes`: those of the request's tensors.
nanobind::object OutcomeOf(absl::StatusOr<ComputeResult> result,
                           int64_t request_bytes);

// A Failure, or the message as bytes.
nanobind::object OutcomeOf(const absl::Status& status,
                           const grpc::ByteBuffer& message);

// A Failure, or the message as a Memory.
nanobind::object AnswerOf(const absl::Status& status,
                          const grpc::ByteBuffer& message);

}  // namespace attention::python

#endif  // ATTENTION_CLIENT_PYTHON_NATIVE_OUTCOME_H_
