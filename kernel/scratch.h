// The memory a task works in, and the partial results it leaves. Internal.
#ifndef ATTENTION_KERNEL_SCRATCH_H_
#define ATTENTION_KERNEL_SCRATCH_H_

#include <array>
#include <bit>
#include <cstdint>

#include "hwy/aligned_allocator.h"
#include "kernel/attention.h"
#include "kernel/problem.h"

namespace attention {

// Rows of the largest register tile that a SIMD target has (tile-inl.h).
inline constexpr int64_t kMaxTileRows = 14;

// Query rows a task takes on at the most, in whole tiles: packing a block of
// keys is then a hundredth of the work on it.
inline constexpr int64_t kTaskRows = 32 * kMaxTileRows;

constexpr int64_t RoundUp(int64_t number, int64_t multiple) {
  return (number + multiple - 1) / multiple * multiple;
}

// See partial-inl.h. Row r's output is at output + r * stride. Memory is
// aligned to vectors; `max` and `sum` are padded to a multiple of 16 rows.
template <typename T>
struct Partial {
  T* max = nullptr;
  T* sum = nullptr;
  T* output = nullptr;
};

// Partial results of every row over the keys of blocks [block_begin,
// block_end), a subtree of the tree of blocks. Row (query i, head h) is number
// i * Hq + h, i counted through all sequences; rows of `output` are Dv apart.
template <typename T>
struct SubtreePartial : Partial<T> {
  int64_t block_begin = 0;
  int64_t block_end = 0;
};

// Rows at equal distances in memory.
struct RowStretch {
  const void* data = nullptr;
  int64_t count = 0;
  int64_t row_bytes = 0;
  int64_t stride_bytes = 0;

  template <typename Element>
  const Element* Row(int64_t i) const {
    return reinterpret_cast<const Element*>(static_cast<const char*>(data) +
                                            i * stride_bytes);
  }
};

// Memory that a thread works in, aligned to vectors.
struct ScratchMemory {
  hwy::AlignedFreeUniquePtr<char[]> data;
  int64_t bytes = 0;
};

// Each thread keeps the memory of its last task for the next one, as far as it
// has no more than this.
inline constexpr int64_t kKeptScratchBytes = int64_t{4} << 20;

// This thread's memory for at least `bytes`, valid until the thread's next
// call. Throws std::bad_alloc.
char* ReserveScratch(int64_t bytes);
// Takes this thread's memory away, or gives it some in place of its own.
ScratchMemory TakeScratch();
void PutScratch(ScratchMemory memory);
// Frees this thread's memory if it is more than is kept.
void TrimScratch();

// The open nodes of a PartialStack (partial-inl.h).
struct OpenNodes {
  static constexpr int kMaxDepth = 64;
  int depth = 0;
  int64_t last_block[kMaxDepth];
};

// Where a task stands that was left before it was done. The memory holds its
// queries and partials; null in a task that was not left.
struct TaskState {
  ScratchMemory memory;
  OpenNodes nodes;
  int64_t next_block = 0;
  // First key whose scores are still to be returned; -1: not there yet.
  int64_t next_score = -1;
};

// Rows of one key/value head that are computed together: row r stands for query
// r / group of the sequence and query head kv_head * group + r % group.
struct RowTask {
  int64_t sequence = 0;
  int64_t kv_head = 0;
  int64_t row_begin = 0;
  int64_t row_end = 0;  // at most row_begin + kTaskRows
};

// A task's working memory. In elements of T, with R rows rounded up to a
// multiple of 16 and Dv' = Dv rounded up to the lanes of a vector, at most
//   (R + 256) D + 16 + 256 (Dv' + L + 1) + (2 + log2(1 + T / 256)) R (Dv' + 2)
// where L is the number of rows in a tile, 14, or 32 with BF16Tiles.
template <typename T>
class Scratch {
 public:
  // `lanes` is the number of T in a vector. Lays the members out in this
  // thread's memory: in the same way for the same arguments.
  Scratch(const Problem& problem, int64_t rows, int64_t tile_rows,
          int64_t lanes)
      : value_stride(RoundUp(problem.value_head_size, lanes)) {
    const Sizes sizes(problem, rows, tile_rows, lanes);
    T* next = reinterpret_cast<T*>(
        ReserveScratch(sizes.all * static_cast<int64_t>(sizeof(T))));
    const auto take = [&next](int64_t count) {
      T* taken = next;
      next += RoundUp(count, 16);
      return taken;
    };
    query = take(sizes.query);
    keys_packed = take(kKeyBlock * problem.head_size);
    values = take(kKeyBlock * value_stride);
    scores = take(tile_rows * kKeyBlock);
    bias = take(kKeyBlock);
    for (int level = 0; level < sizes.depth; ++level) {
      T* memory = take(sizes.level);
      levels[level] = {memory, memory + sizes.padded_rows,
                       memory + 2 * sizes.padded_rows};
    }
  }

  // What the constructor takes for these arguments, in bytes.
  static int64_t Bytes(const Problem& problem, int64_t rows, int64_t tile_rows,
                       int64_t lanes) {
    return Sizes(problem, rows, tile_rows, lanes).all *
           static_cast<int64_t>(sizeof(T));
  }

  // Distance between rows of values and of output.
  const int64_t value_stride;
  T* query;                           // the task's query rows
  T* keys_packed;                     // a block of keys in panels
  T* values;                          // a block of values in panels
  T* scores;                          // a tile of scores, then weights
  T* bias;                            // a row of the mask
  std::array<Partial<T>, 64> levels;  // open nodes of the tree of blocks

 private:
  // In elements.
  struct Sizes {
    Sizes(const Problem& problem, int64_t rows, int64_t tile_rows,
          int64_t lanes)
        : padded_rows(RoundUp(rows, 16)),
          // The last row is filled up to a whole vector; few rows may stand
          // there in two forms (rows-inl.h).
          query(RoundUp(padded_rows * problem.head_size + 15, 16)) {
      const int64_t value_stride = RoundUp(problem.value_head_size, lanes);
      const int64_t blocks = problem.total_keys() / kKeyBlock + 1;
      depth = std::bit_width(static_cast<uint64_t>(blocks)) + 1;
      level = 2 * padded_rows + rows * value_stride;
      all = query + kKeyBlock * problem.head_size + kKeyBlock * value_stride +
            (tile_rows + 1) * kKeyBlock + depth * RoundUp(level, 16);
    }
    int64_t padded_rows;
    int64_t query;
    int depth;
    int64_t level;
    int64_t all;
  };
};

}  // namespace attention

#endif  // ATTENTION_KERNEL_SCRATCH_H_
