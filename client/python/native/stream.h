// A stream for Python, as streams.py of the package wants it.
#ifndef ATTENTION_CLIENT_PYTHON_NATIVE_STREAM_H_
#define ATTENTION_CLIENT_PYTHON_NATIVE_STREAM_H_

#include <grpcpp/completion_queue.h>
#include <nanobind/nanobind.h>
#include <sys/types.h>

#include <memory>
#include <stop_token>
#include <string>

#include "client/python/native/exchange_stream.h"
#include "client/python/native/server.h"

namespace attention::python {

void DefineStream(nanobind::module_& module);

// All functions are called with the GIL, and wait without it. One exchange at a
// time; after one that failed the stream must not be used.
class Stream {
 public:
  // `waits`: for Exchange(), else for StartExchange().
  Stream(std::shared_ptr<Server> server, const std::string& method, bool waits);
  // Ends the stream. Not while an exchange is under way that was not started.
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  // A Failure, or the answer as a Memory. `limit` is in seconds, infinity for
  // none. What a handler of Python's signals raises meanwhile ends the stream.
  nanobind::object Exchange(const nanobind::list& pieces, double limit);

  // The same with a function that is called once with what it ends with, on
  // another thread. The result ends the stream.
  std::stop_source StartExchange(const nanobind::list& pieces,
                                 nanobind::object done);

 private:
  struct State;

  const pid_t process_;
  std::shared_ptr<State> state_;
};

}  // namespace attention::python

#endif  // ATTENTION_CLIENT_PYTHON_NATIVE_STREAM_H_
