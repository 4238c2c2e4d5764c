// Decoded requests as what the kernel takes. Checks what the kernel cannot see:
// that a payload is there and has the size of its shape, or lies in memory that
// the caller shares, and that numbers of enums are known. All else is
// PlanAttention's to check.
#ifndef ATTENTION_SERVER_CONVERT_H_
#define ATTENTION_SERVER_CONVERT_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/buffer_pool.h"
#include "kernel/attention.h"
#include "server/shared_memory/region_table.h"
#include "server/shared_memory/shared_place.h"
#include "wire/compute_request.h"
#include "wire/memory_meter.h"
#include "wire/slice_reader.h"

namespace attention::server {

// A piece of a payload, of some MiB at the most, to be copied out of the
// message or out of shared memory.
struct PayloadCopy {
  wire::SliceReader from = {};
  const std::byte* shared = nullptr;  // in place of `from`, if not null
  std::byte* to = nullptr;
  // To be written; each is a byte of the payload, or a bit of it.
  size_t bytes = 0;
  bool unpacks_bits = false;

  void Run();
};

// Where tensors of the answer go instead of into the message; those without a
// region go there.
struct OutputPlaces {
  SharedPlace output;
  SharedPlace log_sum_exp;
  SharedPlace scores;
  SharedPlace present_key;
  SharedPlace present_value;
};

// Inputs and options of one call with the memory they refer to. Movable, not
// copyable.
struct KernelRequest {
  AttentionInputs inputs;
  AttentionOptions options;
  // Whether `query` came in float_values, and so the answer shall.
  bool float_values = false;

  std::vector<Buffer> payloads;
  // Of tensors that are read where they are shared.
  std::vector<RegionPtr> regions;
  // Room for the tensors is checked once these are known: CheckOutputs().
  OutputPlaces outputs;
  // Memory of all of them, of the lists and of the planner's copies of these,
  // in bytes.
  int64_t bytes = 0;
  // What must be run, in any order and on any threads, before the tensors hold
  // their elements. Needs the slices.
  std::vector<PayloadCopy> copies;
  std::vector<int64_t> valid_lengths;
  std::vector<int64_t> query_starts;
  std::vector<int64_t> key_starts;
};

// Takes memory of `pool` for each payload, asking `meter` first, and lists the
// copies into it; the slices that `fields` refers to are needed until these
// have been run. What the planner will copy is taken from the meter too. Shared
// tensors are left where they are, but for masks of BOOL: what is checked of
// them must still be so when they are used. Masks of BITS become BOOL. Throws
// std::bad_alloc.
//
// Errors: InvalidArgument with ErrorField(), found before anything is copied of
// the tensor in question; NotFound for memory that is not in `regions`; what
// the meter gives.
absl::StatusOr<KernelRequest> ToKernel(wire::RequestFields fields,
                                       BufferPool& pool,
                                       wire::MemoryMeter& meter,
                                       const CallerRegions& regions = {});

// Whether the tensors of the answer have room where they shall go. Errors:
// InvalidArgument with ErrorField().
absl::Status CheckOutputs(const OutputPlaces& outputs,
                          const AttentionPlan& plan);

// The same where the server keeps keys and values: `fields` has their types and
// shapes, and no elements of them; nothing is shared.
absl::StatusOr<KernelRequest> ToKernelWithoutKeys(wire::RequestFields fields,
                                                  BufferPool& pool,
                                                  wire::MemoryMeter& meter);

// The same as ToKernel() of a stream's header: keys, values and mask have type
// and shape, and must have no elements; nothing is shared.
absl::StatusOr<KernelRequest> ToStreamedKernel(wire::RequestFields fields,
                                               BufferPool& pool,
                                               wire::MemoryMeter& meter);

// Type and shape of a tensor, to which its elements agree. Errors as above,
// FIELD being `field`.
absl::StatusOr<TensorSpec> CheckTensor(absl::string_view field,
                                       const wire::TensorFields& tensor);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_CONVERT_H_
