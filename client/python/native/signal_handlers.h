// Python's signal handlers, while a call runs.
#ifndef ATTENTION_CLIENT_PYTHON_NATIVE_SIGNAL_HANDLERS_H_
#define ATTENTION_CLIENT_PYTHON_NATIVE_SIGNAL_HANDLERS_H_

#include <nanobind/nanobind.h>
#include <unistd.h>

#include <functional>
#include <optional>
#include <utility>

#include "client/python/native/gil.h"

namespace attention::python {

// Runs Python's signal handlers while a call runs, and keeps what they raise.
// Only the main thread has them.
class SignalHandlers {
 public:
  // For CallOptions::interrupted.
  std::function<bool()> Check() {
    if (gettid() != getpid()) return nullptr;
    return [this] {
      if (raised_) return true;
      const WithGil gil;
      if (PyErr_CheckSignals() != 0) raised_.emplace();  // Fetches it.
      return raised_.has_value();
    };
  }
  void Raise() {
    if (raised_) throw std::move(*raised_);
  }

 private:
  std::optional<nanobind::python_error> raised_;
};

}  // namespace attention::python

#endif  // ATTENTION_CLIENT_PYTHON_NATIVE_SIGNAL_HANDLERS_H_
