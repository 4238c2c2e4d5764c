#include "kernel/tasks.h"

#include <algorithm>
#include <cstdint>
#include <vector>

namespace attention {
namespace {

// Pairs of row and key that the task's last row, about, lets it see.
int64_t Cost(const Problem& p, const RowTask& task) {
  const Sequence s = p.GetSequence(task.sequence);
  const KeyRange range = p.Visible(s, (task.row_end - 1) / p.group());
  return (task.row_end - task.row_begin) * (range.end - range.begin);
}

}  // namespace

int64_t NumRows(const Problem& p) {
  return (p.ragged ? p.query_length : p.batch * p.query_length) * p.query_heads;
}

std::vector<RowTask> CutRows(const Problem& p) {
  std::vector<RowTask> tasks;
  if (NumRows(p) == 0) return tasks;
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t rows = p.GetSequence(b).query_length * p.group();
    const int64_t pieces = (rows + kTaskRows - 1) / kTaskRows;
    if (pieces == 0) continue;
    // Of nearly equal size, and of whole register tiles.
    const int64_t piece =
        std::min(kTaskRows, RoundUp((rows + pieces - 1) / pieces, 14));
    for (int64_t head = 0; head < p.kv_heads; ++head) {
      for (int64_t row = 0; row < rows; row += piece) {
        tasks.push_back({b, head, row, std::min(rows, row + piece)});
      }
    }
  }
  if (p.ragged || p.causal != Causal::kNone || !p.valid_lengths.empty()) {
    std::sort(tasks.begin(), tasks.end(),
              [&p](const RowTask& a, const RowTask& b) {
                return Cost(p, a) > Cost(p, b);
              });
  }
  return tasks;
}

}  // namespace attention
