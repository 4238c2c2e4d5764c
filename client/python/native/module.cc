// attention_client._native: the C++ client for the Python package. Start with
// core.h.
#include <nanobind/nanobind.h>

#include "client/python/native/core.h"
#include "client/python/native/outcome.h"
#include "client/python/native/sharded.h"
#include "client/python/native/stream.h"

NB_MODULE(_native, module) {
  // At the interpreter's end calls may still run, which hold what they need.
  nanobind::set_leak_warnings(false);
  attention::python::DefineOutcomes(module);
  attention::python::DefineStream(module);
  attention::python::DefineCore(module);
  attention::python::DefineSharded(module);
}
