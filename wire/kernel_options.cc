#include "wire/kernel_options.h"

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/field_error.h"
#include "wire/data_type.h"

namespace attention::wire {
namespace {

// EnumConverter relies on the kernel's enums counting as the wire's do.
static_assert(static_cast<int>(Layout::kRagged) == v1::LAYOUT_RAGGED);
static_assert(static_cast<int>(Layout::kBHSD) == v1::LAYOUT_BHSD);
static_assert(static_cast<int>(Causal::kBottomRight) ==
              v1::CAUSAL_BOTTOM_RIGHT);
static_assert(static_cast<int>(Scores::kWeights) == v1::SCORES_WEIGHTS);
static_assert(static_cast<int>(Scores::kCapped) == v1::SCORES_CAPPED);

// The first error stays; what follows it does nothing.
struct EnumConverter {
  // Numbers that the enum, of values 0 to `last`, does not have are errors.
  template <typename KernelEnum>
  void Convert(absl::string_view field, int number, KernelEnum last,
               KernelEnum* value) {
    if (!error.ok()) return;
    if (number < 0 || number > static_cast<int>(last)) {
      error = FieldError(absl::StrCat("options.", field),
                         absl::StrCat("got ", number, ", wanted 0 to ",
                                      static_cast<int>(last)));
      return;
    }
    *value = static_cast<KernelEnum>(number);
  }

  absl::Status error;
};

}  // namespace

absl::StatusOr<AttentionOptions> ToKernelOptions(
    const v1::AttentionOptions& from) {
  AttentionOptions to;
  EnumConverter enums;
  enums.Convert("layout", from.layout(), Layout::kRagged, &to.layout);
  to.query_heads = from.query_heads();
  to.kv_heads = from.kv_heads();
  if (from.has_scale()) to.scale = from.scale();
  to.softcap = from.softcap();
  enums.Convert("causal", from.causal(), Causal::kBottomRight, &to.causal);
  if (from.window().has_left()) to.window_left = from.window().left();
  if (from.window().has_right()) to.window_right = from.window().right();
  to.chunk_size = from.chunk_size();
  to.alibi_slopes.assign(from.alibi_slopes().begin(),
                         from.alibi_slopes().end());
  to.sinks.assign(from.sinks().begin(), from.sinks().end());
  // The wire has a number for "unspecified" that the kernel does without.
  enum class WireMathMode { kUnspecified, kLast = v1::MATH_MODE_FAST };
  WireMathMode math_mode = WireMathMode::kUnspecified;
  enums.Convert("math_mode", from.math_mode(), WireMathMode::kLast, &math_mode);
  to.math_mode = math_mode == WireMathMode::kLast ? MathMode::kFast
                                                  : MathMode::kReproducible;
  enum class WireType { kUnspecified, kLast = v1::DATA_TYPE_INT64 };
  WireType precision = WireType::kUnspecified;
  enums.Convert("softmax_precision", from.softmax_precision(), WireType::kLast,
                &precision);
  to.softmax_precision = FromWire(static_cast<int32_t>(precision));
  to.return_log_sum_exp = from.return_log_sum_exp();
  enums.Convert("return_scores", from.return_scores(), Scores::kWeights,
                &to.return_scores);
  to.return_present = from.return_present();
  if (!enums.error.ok()) return enums.error;
  return to;
}

}  // namespace attention::wire
