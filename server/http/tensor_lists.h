// Tensors as people write them in JSON: nested lists of numbers.
#ifndef ATTENTION_SERVER_HTTP_TENSOR_LISTS_H_
#define ATTENTION_SERVER_HTTP_TENSOR_LISTS_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/descriptor.h"

namespace attention::server {

// The JSON text of a message of type `type`, in which every list that stands
// for a Tensor has become the JSON of that Tensor; the rest stays.
//
//   {"query": [[1, 0], [0, 1]]}
//   {"query": {"floatValues": [1, 0, 0, 1], "shape": ["2", "2"]}}
//
// Numbers, and the strings "NaN", "Infinity" and "-Infinity", become
// float_values; a list of true and false becomes a BOOL tensor with `data`. For
// `indices` lists have integers of 32 bits, which may be strings too, and
// become an INT32 tensor with `data`. What it returns is at most some 4 times
// as long as `json`, and as long where that has more than a few numbers, or 4/3
// of that with indices.
//
// Errors: InvalidArgument; a FieldError() of the tensor where lists of one
// level have different lengths, where a tensor comes twice, where numbers and
// lists, or numbers and booleans, stand beside each other, and where something
// else stands in them, and of an enum's field whose text is none of its names;
// or says where `json` is no JSON.
absl::StatusOr<std::string> ExpandTensorLists(
    absl::string_view json, const google::protobuf::Descriptor& type);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_HTTP_TENSOR_LISTS_H_
