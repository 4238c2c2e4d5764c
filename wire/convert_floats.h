// Elements of any float type as float, for answers in float_values.
#ifndef ATTENTION_WIRE_CONVERT_FLOATS_H_
#define ATTENTION_WIRE_CONVERT_FLOATS_H_

#include <cstdint>

#include "kernel/data_type.h"

namespace attention::wire {

// Writes `count` numbers of the float type `type` at `source` to `target`.
// FLOAT64 is rounded, all else is exact.
void ConvertToFloats(DataType type, const void* source, int64_t count,
                     float* target);

}  // namespace attention::wire

#endif  // ATTENTION_WIRE_CONVERT_FLOATS_H_
