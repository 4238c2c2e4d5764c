// A loop whose iterations several threads share.
#ifndef ATTENTION_BASE_PARALLEL_FOR_H_
#define ATTENTION_BASE_PARALLEL_FOR_H_

#include <cstdint>
#include <utility>

#include "absl/functional/function_ref.h"
#include "base/executor.h"

namespace attention {

// Calls task(i) once for each i in [0, count), smaller ones first, on the
// executor's threads and the calling one, and returns when all have ended.
// Tasks must not throw.
inline void ParallelFor(Executor& executor, int64_t count,
                        absl::FunctionRef<void(int64_t)> task) {
  class Loop final : public Executor::Job {
   public:
    Loop(int64_t count, absl::FunctionRef<void(int64_t)> task)
        : count_(count), task_(task) {}
    int64_t NextStage() override { return std::exchange(count_, 0); }
    bool RunTask(int64_t i, const Turn& /*turn*/) override {
      task_(i);
      return true;
    }
    void Done(JobEnd /*end*/) override {}

   private:
    int64_t count_;
    absl::FunctionRef<void(int64_t)> task_;
  };
  Loop loop(count, task);
  executor.Run(&loop, {});
}

}  // namespace attention

#endif  // ATTENTION_BASE_PARALLEL_FOR_H_
