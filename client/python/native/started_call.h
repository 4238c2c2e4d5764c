// Calls that end on another thread.
#ifndef ATTENTION_CLIENT_PYTHON_NATIVE_STARTED_CALL_H_
#define ATTENTION_CLIENT_PYTHON_NATIVE_STARTED_CALL_H_

#include <nanobind/nanobind.h>

#include <new>
#include <optional>
#include <stop_token>
#include <utility>

#include "client/python/native/gil.h"

namespace attention::python {

// Stops a call when another stop is requested.
struct Stop {
  std::stop_source source;
  void operator()() { source.request_stop(); }
};

// A call with a callback, and what it was lent. Whoever destroys it has the
// GIL.
template <typename Lent>
struct StartedCall {
  StartedCall(nanobind::object then, const std::stop_token& closing)
      : done(std::move(then)), on_close(closing, Stop{stop}) {}

  nanobind::object done;
  std::optional<Lent> lent;
  std::stop_source stop;
  std::stop_callback<Stop> on_close;
};

// What `outcome` makes, or the exception that ends it: there is no caller to
// raise it in.
template <typename Outcome>
nanobind::object MadeOf(const Outcome& outcome) {
  try {
    return outcome();
  } catch (const nanobind::python_error& error) {
    return nanobind::borrow(error.value());
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
    const nanobind::python_error error;  // Fetches it.
    return nanobind::borrow(error.value());
  }
}

// Gives Python what `outcome` makes, and `started` an end.
template <typename Lent, typename Outcome>
void End(StartedCall<Lent>* started, const Outcome& outcome) {
  // If nobody is left to tell, nobody is left to give memory back to.
  RunWithGil([&] {
    PyObject* const made = MadeOf(outcome).release().ptr();
    // The C function: Python may end this thread within it.
    PyObject* const nothing = PyObject_CallOneArg(started->done.ptr(), made);
    if (nothing == nullptr) PyErr_WriteUnraisable(started->done.ptr());
    Py_XDECREF(nothing);
    Py_DECREF(made);
    delete started;
  });
}

}  // namespace attention::python

#endif  // ATTENTION_CLIENT_PYTHON_NATIVE_STARTED_CALL_H_
