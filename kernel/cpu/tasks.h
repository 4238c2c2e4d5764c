// How a computation is cut into tasks. Internal.
#ifndef ATTENTION_KERNEL_CPU_TASKS_H_
#define ATTENTION_KERNEL_CPU_TASKS_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "base/executor.h"
#include "kernel/cpu/scratch.h"
#include "kernel/plan/problem.h"

namespace attention {

// (query, head) pairs, in the numbering of SubtreePartial.
int64_t NumRows(const Problem& problem);

// Puts each row of the problem into one task, for threads that draw tasks in
// this order: largest first, within an eighth, each at most remaining work / (2
// * threads), as in guided self-scheduling, so that all threads end at about
// the same time. Large tasks cost least in all, for each packs its keys.
//
// A million short sequences take tens of milliseconds, so the work can be left
// and taken up again. Throws std::bad_alloc.
class RowCutter {
 public:
  // `problem` must outlive the cutter.
  RowCutter(const Problem& problem, int threads);

  // Goes on until all is cut (true) or the turn is over (false: call it again).
  bool Run(const Turn& turn);

  // Once all is cut.
  std::vector<RowTask> TakeTasks() { return std::move(tasks_); }

 private:
  // As large as a task may be.
  struct Large {
    RowTask task;
    double work;  // multiply-adds, about
  };

  bool Leaves(const Turn& turn);
  void ListLargest(int64_t pair);

  const Problem& problem_;
  const int threads_;
  const int64_t most_rows_;  // in a task

  // The steps, each a loop with the index at which it goes on.
  int64_t pair_ = 0;  // of sequence and key/value head, listed in large_
  size_t sorted_ = 0;
  size_t cut_ = 0;
  // Of small pieces of work, since the turn was last asked.
  int64_t steps_ = 0;

  std::vector<Large> large_;  // those of a pair side by side
  double left_ = 0;           // the work of those that are not yet cut
  // How many there are of each power of two of work and eighth of it; then
  // where in order_ the next one goes.
  static constexpr int kBuckets = 64 * 8;
  static int BucketOf(double work);
  std::array<size_t, kBuckets> buckets_{};
  std::unique_ptr<size_t[]> order_;  // indices into large_, largest first
  std::vector<RowTask> tasks_;

 public:
  // Memory that it takes for each task, at the most.
  static constexpr int64_t kBytesPerTask =
      sizeof(Large) + sizeof(size_t) + sizeof(RowTask);
};

// All of it at once.
std::vector<RowTask> CutRows(const Problem& problem, int threads);

// Most rows in one of these tasks, and an upper bound of their number.
int64_t MostTaskRows(const Problem& problem);
int64_t MostTasks(const Problem& problem);

}  // namespace attention

#endif  // ATTENTION_KERNEL_CPU_TASKS_H_
