// Where asynchronous calls do what takes its time.
#ifndef ATTENTION_INTERNAL_WORKERS_H_
#define ATTENTION_INTERNAL_WORKERS_H_

#include <functional>

namespace attention::internal {

// Runs `work` soon on one of a few threads, which never end, so that a process
// may exit while they run; here, if there can be none. What is begun earlier
// may end later.
void RunOnWorker(std::function<void()> work);

}  // namespace attention::internal

#endif  // ATTENTION_INTERNAL_WORKERS_H_
