// The options of a computation, as a field of other messages.
#ifndef ATTENTION_WIRE_OPTIONS_DECODER_H_
#define ATTENTION_WIRE_OPTIONS_DECODER_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "attention/v1/attention.pb.h"
#include "wire/message_reader.h"

namespace attention::wire {

// Largest options message.
inline constexpr size_t kMaxOptionsBytes = size_t{1} << 20;
// The most parts that options may come in; each is merged in a tenth of a
// microsecond or more.
inline constexpr int64_t kMaxOptionsParts = 1024;

// Lives as long as the message's parts come: options are bounded over all of
// them.
class OptionsDecoder {
 public:
  // Of the field `path`, for errors.
  explicit OptionsDecoder(std::string path) : path_(std::move(path)) {}

  // The field that `reader` stands at, merged into `options`.
  void Decode(MessageReader& reader, v1::AttentionOptions* options);

 private:
  const std::string path_;
  size_t bytes_ = 0;
  int64_t parts_ = 0;
};

}  // namespace attention::wire

#endif  // ATTENTION_WIRE_OPTIONS_DECODER_H_
