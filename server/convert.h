// Decoded requests as what the kernel takes. Checks what the kernel cannot see:
// that a payload is there and has the size of its shape, and that numbers of
// enums are known. All else is PlanAttention's to check.
#ifndef ATTENTION_SERVER_CONVERT_H_
#define ATTENTION_SERVER_CONVERT_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "kernel/attention.h"
#include "base/buffer_pool.h"
#include "server/wire/request_decoder.h"

namespace attention::server {

// Inputs and options of one call with the memory they refer to. Movable, not
// copyable.
struct KernelRequest {
  AttentionInputs inputs;
  AttentionOptions options;
  // Whether `query` came in float_values, and so the answer shall.
  bool float_values = false;

  std::vector<Buffer> payloads;
  std::vector<int64_t> valid_lengths;
  std::vector<int64_t> query_starts;
  std::vector<int64_t> key_starts;
};

// Copies each payload, once, into memory of `pool`; the slices that `fields`
// refers to are not needed afterwards.
//
// Errors: InvalidArgument with ErrorField(); found before anything is copied of
// the tensor in question.
absl::StatusOr<KernelRequest> ToKernel(wire::RequestFields fields,
                                       BufferPool& pool);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_CONVERT_H_
