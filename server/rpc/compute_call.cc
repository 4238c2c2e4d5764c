#include "server/rpc/compute_call.h"

#include <atomic>
#include <chrono>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "kernel/attention.h"
#include "server/convert.h"
#include "server/logging.h"
#include "server/status.h"
#include "server/wire/request_decoder.h"
#include "server/wire/response_encoder.h"

namespace attention::server {
namespace {

// Calls with no more bytes and work than this take well under a millisecond and
// are answered on gRPC's thread: handing them over would cost more.
constexpr int64_t kInlineBytes = int64_t{64} << 10;
constexpr double kInlineFlops = 4e6;

class ComputeCall final : public grpc::ServerUnaryReactor {
 public:
  ComputeCall(const CallEnvironment& environment,
              grpc::CallbackServerContext* context,
              const grpc::ByteBuffer* request, grpc::ByteBuffer* response)
      : env_(environment),
        context_(context),
        request_bytes_(static_cast<int64_t>(request->Length())),
        // gRPC's own object, not const: emptied as soon as it is read, so that
        // tensors and message need not stay in memory together.
        request_(const_cast<grpc::ByteBuffer*>(request)),
        response_(response) {}

  void Start() {
    if (absl::Status status = Admit(); !status.ok()) return End(status);
    if (request_bytes_ <= kInlineBytes) return Prepare(/*on_worker=*/false);
    env_.workers.Submit([this] { Prepare(/*on_worker=*/true); });
  }

 private:
  void OnCancel() override {
    cancelled_.store(true, std::memory_order_relaxed);
  }

  void OnDone() override {
    ended_.load(std::memory_order_acquire);
    if (admitted_bytes_) env_.admission.Leave(*admitted_bytes_);
    delete this;
  }

  absl::Status Admit() {
    if (request_bytes_ > env_.options.max_request_bytes) {
      return absl::ResourceExhaustedError(
          absl::StrCat("the request has ", request_bytes_,
                       " bytes, more than the ", env_.options.max_request_bytes,
                       " that this server takes (max_request_bytes)"));
    }
    absl::Status status = env_.admission.Enter(request_bytes_);
    if (status.ok()) admitted_bytes_ = request_bytes_;
    return status;
  }

  void Prepare(bool on_worker) {
    const absl::Time start = absl::Now();
    queued_ = start - arrival_;
    absl::Status status = Plan();
    const absl::Time end = absl::Now();
    decoded_ = end - start;
    if (!status.ok()) return End(status);
    const bool small =
        plan_->flops <= kInlineFlops && encoder_->bytes() <= kInlineBytes;
    if (on_worker || small) return Compute();
    env_.workers.Submit([this, end] {
      queued_ += absl::Now() - end;
      Compute();
    });
  }

  // Everything that can be wrong with a request is found here, before memory
  // for the answer is taken.
  absl::Status Plan() {
    if (cancelled_) return Abandoned();
    std::vector<grpc::Slice> slices;
    if (!request_->Dump(&slices).ok()) {
      return absl::InternalError("the request's bytes are not there");
    }
    auto fields = wire::DecodeRequest(slices, env_.buffers);
    if (!fields.ok()) return fields.status();
    auto kernel_request = ToKernel(*std::move(fields), env_.buffers);
    if (!kernel_request.ok()) return kernel_request.status();
    kernel_request_ = *std::move(kernel_request);
    request_->Clear();
    auto plan = PlanAttention(kernel_request_.inputs, kernel_request_.options);
    if (!plan.ok()) return plan.status();
    plan_ = *std::move(plan);
    encoder_.emplace(*plan_, kernel_request_.float_values);
    return AdmitAnswer();
  }

