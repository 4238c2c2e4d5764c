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

// Cuts the rows of a problem into tasks. Threads draw them in order: the
// largest first (to an eighth of their work), each at most remaining work / (2
// * threads), as in guided self-scheduling, so that all threads end at about
// the same time. Within that, tasks are as large as possible: each packs its
// keys.
//
// Cutting a million short sequences takes tens of milliseconds, so Run() can be
// suspended. Throws std::bad_alloc.
class RowCutter {
 public:
  // `problem` must outlive the cutter.
  RowCutter(const Problem& problem, int threads);

  // Goes on until all is cut (true) or the turn is over (false: call it again).
  bool Run(const Turn& turn);

  // Once all is cut.
  std::vector<RowTask> TakeTasks() { return std::move(tasks_); }

 private:
  // The rows of one key/value head, or with indices those that share a list,
  // are first cut into as few tasks as limits allow, and these later into
  // smaller ones.
  struct Large {
    RowTask task;
    double work;  // multiply-adds, about
  };

  // turn.Over(), asked about every 50 us.
  bool TurnIsOver(const Turn& turn);
  // False if the turn was over before the end.
  bool ListLargest(int64_t pair, const Turn& turn);
  void ListPieces(const RowTask& task);

  const Problem& problem_;
  const int threads_;
  const int64_t most_rows_;  // in a task

  // Where the three loops of Run() go on.
  int64_t pair_ = 0;   // pairs of sequence and key/value head listed in large_
  int64_t row_ = 0;    // with indices: rows of the next pair listed as well
  size_t sorted_ = 0;  // of large_, put in order_
  size_t cut_ = 0;     // of order_, cut into tasks_
  // Iterations since the turn was last asked.
  int64_t since_asked_ = 0;

  std::vector<Large> large_;   // those of a pair side by side
  double remaining_work_ = 0;  // the work of those that are not yet cut
  // A counting sort by work: a bucket is an eighth of a power of two. buckets_
  // holds each one's size, then the index in order_ of its next member.
  static constexpr int kBuckets = 64 * 8;
  static int BucketOf(double work);
  std::array<size_t, kBuckets> buckets_{};
  std::unique_ptr<size_t[]> order_;  // indices into large_, largest first
  std::vector<RowTask> tasks_;

 public:
  // The most memory that it takes per task.
  static constexpr int64_t kBytesPerTask =
      sizeof(Large) + sizeof(size_t) + sizeof(RowTask);
};

// A whole RowCutter::Run().
std::vector<RowTask> CutRows(const Problem& problem, int threads);

// Upper bounds of the rows per task and of the number of tasks.
int64_t MostTaskRows(const Problem& problem);
int64_t MostTasks(const Problem& problem);

}  // namespace attention

#endif  // ATTENTION_KERNEL_CPU_TASKS_H_
