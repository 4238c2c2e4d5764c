// One item of a Step: an append to a layer of a session, queries over it, or
// both.
#ifndef ATTENTION_SERVER_STEP_ITEM_H_
#define ATTENTION_SERVER_STEP_ITEM_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "base/buffer_pool.h"
#include "base/executor.h"
#include "kernel/attention.h"
#include "kernel/key_values.h"
#include "server/convert.h"
#include "server/layer_append.h"
#include "server/response_encoder.h"
#include "sessions/session.h"
#include "wire/memory_meter.h"
#include "wire/message_writer.h"
#include "wire/session_request.h"

namespace attention::server {

// The functions are called in the order in which they stand here, by one thread
// at a time but for Run(); those from Begin() on only while status() is OK.
// Other errors than those that they return become the item's status, and leave
// nothing of it behind. May throw std::bad_alloc where it says so.
class StepItem {
 public:
  // `fields` refers to the slices of the message, which are needed until the
  // last Run() has returned.
  explicit StepItem(wire::StepFields fields);
  StepItem(const StepItem&) = delete;
  StepItem& operator=(const StepItem&) = delete;

  const std::string& id() const { return where_.id; }
  uint64_t incarnation() const { return where_.incarnation; }
  int64_t layer() const { return where_.layer; }
  bool appends() const { return append_.has_value(); }
  bool attends() const { return queries_.has_value(); }

  const absl::Status& status() const { return status_; }
  void Fail(const absl::Status& status);

  // Looks at everything but what stands in masks, and makes room for the
  // tokens. Throws.
  void Begin(const std::shared_ptr<Session>& session, BufferPool& pool,
             wire::MemoryMeter& meter);

  // Copies a part of what the message has, of at most some MiB; each part once,
  // on any threads.
  int64_t copies() const;
  void Run(int64_t copy);

  // Finds all that can still be wrong. The message is needed no more. Throws.
  void Prepare(const AttentionLimits& limits);

  // The plan; null where nothing is attended to.
  const AttentionPlan* plan() const { return plan_ ? &*plan_ : nullptr; }
  // Bytes of its tensors, its answer at the most, and what Allocate() takes.
  int64_t tensor_bytes() const;
  int64_t answer_bytes() const;
  int64_t held_bytes() const;

  // Memory for the answer. Throws.
  void Allocate(BufferPool& pool);

  // The computation, which sets status(); for items with a plan. Throws.
  std::unique_ptr<Executor::Job> MakeJob(int threads);

  // Shows the tokens to all readers: at the very end, so that who fails before
  // has done nothing.
  void Publish();

  // A StepResult, also of an item that has failed. The pages and tensors that
  // it used are let go.
  wire::MessageWriter Result();

 private:
  absl::Status CheckFields() const;
  absl::Status BeginParts(const std::shared_ptr<Session>& session,
                          BufferPool& pool, wire::MemoryMeter& meter);
  absl::Status PrepareParts(const AttentionLimits& limits);
  void LetGo();

  const wire::LayerFields where_;
  absl::Status status_;
  std::optional<LayerAppend> append_;
  std::optional<wire::AttendFields> queries_;
  std::optional<KernelRequest> request_;
  // In use until the item has ended.
  std::shared_ptr<Session> session_;
  // The layer as it is attended to.
  LayerSnapshot keys_;
  KeyValueView view_;
  std::optional<AttentionPlan> plan_;
  std::optional<ResponseEncoder> encoder_;
  AttentionOutputs outputs_;
  int64_t length_ = 0;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_STEP_ITEM_H_