  absl::Status AdmitAnswer() {
    const int64_t bytes = encoder_->bytes();
    if (bytes > env_.options.max_response_bytes) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "the answer would have ", bytes, " bytes, more than the ",
          env_.options.max_response_bytes,
          " that this server sends (max_response_bytes)"));
    }
    absl::Status status = env_.admission.Grow(bytes);
    if (status.ok()) *admitted_bytes_ += bytes;
    return status;
  }

  void Compute() {
    if (cancelled_) return End(Abandoned());
    const absl::Time start = absl::Now();
    const AttentionOutputs outputs = encoder_->Allocate(env_.buffers);
    const absl::Time allocated = absl::Now();
    absl::Status status =
        RunAttention(*plan_, outputs, env_.compute, &cancelled_);
    const absl::Time computed = absl::Now();
    computed_ = computed - allocated;
    if (absl::IsCancelled(status)) status = Abandoned();
    if (!status.ok()) return End(status);
    // For the next request, while this one's answer is being sent.
    plan_->problem.reset();
    kernel_request_.payloads.clear();
    encoded_ = (allocated - start) + (absl::Now() - computed);
    *response_ = encoder_->Finish(Timing());
    End(absl::OkStatus());
  }

  v1::Timing Timing() const {
    v1::Timing timing;
    timing.set_queue_us(absl::ToInt64Microseconds(queued_));
    timing.set_decode_us(absl::ToInt64Microseconds(decoded_));
    timing.set_compute_us(absl::ToInt64Microseconds(computed_));
    timing.set_encode_us(absl::ToInt64Microseconds(encoded_));
    return timing;
  }

  absl::Status Abandoned() const {
    if (std::chrono::system_clock::now() >= context_->deadline()) {
      return absl::DeadlineExceededError(
          "the deadline passed; the work was abandoned");
    }
    return absl::CancelledError(
        "the call was cancelled; the work was abandoned");
  }

  // Nothing of this may be touched afterwards: gRPC may have deleted it.
  void End(const absl::Status& status) {
    const grpc::Status result = ToGrpcStatus(status);
    Log(result);
    Count(result);
    ended_.store(true, std::memory_order_release);
    Finish(result);
  }

  void Count(const grpc::Status& status) const {
    env_.metrics.CallEnded(
        {.method = "ComputeAttention",
         .code = status.error_code(),
         .request_bytes = request_bytes_,
         .response_bytes =
             status.ok() ? static_cast<int64_t>(response_->Length()) : 0,
         .decode = decoded_,
         .queue = queued_,
         .compute = computed_,
         .encode = encoded_,
         .total = absl::Now() - arrival_});
  }

  void Log(const grpc::Status& status) const {
    const auto level = status.ok() ? spdlog::level::debug
                       : status.error_code() == grpc::StatusCode::INTERNAL
                           ? spdlog::level::err
                           : spdlog::level::info;
    if (!env_.log.should_log(level)) return;
    std::string line = absl::StrCat(
        "event=call rpc=ComputeAttention code=", CodeName(status.error_code()),
        " request_bytes=", request_bytes_, " response_bytes=",
        status.ok() ? static_cast<int64_t>(response_->Length()) : 0);
    if (encoder_) {
      const AttentionInputs& inputs = kernel_request_.inputs;
      absl::StrAppend(&line, " query=", Quoted(ToString(inputs.query.shape)),
                      " key=", Quoted(ToString(inputs.key.shape)),
                      " value=", Quoted(ToString(inputs.value.shape)));
    }
    absl::StrAppend(&line, " queue_us=", absl::ToInt64Microseconds(queued_),
                    " decode_us=", absl::ToInt64Microseconds(decoded_),
                    " compute_us=", absl::ToInt64Microseconds(computed_),
                    " encode_us=", absl::ToInt64Microseconds(encoded_));
    if (!status.ok()) {
      absl::StrAppend(&line, " error=", Quoted(status.error_message()));
    }
    env_.log.log(level, line);
  }

  const CallEnvironment& env_;
  grpc::CallbackServerContext* const context_;
  const absl::Time arrival_ = absl::Now();
  const int64_t request_bytes_;
  grpc::ByteBuffer* const request_;
  grpc::ByteBuffer* const response_;

  std::atomic<bool> cancelled_{false};
  // Orders what the thread that ended the call wrote before OnDone().
  std::atomic<bool> ended_{false};
  // What Leave() must give back; nothing if the call was refused.
  std::optional<int64_t> admitted_bytes_;
  KernelRequest kernel_request_;
  std::optional<AttentionPlan> plan_;
  std::optional<wire::ResponseEncoder> encoder_;
  absl::Duration queued_, decoded_, computed_, encoded_;
};

}  // namespace

grpc::ServerUnaryReactor* StartComputeCall(const CallEnvironment& environment,
                                           grpc::CallbackServerContext* context,
                                           const grpc::ByteBuffer* request,
                                           grpc::ByteBuffer* response) {
  auto* call = new ComputeCall(environment, context, request, response);
  call->Start();
  return call;
}

}  // namespace attention::server
