// Runs cases when told to, so that another program can compare the kernel with
// others in turn.
#ifndef ATTENTION_BENCHMARKS_KERNEL_SERVE_H_
#define ATTENTION_BENCHMARKS_KERNEL_SERVE_H_

#include <iosfwd>

namespace attention::benchmarks {

// Answers each line of `requests` with a line of JSON, until they end:
//
//   list                   every case, and the SIMD target and compiler
//   limit NAME THREADS     of the machine, with so many threads: "float",
//                          "double", "bfloat16" or "read"
//   open CASE DIRECTORY    makes the case's tensors and writes them, and the
//                          kernel's output, to DIRECTORY; its FLOP and bytes
//   run THREADS SECONDS    runs the open case once, then again and again for
//                          at least so long; the mean seconds a run
//
// A request it does not understand ends the program.
void ServeBenchmarks(std::istream& requests, std::ostream& answers);

}  // namespace attention::benchmarks

#endif  // ATTENTION_BENCHMARKS_KERNEL_SERVE_H_
