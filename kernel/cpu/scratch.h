// A thread's working memory while it computes a block of keys. Internal.
#ifndef ATTENTION_KERNEL_CPU_SCRATCH_H_
#define ATTENTION_KERNEL_CPU_SCRATCH_H_

#include <cstdint>

#include "kernel/attention.h"
#include "kernel/cpu/row_task.h"
#include "kernel/cpu/selected_keys.h"
#include "kernel/cpu/task_memory.h"
#include "kernel/plan/problem.h"

namespace attention {

// At most 256 (D + Dv' + tile_rows + 1) numbers of type T, and of scaled rows
// 256 (D + Dv) of FLOAT32; with indices a bit for each key. Dv' is Dv rounded
// up to the lanes of a vector; tile_rows is at most 14, or 32 with BF16Tiles.
template <typename T>
class Scratch {
 public:
  // In this thread's memory. `lanes` is the number of T in a vector.
  Scratch(const Problem& problem, int64_t tile_rows, int64_t lanes)
      : value_stride(RoundUp(problem.value_head_size, lanes)) {
    keys_packed =
        reinterpret_cast<T*>(ReserveScratch(Bytes(problem, tile_rows, lanes)));
    values = keys_packed + kKeyBlock * problem.head_size;
    scores = values + kKeyBlock * value_stride;
    bias = scores + tile_rows * kKeyBlock;
    unscaled_keys = reinterpret_cast<float*>(bias + kKeyBlock);
    unscaled_values = unscaled_keys + kKeyBlock * problem.head_size;
    selected = reinterpret_cast<uint64_t*>(
        reinterpret_cast<char*>(keys_packed) +
        Bytes(problem, tile_rows, lanes) - SelectedBytes(problem));
  }

  // What the constructor takes for these arguments, in bytes.
  static int64_t Bytes(const Problem& problem, int64_t tile_rows,
                       int64_t lanes) {
    return kKeyBlock *
               (problem.head_size + RoundUp(problem.value_head_size, lanes) +
                tile_rows + 1) *
               static_cast<int64_t>(sizeof(T)) +
           (problem.scaled
                ? kKeyBlock * (problem.head_size + problem.value_head_size) *
                      static_cast<int64_t>(sizeof(float))
                : 0) +
           SelectedBytes(problem);
  }

  // Row-major. kPanel and kElements are those of tile-inl.h.
  const int64_t value_stride;  // Dv'
  T* keys_packed;  // [256 / kPanel, D / kElements, kPanel]: panels of keys
  T* values;       // [256 / kElements, Dv']: steps of keys
  T* scores;       // [tile_rows, 256]: scores, then weights
  T* bias;         // [256]: a row of the mask
  // A block of scaled rows as they are computed with; else no memory.
  float* unscaled_keys;    // [256, D]
  float* unscaled_values;  // [256, Dv]
  uint64_t* selected;      // SelectedKeys; without indices no memory

 private:
  static int64_t SelectedBytes(const Problem& problem) {
    return problem.indices ? SelectedKeys::Words(problem.longest_keys) *
                                 static_cast<int64_t>(sizeof(uint64_t))
                           : 0;
  }
};

}  // namespace attention

#endif  // ATTENTION_KERNEL_CPU_SCRATCH_H_
