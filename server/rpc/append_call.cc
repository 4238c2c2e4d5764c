#include "server/rpc/append_call.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/types/span.h"
#include "attention/v1/session.pb.h"
#include "base/executor.h"
#include "base/field_error.h"
#include "server/convert.h"
#include "server/rpc/one_message_call.h"
#include "server/rpc/raw_call.h"
#include "server/rpc/session_service.h"
#include "sessions/session_writer.h"
#include "wire/memory_meter.h"
#include "wire/session_request.h"
#include "wire/slice_reader.h"

namespace attention::server {
namespace {

constexpr size_t kMaxRequestIdBytes = 64;
// A task copies no more, which takes some tenths of a millisecond; but for one
// token of one head.
constexpr int64_t kTaskBytes = int64_t{1} << 20;

// Keys or values as they arrived.
struct Arrived {
  explicit Arrived(KeyOrValue operand) { rows.operand = operand; }

  ArrivingRows rows;
  wire::SliceReader bytes;
  Buffer floats;  // what `bytes` refers to, where it is not the message
  grpc::Slice floats_slice;
};

class AppendCall final : public OneMessageCall {
 public:
  AppendCall(const ComputeEnvironment& environment, SessionStore& store,
             grpc::GenericCallbackServerContext* context)
      : OneMessageCall("AppendKeyValues", environment, context),
        store_(store) {}

 private:
  struct Task {
    const Arrived* arrived;
    RowRange range;
  };

  class CopyJob final : public Executor::Job {
   public:
    explicit CopyJob(AppendCall& call) : call_(call) {}
    int64_t NextStage() override { return call_.NextStage(); }
    bool RunTask(int64_t task, const Turn& /*turn*/) override {
      call_.Run(call_.tasks_[task]);
      return true;
    }
    void Done(JobEnd end) override { call_.Copied(end); }

   private:
    AppendCall& call_;
  };

  void Received() override {
    if (record_.request_bytes <= kInlineBytes) {
      const int64_t tasks = NextStage();
      for (int64_t i = 0; i < tasks; ++i) Run(tasks_[i]);
      return Publish();
    }
    Submit(JobSlot::kCopy, std::make_unique<CopyJob>(*this),
           env_.costs.TransferSeconds(record_.request_bytes));
  }

  // The tasks; then 0.
  int64_t NextStage() {
    if (std::exchange(begun_, true)) return 0;
    const absl::Time start = absl::Now();
    Note([&](CallRecord& record) { record.queue = start - received_; });
    try {
      status_ = Begin();
    } catch (const std::bad_alloc&) {
      status_ = OutOfMemory();
    }
    decode_started_ = start;
    return status_.ok() ? static_cast<int64_t>(tasks_.size()) : 0;
  }

  absl::Status Begin() {
    if (cancelled_ || !request_.Dump(&slices_).ok()) return Abandoned();
    // As many bytes as the message has were taken with it.
    wire::MemoryMeter meter(record_.request_bytes, [this](int64_t bytes) {
      return ticket_.Hold(MemoryKind::kTensors, bytes);
    });
    auto fields = wire::DecodeAppendRequest(slices_, env_.buffers, meter);
    if (!fields.ok()) return fields.status();
    const wire::LayerFields& where = fields->where;
    const auto session =
        store_.Use(record_.tenant->name, where.id, absl::Now());
    if (!session.ok()) return SessionError(where.id, session.status());
    Session::AppendRequest request;
    absl::Status status = Check((*session)->config().format, *fields, &request);
    if (status.ok()) {
      status =
          ticket_.Expect(env_.costs.TransferSeconds(record_.request_bytes), 0);
    }
    if (!status.ok()) return status;
    auto append = (*session)->BeginAppend(where.layer, request);
    if (!append.ok()) return SessionError(where.id, append.status());
    append_.emplace(*std::move(append));
    if (append_->done()) {
      absl::StatusOr<LayerSnapshot> held = (*session)->Read(where.layer);
      if (!held.ok()) return SessionError(where.id, held.status());
      held_ = *std::move(held);
    }
    id_ = where.id;
    AddTasks(key_);
    AddTasks(value_);
    return absl::OkStatus();
  }

  absl::Status Check(const PageFormat& format, wire::AppendFields& fields,
                     Session::AppendRequest* request) {
    if (fields.request_id.size() > kMaxRequestIdBytes) {
      return FieldError(
          "request_id",
          absl::StrCat("wanted at most ", kMaxRequestIdBytes, " bytes"));
    }
    const absl::StatusOr<int64_t> tokens =
        Take("key", fields.key, format.kv_heads, format.key_size, key_);
    if (!tokens.ok()) return tokens.status();
    if (format.value_is_key_prefix) {
      if (fields.value.present) {
        return FieldError("value",
                          "got it, wanted none: values are columns of keys");
      }
    } else {
      const absl::StatusOr<int64_t> values = Take(
          "value", fields.value, format.kv_heads, format.value_size, value_);
      if (!values.ok()) return values.status();
      if (*values != *tokens) {
        return FieldError("value.shape",
                          absl::StrCat("got ", *values, " tokens, wanted ",
                                       *tokens, " as in key"));
      }
    }
    request->tokens = *tokens;
    request->expected_length = fields.where.expected_length;
    request->request_id = fields.request_id;
    return absl::OkStatus();
  }

