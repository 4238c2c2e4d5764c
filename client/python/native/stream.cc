#include "client/python/native/stream.h"

#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "attention/internal/shared_queue.h"
#include "client/python/native/gil.h"
#include "client/python/native/lent_message.h"
#include "client/python/native/outcome.h"
#include "client/python/native/signal_handlers.h"
#include "client/python/native/started_call.h"

namespace attention::python {

namespace nb = nanobind;

namespace {

// How often signals are looked after.
constexpr absl::Duration kAskEvery = absl::Milliseconds(50);
// How long a server may take to end a stream that is closed.
constexpr absl::Duration kGoodbye = absl::Milliseconds(100);

}  // namespace

struct Stream::State {
  State(std::shared_ptr<Server> of, const std::string& method, bool waits)
      : server(std::move(of)),
        stream(std::in_place, server->connection, method,
               waits ? queue.emplace() : internal::SharedQueue()) {}
  ~State() {
    if (!queue) return;  // Close() has ended it.
    bool done = false;
    stream->Close(
        server->closing.get_token(),
        [&done](const absl::Status&, grpc::ByteBuffer&) { done = true; });
    Wait(done, absl::Now() + kGoodbye, nullptr);
    stream.reset();
    queue->Shutdown();
    void* tag;
    bool ok;
    while (queue->Next(&tag, &ok)) {
    }
  }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  // Takes events until `done`. True if that took longer than until `deadline`.
  bool Wait(const bool& done, absl::Time deadline,
            const std::function<bool()>& interrupted) {
    bool late = false;
    absl::Time ask_at =
        interrupted ? absl::Now() + kAskEvery : absl::InfiniteFuture();
    while (!done) {
      const absl::Time wake =
          std::min(ask_at, late ? absl::InfiniteFuture() : deadline);
      void* tag;
      bool ok;
      if (queue->AsyncNext(&tag, &ok, absl::ToChronoTime(wake)) ==
          grpc::CompletionQueue::GOT_EVENT) {
        static_cast<internal::QueueEvent*>(tag)->Run(ok);
      }
      const absl::Time now = absl::Now();
      if (!done && !late && now >= deadline) {
        late = true;
        stream->Cancel();
      }
      if (now < ask_at) continue;
      ask_at = now + kAskEvery;
      if (interrupted() && !done) stream->Cancel();
    }
    return late;
  }

  const std::shared_ptr<Server> server;
  // A queue of its own: the thread that waits then does the connection's work
  // itself. Absent where none waits.
  std::optional<grpc::CompletionQueue> queue;
  std::optional<ExchangeStream> stream;
  // Keeps what must not be destroyed.
  std::shared_ptr<State> itself;
};

Stream::Stream(std::shared_ptr<Server> server, const std::string& method,
               bool waits)
    : process_(getpid()),
      state_(std::make_shared<State>(std::move(server), method, waits)) {}

Stream::~Stream() {
  if (getpid() != process_) {
    // Without gRPC's threads its end could wait for ever: it has none.
    state_->itself = state_;
    return;
  }
  const WithoutGil without_gil;
  if (!state_->queue && state_.use_count() == 1) {
    State& state = *state_;
    state.stream->Close(
        state.server->closing.get_token(),
        // Keeps it until then.
        [state = state_](const absl::Status&, grpc::ByteBuffer&) {});
  }
  state_.reset();
}

nb::object Stream::Exchange(const nb::list& pieces, double limit) {
  LentMessage lent(pieces);
  SignalHandlers signals;
  absl::Status status;
  grpc::ByteBuffer answer;
  {
    const WithoutGil without_gil;
    const absl::Time deadline = absl::Now() + absl::Seconds(limit);
    bool done = false;
    state_->stream->Exchange(
        lent.message(), state_->server->closing.get_token(),
        [&](const absl::Status& why, grpc::ByteBuffer& got) {
          status = why;
          answer.Swap(&got);
          done = true;
        });
    const bool late = state_->Wait(done, deadline, signals.Check());
    // An answer does not count that came after Wait() had cancelled the stream.
    if (late) status = absl::DeadlineExceededError("Deadline Exceeded");
    lent.lease().Wait();
  }
  signals.Raise();
  return AnswerOf(status, answer);
}

std::stop_source Stream::StartExchange(const nb::list& pieces,
                                       nb::object done) {
  auto started = std::make_unique<StartedCall<LentMessage>>(
      std::move(done), state_->server->closing.get_token());
  started->lent.emplace(pieces);
  std::stop_source stop = started->stop;
  const WithoutGil without_gil;
  grpc::ByteBuffer message;
  message.Swap(&started->lent->message());
  auto* const call = started.release();
  state_->stream->Exchange(
      message, stop.get_token(),
      // Keeps the stream until it is called.
      [call, state = state_](const absl::Status& status,
                             grpc::ByteBuffer& answer) {
        const auto ended = std::make_shared<grpc::ByteBuffer>();
        ended->Swap(&answer);
        internal::Lease lease = std::move(call->lent->lease());
        std::move(lease).WhenReturned([call, status, ended] {
          End(call, [&] { return AnswerOf(status, *ended); });
        });
      });
  return stop;
}

void DefineStream(nb::module_& module) {
  nb::class_<Stream>(module, "Stream")
      .def("exchange", &Stream::Exchange)
      .def("start_exchange", &Stream::StartExchange);
}

}  // namespace attention::python
