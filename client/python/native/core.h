// A client for Python, as core.py of the package describes it.
#ifndef ATTENTION_CLIENT_PYTHON_NATIVE_CORE_H_
#define ATTENTION_CLIENT_PYTHON_NATIVE_CORE_H_

#include <nanobind/nanobind.h>
#include <sys/types.h>

#include <cstddef>
#include <memory>
#include <stop_token>
#include <string>

#include "attention/client.h"
#include "attention/connection.h"
#include "client/python/native/server.h"
#include "client/python/native/stream.h"

namespace attention::python {

void DefineCore(nanobind::module_& module);

// All functions are called with the GIL, and run calls without it.
//
// A call that was started holds its arrays and its callback until it has ended,
// which it does after its time limit, Cancel() or Close() at the latest, and
// shares the connection, so that the Core may be gone by then. As many calls
// may be under way as Python starts: each holds what the caller's arrays take,
// and little more.
class Core {
 public:
  // Throws Python's ValueError where the options cannot be used, and
  // std::runtime_error in a process that was forked from one with a Core: gRPC
  // would hang.
  Core(const std::string& target, const ClientOptions& options);
  ~Core();
  Core(const Core&) = delete;
  Core& operator=(const Core&) = delete;

  // Limits are in seconds, infinity for none. Each returns what OutcomeOf()
  // makes; what a handler of Python's signals raises meanwhile, such as
  // KeyboardInterrupt, ends the call.
  nanobind::object Compute(const nanobind::tuple& tensors,
                           const nanobind::bytes& others, double limit) const;
  nanobind::object Call(const std::string& method,
                        const nanobind::bytes& message, double limit) const;

  // The same with a function that is called once with what the call ended with,
  // on another thread. The result stops the call.
  std::stop_source StartCompute(const nanobind::tuple& tensors,
                                const nanobind::bytes& others, double limit,
                                nanobind::object done) const;
  std::stop_source StartCall(const std::string& method,
                             const nanobind::bytes& message, double limit,
                             nanobind::object done) const;

  // A stream of a method; `waits`: for Exchange(), else for StartExchange().
  std::shared_ptr<Stream> OpenStream(const std::string& method,
                                     bool waits) const;

  // A Memory of this size, shared with the server where that is possible.
  nanobind::object Allocate(size_t bytes) const;

  void Close();

  // Throws std::invalid_argument once the Core is closed.
  std::shared_ptr<Server> server() const;

 private:
  const pid_t process_;
  std::shared_ptr<Server> server_;  // Null: closed.
};

}  // namespace attention::python

#endif  // ATTENTION_CLIENT_PYTHON_NATIVE_CORE_H_
