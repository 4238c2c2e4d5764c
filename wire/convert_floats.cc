#include "wire/convert_floats.h"

#include <cstring>

#include "kernel/cpu/convert.h"

namespace attention::wire {
namespace {

template <typename Element, typename Convert>
void ConvertAll(const void* source, int64_t count, float* target,
                Convert convert) {
  const auto* elements = static_cast<const Element*>(source);
  for (int64_t i = 0; i < count; ++i) target[i] = convert(elements[i]);
}

}  // namespace

void ConvertToFloats(DataType type, const void* source, int64_t count,
                     float* target) {
  switch (type) {
    case DataType::kFloat32:
      std::memcpy(target, source, count * sizeof(float));
      return;
    case DataType::kFloat16:
      return ConvertAll<uint16_t>(source, count, target, HalfToFloat);
    case DataType::kBFloat16:
      return ConvertAll<uint16_t>(source, count, target, BFloatToFloat);
    case DataType::kFloat64:
      return ConvertAll<double>(source, count, target, [](double number) {
        return static_cast<float>(number);
      });
    default:
      return;  // Answers hold floats only.
  }
}

}  // namespace attention::wire
