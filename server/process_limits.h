// Whether the process may have what the server needs.
#ifndef ATTENTION_SERVER_PROCESS_LIMITS_H_
#define ATTENTION_SERVER_PROCESS_LIMITS_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "server/options.h"

namespace attention::server {

// Takes, all at once, the threads, descriptors and address space that the
// server needs to start and to answer small calls, and gives them back. To be
// called before the server starts, because gRPC aborts where it gets none.
// Takes about 20 us per thread.
//
// Where address space is limited (ulimit -v), malloc is told to use few arenas:
// each reserves 64 MiB of it, and there may be eight per core. If what remains
// then is less than calls may take, the result is `options` lowered to it by
// WithMemory(); else it is `options`.
//
// Errors: ResourceExhausted, one line that says what is short and what to do.
// Throws std::bad_alloc.
absl::StatusOr<Options> FitToProcessLimits(const Options& options);

// `options` with at most `bytes`, >= 4096, for calls and the pool together. The
// pool gets a fifth of them at most, as by default. The largest messages shrink
// in proportion if they have to, so that valid options stay valid.
Options WithMemory(Options options, int64_t bytes);

// Most threads at once of a server with these options, gRPC's included.
int64_t ThreadsNeeded(const Options& options);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_PROCESS_LIMITS_H_
