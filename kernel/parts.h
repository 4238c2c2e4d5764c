// Partials over several parts of the keys, as one job: what a server that holds
// a shard of a sequence computes.
#ifndef ATTENTION_KERNEL_PARTS_H_
#define ATTENTION_KERNEL_PARTS_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/executor.h"
#include "kernel/accumulator.h"
#include "kernel/attention.h"
#include "kernel/key_values.h"
#include "kernel/tensor_view.h"

namespace attention {

// Part of the keys of a plan's only sequence, and where the plan has a mask,
// the mask's columns of them (AddedKeys::mask).
struct KeyPart {
  KeyValueView view;
  std::optional<ConstTensorView> mask;
};

// Use: Create(), then MakeJob() once; when the job has ended well, partials().
// Thread-compatible.
class PartsOfKeys {
 public:
  // `plan` was made without the data of keys, values and mask, and has one
  // sequence. Its query's data and what the parts refer to must live until the
  // job has ended. `threads`: that the job may use.
  //
  // Errors: those of Accumulator::CreatePart() and Accumulator::Add(), of the
  // first part that has one. Throws std::bad_alloc.
  static absl::StatusOr<std::unique_ptr<PartsOfKeys>> Create(
      const AttentionPlan& plan, absl::Span<const KeyPart> parts, int threads);

  // The most memory, in bytes, that `parts` parts take beside partials() and
  // what the plan refers to. Saturates at the largest int64_t.
  static int64_t Bytes(const AttentionPlan& plan, int64_t parts, int threads);
  // That of one partial; likewise.
  static int64_t PartialBytes(const AttentionPlan& plan);

  ~PartsOfKeys();
  PartsOfKeys(const PartsOfKeys&) = delete;
  PartsOfKeys& operator=(const PartsOfKeys&) = delete;

  // The computation, as MakeAttentionJob(). This object must live until `done`
  // is called. Throws std::bad_alloc.
  std::unique_ptr<Executor::Job> MakeJob(
      absl::AnyInvocable<void(absl::Status)> done);

  // In the order of the parts: as Accumulator::Export() gives them, one for
  // each part that is a subtree of the tree of blocks.
  const std::vector<Partial>& partials() const { return partials_; }

 private:
  class PartsJob;
  // One part while it is computed.
  struct Part;

  PartsOfKeys(int64_t at_once, int threads);

  // Parts that are computed side by side: enough to keep the threads busy.
  static int64_t AtOnce(const AttentionPlan& plan, int64_t parts, int threads);

  const int64_t at_once_;
  const int threads_;
  std::vector<Part> parts_;
  std::vector<Partial> partials_;
};

}  // namespace attention

#endif  // ATTENTION_KERNEL_PARTS_H_
