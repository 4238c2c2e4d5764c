// The ways of a C++ client to make the same call, and the parts of one.
#ifndef ATTENTION_BENCHMARKS_RPC_CONTENDERS_H_
#define ATTENTION_BENCHMARKS_RPC_CONTENDERS_H_

#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "attention/client.h"
#include "benchmarks/rpc/workload.h"

namespace attention::benchmarks {

// Makes a call. The output is empty where nothing is computed.
using Call = std::function<absl::StatusOr<Tensor>()>;

// Which call is measured, by its name in ways.py, and of which server.
struct Contender {
  std::string name;
  std::string address;
};

// A contender's call of a case; INVALID_ARGUMENT for an unknown name. The call
// uses `workload`, which must outlive it.
absl::StatusOr<Call> MakeCall(const Contender& contender,
                              const Workload& workload);

}  // namespace attention::benchmarks

#endif  // ATTENTION_BENCHMARKS_RPC_CONTENDERS_H_
