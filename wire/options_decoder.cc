#include "wire/options_decoder.h"

#include "absl/strings/str_cat.h"
#include "base/field_error.h"

namespace attention::wire {

void OptionsDecoder::Decode(MessageReader& reader,
                            v1::AttentionOptions* options) {
  SliceReader part;
  if (!reader.Bytes(&part)) return;
  if (++parts_ > kMaxOptionsParts) {
    return reader.decoding().Refuse(
        FieldError(path_, absl::StrCat("got more than ", kMaxOptionsParts,
                                       " parts, the most there may be")));
  }
  bytes_ += part.remaining();
  if (bytes_ > kMaxOptionsBytes) {
    return reader.decoding().Refuse(LimitError(
        path_, absl::StrCat("got ", bytes_, " bytes, wanted at most ",
                            kMaxOptionsBytes)));
  }
  reader.Merge(part, options);
}

}  // namespace attention::wire
