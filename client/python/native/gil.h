// The interpreter's lock, also where the interpreter ends meanwhile.
#ifndef ATTENTION_CLIENT_PYTHON_NATIVE_GIL_H_
#define ATTENTION_CLIENT_PYTHON_NATIVE_GIL_H_

#include <Python.h>
#include <cxxabi.h>
#include <unistd.h>

namespace attention::python {

inline bool IsFinalizing() {
#if PY_VERSION_HEX >= 0x030D0000
  return Py_IsFinalizing() != 0;
#else
  return _Py_IsFinalizing() != 0;
#endif
}

// Where a thread stays that comes back for the lock after the interpreter has
// begun to end, as in Python 3.14. Older versions end it with pthread_exit(),
// which unwinds its stack through destructors that must not throw.
[[noreturn]] inline void StayForEver() {
  while (true) pause();
}

// Gives the lock up for a scope.
class WithoutGil {
 public:
  WithoutGil() : ending_(IsFinalizing()), state_(PyEval_SaveThread()) {}
  ~WithoutGil() {
    // Who had the lock while the interpreter ended is the one who ends it.
    if (!ending_ && IsFinalizing()) StayForEver();
    PyEval_RestoreThread(state_);
  }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

 private:
  const bool ending_;
  PyThreadState* const state_;
};

// Takes the lock for a scope, on the main thread.
class WithGil {
 public:
  WithGil() : state_(PyGILState_Ensure()) {}
  ~WithGil() { PyGILState_Release(state_); }
  WithGil(const WithGil&) = delete;
  WithGil& operator=(const WithGil&) = delete;

 private:
  const PyGILState_STATE state_;
};

// Calls `function` with the lock on a thread that is not Python's, such as one
// of gRPC's. Returns false, and does nothing, if the interpreter has ended.
template <typename Function>
bool RunWithGil(const Function& function) {
  if (Py_IsInitialized() == 0 || IsFinalizing()) return false;
  try {
    const PyGILState_STATE state = PyGILState_Ensure();
    function();
    PyGILState_Release(state);
  } catch (abi::__forced_unwind&) {
    // It had given up the lock for a moment.
    StayForEver();
  }
  return true;
}

}  // namespace attention::python

#endif  // ATTENTION_CLIENT_PYTHON_NATIVE_GIL_H_
