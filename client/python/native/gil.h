// The interpreter's lock, also where the interpreter ends meanwhile.
#ifndef ATTENTION_CLIENT_PYTHON_NATIVE_GIL_H_
#define ATTENTION_CLIENT_PYTHON_NATIVE_GIL_H_

#include <Python.h>
#include <unistd.h>

namespace attention::python {

inline bool IsFinalizing() {
#if PY_VERSION_HEX >= 0x030D0000
  return Py_IsFinalizing() != 0;
#else
  return _Py_IsFinalizing() != 0;
#endif
}

// Gives the lock up for a scope. A thread that comes back after the interpreter
// has begun to end stays here for ever, as in Python 3.14: older versions would
// unwind it, through destructors that must not throw.
class WithoutGil {
 public:
  WithoutGil() : ending_(IsFinalizing()), state_(PyEval_SaveThread()) {}
  ~WithoutGil() {
    // Who had the lock while the interpreter ended is the one who ends it.
    while (!ending_ && IsFinalizing()) pause();
    PyEval_RestoreThread(state_);
  }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

 private:
  const bool ending_;
  PyThreadState* const state_;
};

// Takes the lock for a scope on any thread, also one of gRPC's. Only while
// IsRunning().
class WithGil {
 public:
  static bool IsRunning() { return Py_IsInitialized() != 0 && !IsFinalizing(); }

  WithGil() : state_(PyGILState_Ensure()) {}
  ~WithGil() { PyGILState_Release(state_); }
  WithGil(const WithGil&) = delete;
  WithGil& operator=(const WithGil&) = delete;

 private:
  const PyGILState_STATE state_;
};

}  // namespace attention::python

#endif  // ATTENTION_CLIENT_PYTHON_NATIVE_GIL_H_
