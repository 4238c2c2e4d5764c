#include "client/python/native/core.h"

#include <grpcpp/support/slice.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <optional>
#include <stdexcept>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "attention/internal/unary_call.h"
#include "client/python/native/gil.h"
#include "client/python/native/lent_request.h"
#include "client/python/native/outcome.h"
#include "client/python/native/signal_handlers.h"
#include "client/python/native/started_call.h"

namespace attention::python {

namespace nb = nanobind;

namespace {

// Before a fork gRPC has threads that are not there after it.
pid_t OnlyProcess() {
  static std::atomic<pid_t> first{0};
  const pid_t here = getpid();
  pid_t used = 0;
  if (!first.compare_exchange_strong(used, here) && used != here) {
    throw std::runtime_error(absl::StrCat(
        "a client was made in process ", used,
        ", before a fork, which gRPC does not survive: start processes with "
        "the method spawn or forkserver, or make no client before the fork"));
  }
  return here;
}

internal::UnaryCall UnaryCallOf(const std::string& method,
                                const nb::bytes& message) {
  internal::UnaryCall call;
  call.method = method;
  const grpc::Slice slice(message.c_str(), message.size());
  call.message = grpc::ByteBuffer(&slice, 1);
  call.message_bytes = message.size();
  return call;
}

// A file's, which need not be UTF-8.
std::string NameOf(const nb::bytes& name) {
  return {name.c_str(), name.size()};
}

// Sets one of gRPC's channel arguments, or the option that stands for it.
void SetArgument(const std::string& name, nb::handle value,
                 ClientOptions& options) {
  if (nb::isinstance<nb::str>(value)) {
    options.arguments.SetString(name, nb::cast<std::string>(value));
    return;
  }
  const int number = nb::cast<int>(value);
  if (name == GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH) {
    options.max_receive_bytes = number;
  } else if (name == GRPC_ARG_ENABLE_HTTP_PROXY && number == 0) {
    options.use_proxy = false;
  } else {
    options.arguments.SetInt(name, number);
  }
}

}  // namespace

Core::Core(const std::string& target, const ClientOptions& options)
    : process_(OnlyProcess()) {
  absl::Status status;
  {
    const WithoutGil without_gil;
    absl::StatusOr<Connection> connection = Connection::Make(target, options);
    status = connection.status();
    if (status.ok()) {
      server_ = std::make_shared<Server>(*std::move(connection));
    }
  }
  if (status.ok()) return;
  // It may name a file.
  const std::string message(status.message());
  PyErr_SetObject(
      PyExc_ValueError,
      nb::steal(PyUnicode_DecodeFSDefaultAndSize(
                    message.data(), static_cast<Py_ssize_t>(message.size())))
          .ptr());
  throw nb::python_error();
}

Core::~Core() {
  if (server_ == nullptr || getpid() == process_) return;
  // Without gRPC's threads its end could wait for ever: it has none.
  server_->itself = server_;
}

std::shared_ptr<Server> Core::server() const {
  if (server_ == nullptr) {
    throw std::invalid_argument("Cannot invoke RPC on closed channel!");
  }
  return server_;
}

nb::object Core::Compute(const nb::tuple& tensors, const nb::bytes& others,
                         double limit) const {
  std::shared_ptr<Server> server = this->server();
  const LentRequest lent(tensors, others);
  SignalHandlers signals;
  absl::StatusOr<ComputeResult> result;
  {
    const WithoutGil without_gil;
    result = server->client.Compute(lent.request(),
                                    {.timeout = absl::Seconds(limit),
                                     .stop = server->closing.get_token(),
                                     .interrupted = signals.Check()});
    server.reset();
  }
  signals.Raise();
  return OutcomeOf(std::move(result), lent.bytes());
}

nb::object Core::Call(const std::string& method, const nb::bytes& message,
                      double limit) const {
  std::shared_ptr<Server> server = this->server();
  internal::UnaryCall call = UnaryCallOf(method, message);
  SignalHandlers signals;
  internal::UnaryAnswer answer;
  {
    const WithoutGil without_gil;
    answer = internal::RunUnary(server->connection,
                                {.timeout = absl::Seconds(limit),
                                 .stop = server->closing.get_token(),
                                 .interrupted = signals.Check()},
                                call);
    server.reset();
  }
  signals.Raise();
  return OutcomeOf(answer.status, answer.message);
}

std::stop_source Core::StartCompute(const nb::tuple& tensors,
                                    const nb::bytes& others, double limit,
                                    nb::object done) const {
  const std::shared_ptr<Server> server = this->server();
  auto started = std::make_unique<StartedCall<LentRequest>>(
      std::move(done), server->closing.get_token());
  started->lent.emplace(tensors, others);
  std::stop_source stop = started->stop;
  // Its own copy may be gone before ComputeAsync() returns.
  const ComputeRequest request = started->lent->request();
  const int64_t bytes = started->lent->bytes();
  const WithoutGil without_gil;
  server->client.ComputeAsync(
      request, {.timeout = absl::Seconds(limit), .stop = stop.get_token()},
      [call = started.release(), bytes](absl::StatusOr<ComputeResult> result) {
        End(call, [&] { return OutcomeOf(std::move(result), bytes); });
      });
  return stop;
}

std::stop_source Core::StartCall(const std::string& method,
                                 const nb::bytes& message, double limit,
                                 nb::object done) const {
  const std::shared_ptr<Server> server = this->server();
  auto started = std::make_unique<StartedCall<LentRequest>>(
      std::move(done), server->closing.get_token());
  std::stop_source stop = started->stop;
  internal::UnaryCall call = UnaryCallOf(method, message);
  const WithoutGil without_gil;
  internal::StartUnary(
      server->connection,
      {.timeout = absl::Seconds(limit), .stop = stop.get_token()},
      std::move(call),
      [pending = started.release()](const internal::UnaryAnswer& answer) {
        End(pending, [&] { return OutcomeOf(answer.status, answer.message); });
      });
  return stop;
}

nb::object Core::Allocate(size_t bytes) const {
  return nb::cast(Memory{server()->client.AllocateShared(bytes), bytes});
}

std::shared_ptr<Stream> Core::OpenStream(const std::string& method,
                                         bool waits) const {
  return std::make_shared<Stream>(server(), method, waits);
}

void Core::Close() {
  std::shared_ptr<Server> server = std::move(server_);
  server_ = nullptr;
  if (server == nullptr) return;
  const WithoutGil without_gil;
  server->closing.request_stop();
  server.reset();
}

void DefineCore(nb::module_& module) {
  nb::class_<std::stop_source>(module, "Call")
      .def("cancel", [](std::stop_source& stop) {
        const WithoutGil without_gil;
        stop.request_stop();
      });
  nb::class_<Core>(module, "Core")
      .def("__init__",
           [](Core* self, const std::string& target, bool tls,
              const nb::bytes& tls_ca, const nb::bytes& tls_cert,
              const nb::bytes& tls_key, const std::string& token,
              const nb::bytes& token_file, bool allow_plaintext_token,
              bool use_shared_memory, int max_attempts,
              const nb::dict& arguments) {
             ClientOptions options;
             options.tls = tls;
             options.tls_ca = NameOf(tls_ca);
             options.tls_cert = NameOf(tls_cert);
             options.tls_key = NameOf(tls_key);
             options.token = token;
             options.token_file = NameOf(token_file);
             options.allow_plaintext_token = allow_plaintext_token;
             options.use_shared_memory = use_shared_memory;
             options.max_attempts = max_attempts;
             for (const auto& [name, value] : arguments) {
               SetArgument(nb::cast<std::string>(name), value, options);
             }
             new (self) Core(target, options);
           })
      .def("compute", &Core::Compute)
      .def("call", &Core::Call)
      .def("start_compute", &Core::StartCompute)
      .def("start_call", &Core::StartCall)
      .def("open_stream", &Core::OpenStream)
      .def("allocate", &Core::Allocate)
      .def("close", &Core::Close);
}

}  // namespace attention::python