  // Returns the number of tokens.
  static absl::StatusOr<int64_t> Take(absl::string_view field,
                                      wire::TensorFields& tensor, int64_t heads,
                                      int64_t size, Arrived& arrived) {
    const absl::StatusOr<TensorSpec> spec = CheckTensor(field, tensor);
    if (!spec.ok()) return spec.status();
    if (!IsFloat(spec->type)) {
      return FieldError(
          absl::StrCat(field, ".data_type"),
          absl::StrCat("got ", Name(spec->type), ", wanted a float type"));
    }
    if (spec->shape.size() != 3 || spec->shape[0] != heads ||
        spec->shape[2] != size) {
      return FieldError(absl::StrCat(field, ".shape"),
                        absl::StrCat("got ", ToString(spec->shape),
                                     ", wanted (", heads, ", n, ", size, ")"));
    }
    arrived.rows.type = spec->type;
    arrived.bytes = tensor.data;
    if (tensor.float_values.count > 0) {
      arrived.floats = std::move(tensor.float_values.values);
      arrived.floats_slice = grpc::Slice(
          arrived.floats.data(), tensor.float_values.count * sizeof(float),
          grpc::Slice::STATIC_SLICE);
      arrived.bytes =
          wire::SliceReader(absl::MakeConstSpan(&arrived.floats_slice, 1));
    }
    return spec->shape[1];
  }

  void AddTasks(const Arrived& arrived) {
    const PageFormat& format = append_->format();
    const bool key = arrived.rows.operand == KeyOrValue::kKey;
    if (!key && format.value_is_key_prefix) return;
    const int64_t row_bytes = (key ? format.key_size : format.value_size) *
                              static_cast<int64_t>(SizeOf(arrived.rows.type));
    const int64_t step = std::max<int64_t>(1, kTaskBytes / row_bytes);
    for (int64_t head = 0; head < format.kv_heads; ++head) {
      for (int64_t begin = append_->begin(); begin < append_->end();
           begin += step) {
        tasks_.push_back(
            {&arrived, {head, begin, std::min(begin + step, append_->end())}});
      }
    }
  }

  void Run(const Task& task) {
    const Arrived& arrived = *task.arrived;
    if (!append_->done()) {
      return WriteRows(*append_, arrived.rows, task.range, arrived.bytes);
    }
    if (held_.length() < append_->end() ||
        !HoldsRows(held_, append_->begin(), append_->end(), arrived.rows,
                   task.range, arrived.bytes)) {
      differs_ = true;
    }
  }

  void Copied(JobEnd end) {
    {
      const std::unique_ptr<Executor::Job> job = TakeJob(JobSlot::kCopy);
      Guarded([&] {
        if (end != JobEnd::kDone) return GiveUp(Abandoned());
        Publish();
      });
    }
    JobEnded();
  }

  // The layer is free for others before the client hears of it.
  void GiveUp(const absl::Status& status) {
    append_.reset();
    End(status);
  }

  void Publish() {
    Note([&](CallRecord& record) {
      record.decode = absl::Now() - decode_started_;
    });
    if (!status_.ok()) return GiveUp(status_);
    if (differs_) {
      return GiveUp(SessionError(
          id_, AppendConflict(held_.length(),
                              "request_id: used already for other tokens")));
    }
    const int64_t length = append_->end();
    absl::Status status = std::move(*append_).Publish();
    append_.reset();
    slices_.clear();
    request_.Clear();
    if (!status.ok()) return (void)End(SessionError(id_, status));
    v1::AppendKeyValuesResponse response;
    response.set_length(length);
    Answer(MessageBytes(response));
  }

  SessionStore& store_;
  bool begun_ = false;
  absl::Time decode_started_;
  absl::Status status_;
  std::vector<grpc::Slice> slices_;
  std::string id_;
  Arrived key_{KeyOrValue::kKey};
  Arrived value_{KeyOrValue::kValue};
  std::optional<Append> append_;
  LayerSnapshot held_;  // of an append that was done before
  std::vector<Task> tasks_;
  std::atomic<bool> differs_{false};
};

}  // namespace

grpc::ServerGenericBidiReactor* StartAppendCall(
    const ComputeEnvironment& environment, SessionStore& store,
    grpc::GenericCallbackServerContext* context) {
  auto* call = new AppendCall(environment, store, context);
  call->Start();
  return call;
}

}  // namespace attention::server
