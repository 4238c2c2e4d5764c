// Whether the process may have what the server needs.
#ifndef ATTENTION_SERVER_PROCESS_LIMITS_H_
#define ATTENTION_SERVER_PROCESS_LIMITS_H_

#include "absl/status/status.h"
#include "server/options.h"

namespace attention::server {

// Takes, all at once, the threads, descriptors and address space that the
// server needs to start and to answer small calls, and gives them back. To be
// called before the server starts, because gRPC aborts where it gets none.
// Takes about 20 us per thread.
//
// Where address space is limited (ulimit -v), malloc is told to use few arenas:
// each reserves 64 MiB of it, and there may be eight per core.
//
// Errors: ResourceExhausted, one line that says what is short and what to do.
// Throws std::bad_alloc.
absl::Status CheckProcessLimits(const Options& options);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_PROCESS_LIMITS_H_
