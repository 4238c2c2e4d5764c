// A call that computes attention over the tensors of one message: from its
// bytes through decoding, planning and computing to the answer.
#ifndef ATTENTION_SERVER_RPC_TENSOR_CALL_H_
#define ATTENTION_SERVER_RPC_TENSOR_CALL_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "base/executor.h"
#include "grpcpp/support/slice.h"
#include "kernel/attention.h"
#include "server/convert.h"
#include "server/response_encoder.h"
#include "server/rpc/one_message_call.h"
#include "server/shard_attend.h"
#include "wire/memory_meter.h"
#include "wire/message_writer.h"

namespace attention::server {

class TensorCall : public OneMessageCall {
 protected:
  using OneMessageCall::OneMessageCall;

  // What the derived class does. Errors are the call's; what is thrown for want
  // of memory too.

  // The message's tensors and options. `meter` has what was taken with the
  // message.
  virtual absl::StatusOr<KernelRequest> Decode(
      absl::Span<const grpc::Slice> slices, wire::MemoryMeter& meter) = 0;
  // Everything that can be wrong with a request is found here, before memory
  // for the answer is taken. The plan's outputs are the answer's tensors,
  // unless it sets shard_: then the plan is that one's, and partials are the
  // answer.
  virtual absl::StatusOr<AttentionPlan> Plan(const KernelRequest& request);
  // The answer with the computed tensors, unless shard_ is set.
  virtual absl::StatusOr<wire::MessageWriter> Encode(ResponseEncoder& encoder);
  // Fields of the answer beside its tensors and timing.
  virtual void AddFields(wire::MessageWriter& /*answer*/) {}
  // Whether decoding takes little if the message is small.
  virtual bool DecodesLittle() const { return true; }
  // The message can not be answered.
  virtual void Fail(const absl::Status& status) { End(status); }

  void Received() final;

  // Lets go of all that belongs to the message, so that another may come.
  void ForgetMessage();

  std::unique_ptr<ShardAttend> shard_;

 private:
  class DecodeJob;

  int64_t BytesToCopy() const;
  int64_t NextDecodeStage();
  absl::Status FindTensors();
  absl::Status Prepare();
  int64_t WrittenBytes() const;
  absl::Status HoldMemory();
  std::unique_ptr<Executor::Job> MakeJob(
      const AttentionOutputs& outputs, int threads,
      absl::AnyInvocable<void(absl::Status)> done);
  absl::StatusOr<wire::MessageWriter> EncodeAnswer();
  void Decoded(JobEnd end);
  void Planned(bool inline_allowed);
  void Done(absl::Status status);
  void FinishJob(const Executor::Job& job);
  void Computed(absl::Status status);

  absl::Time decoded_;
  int decode_stage_ = 0;
  // Of the first stage, which was on gRPC's thread: to be run by a job.
  int64_t handed_over_copies_ = 0;
  absl::Status status_;
  std::vector<grpc::Slice> slices_;
  KernelRequest kernel_request_;
  std::optional<AttentionPlan> plan_;
  std::optional<ResponseEncoder> encoder_;  // without shard_
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_RPC_TENSOR_CALL_H_
