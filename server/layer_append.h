// The tokens of a message on their way into a layer of a session.
#ifndef ATTENTION_SERVER_LAYER_APPEND_H_
#define ATTENTION_SERVER_LAYER_APPEND_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/buffer_pool.h"
#include "grpcpp/support/slice.h"
#include "sessions/session.h"
#include "sessions/session_writer.h"
#include "wire/memory_meter.h"
#include "wire/session_request.h"
#include "wire/slice_reader.h"

namespace attention::server {

// One append, from the fields of its message to its end:
//
//   LayerAppend append(std::move(fields));
//   absl::Status status = append.Check(session->config().format);
//   if (status.ok()) status = append.Begin(session, meter);
//   if (!status.ok()) return status;
//   for (int64_t i = 0; i < append.tasks(); ++i) append.Run(i);
//   absl::StatusOr<int64_t> length = append.Publish();
//
// The functions are called in this order, by one thread at a time but for
// Run(). The layer takes no other append from Begin() on until Publish(),
// GiveUp() or the destructor. Errors are those that a client gets.
class LayerAppend {
 public:
  // `fields` refers to the slices of the message, which are needed until the
  // last Run() has returned.
  explicit LayerAppend(wire::AppendFields fields);

  // Whether these are tokens of such a session.
  absl::Status Check(const PageFormat& format);

  // Makes room for them, and for the list of tasks, which is taken from
  // `meter`. Throws std::bad_alloc.
  absl::Status Begin(const std::shared_ptr<Session>& session,
                     wire::MemoryMeter& meter);

  // The layer's length with these tokens; after Begin().
  int64_t end() const { return append_->end(); }

  // Copies a part of some hundred KiB; each part once, on any threads.
  int64_t tasks() const { return static_cast<int64_t>(tasks_.size()); }
  void Run(int64_t number);

  // For who has run all tasks: whether an append that was done before had the
  // same tokens; and the layer with these tokens, which need not be published.
  absl::Status Verify() const;
  LayerSnapshot Written() const;

  // Shows the tokens to readers. Returns the layer's length with them.
  absl::StatusOr<int64_t> Publish();

  // Leaves nothing of it behind.
  void GiveUp() { append_.reset(); }

 private:
  // Keys or values as they arrived.
  struct Arrived {
    explicit Arrived(KeyOrValue operand) { rows.operand = operand; }

    ArrivingRows rows;
    wire::SliceReader bytes;
    Buffer floats;  // what `bytes` refers to, where it is not the message
    grpc::Slice floats_slice;
  };
  struct Task {
    const Arrived* arrived;
    RowRange range;
  };

  static absl::StatusOr<int64_t> Take(absl::string_view field,
                                      wire::TensorFields& tensor, int64_t heads,
                                      int64_t size, Arrived& arrived);
  absl::Status AddTasks(const Arrived& arrived, wire::MemoryMeter& meter);

  wire::AppendFields fields_;
  int64_t tokens_ = 0;
  Arrived key_{KeyOrValue::kKey};
  Arrived value_{KeyOrValue::kValue};
  std::optional<Append> append_;
  LayerSnapshot held_;  // of an append that was done before
  std::vector<Task> tasks_;
  std::atomic<bool> differs_{false};
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_LAYER_APPEND_H_
