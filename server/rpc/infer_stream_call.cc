#include "server/rpc/infer_stream_call.h"

#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "inference/inference.pb.h"
#include "server/admission/refusals.h"
#include "server/inference/answer.h"
#include "server/rpc/infer_call.h"
#include "server/status.h"
#include "wire/message_writer.h"

namespace attention::server {
namespace {

using inference::ModelStreamInferResponse;

// One message at a time: it is awaited, worked on as ModelInfer's is, and
// answered before the next one is read. Each counts as a call: for admission,
// in the log and in metrics. Between two messages nothing of them is held.
//
// Whoever has the turn, gRPC that calls back or a job that has ended, has the
// message's state to itself; from StartWrite() on it is gRPC's.
class InferStreamCall final : public InferCall {
 public:
  InferStreamCall(const ComputeEnvironment& environment,
                  const InferenceState& state,
                  grpc::GenericCallbackServerContext* context)
      : InferCall("ModelStreamInfer", environment, state, context) {}

 private:
  void ReadFirst() override { ReadNext(); }
  std::optional<absl::Time> ReadingSince() const override {
    return std::nullopt;  // It has all the time that it likes.
  }

  void ReadNext() {
    {
      const std::lock_guard<std::recursive_mutex> lock(mutex_);
      if (ended_) return;
      writing_ = false;
      record_.BeginAgain();
      record_.answered = true;
      message_bytes_.reset();
    }
    const absl::Status status = ticket_.AwaitNext(Deadline());
    if (!status.ok()) return (void)End(status);
    ReadInto(&request_);
  }

  void OnReadDone(bool ok) override {
    HandOver();
    if (ended_) return;
    Guarded([&] {
      if (!ok) {
        // A read that fails since the stream broke may come before OnCancel().
        const bool broken = cancelled_ || context_->IsCancelled();
        return (void)End(broken ? Abandoned() : absl::OkStatus());
      }
      const absl::Status status = Came();
      if (!status.ok()) return (void)End(status);
      Received();
    });
  }

  absl::Status Came() {
    const auto bytes = static_cast<int64_t>(request_.Length());
    {
      const std::lock_guard<std::recursive_mutex> lock(mutex_);
      record_.BeginAgain();
      record_.request_bytes = bytes;
      message_bytes_ = 0;  // traffic_ is told here.
    }
    received_ = record_.arrival;
    traffic_.Next(bytes, std::exchange(answer_bytes_, 0),
                  env_.options.max_request_bytes);
    if (bytes > env_.options.max_request_bytes) {
      return RequestTooLarge(bytes, env_.options.max_request_bytes);
    }
    return ticket_.ReadDone(bytes);
  }

  absl::StatusOr<wire::MessageWriter> Encode(
      ResponseEncoder& encoder) override {
    auto answer = InferCall::Encode(encoder);
    if (!answer.ok()) return answer;
    AddFinal(*answer);
    wire::MessageWriter message;
    message.Message(ModelStreamInferResponse::kInferResponseFieldNumber,
                    *std::move(answer));
    return message;
  }

  void Answer(const grpc::ByteBuffer& response) override {
    Send(response, absl::OkStatus());
  }

  // The message alone has failed, unless nobody waits for an answer any more.
  void Fail(const absl::Status& status) override {
    if (absl::IsCancelled(status) || absl::IsDeadlineExceeded(status)) {
      return (void)End(status);
    }
    const grpc::Status told = ToGrpcStatus(status);
    wire::MessageWriter message;
    message.Copy(
        ModelStreamInferResponse::kErrorMessageFieldNumber,
        absl::StrCat(CodeName(told.error_code()), ": ", told.error_message()));
    wire::MessageWriter answer = StartInferAnswer(id());
    AddFinal(answer);
    message.Message(ModelStreamInferResponse::kInferResponseFieldNumber,
                    std::move(answer));
    Send(std::move(message).Finish(), status);
  }

  // `status` is the message's, for log and metrics: a copy, for what it was is
  // forgotten here.
  // NOLINTNEXTLINE(performance-unnecessary-value-param)
  void Send(const grpc::ByteBuffer& response, absl::Status status) {
    ForgetInference();
    static_cast<void>(ticket_.Hold(MemoryKind::kRequest, 0));
    static_cast<void>(ticket_.Hold(MemoryKind::kTensors, 0));
    static_cast<void>(ticket_.Hold(MemoryKind::kScratch, 0));
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    if (ended_) return;
    response_ = response;
    const auto bytes = static_cast<int64_t>(response_.Length());
    record_.response_bytes = answer_bytes_ = bytes;
    if (status.ok()) {
      env_.costs.RecordCall(
          record_.request_bytes,
          record_.predicted_seconds +
              env_.costs.TransferSeconds(record_.request_bytes + bytes));
    } else {
      static_cast<void>(ticket_.Hold(MemoryKind::kAnswer, bytes));
    }
    ticket_.Sending(bytes);
    record_.End(status, env_.log, env_.log_limiter, env_.metrics);
    record_.answered = true;
    writing_ = true;
    HandOver();
    StartWrite(&response_);
  }

  void OnWriteDone(bool ok) override {
    HandOver();
    Guarded([&] {
      if (!ok) return (void)End(Abandoned());
      response_.Clear();
      ReadNext();
    });
  }

  // The client has no more to ask: nothing but the status is on its way.
  void TellSuccess() override { ticket_.Failing(); }
  void SendAnswer() override { SendError(grpc::Status::OK); }
  void SendError(const grpc::Status& status) override {
    if (writing_ || answer_bytes_ <= kLargeAnswer) return Finish(status);
    Hold();
    FinishOnceTaken(status);
  }

  int64_t answer_bytes_ = 0;  // of the last answer
};

}  // namespace

grpc::ServerGenericBidiReactor* StartInferStreamCall(
    const ComputeEnvironment& environment, const InferenceState& state,
    grpc::GenericCallbackServerContext* context) {
  auto* call = new InferStreamCall(environment, state, context);
  call->Start();
  return call;
}

}  // namespace attention::server
