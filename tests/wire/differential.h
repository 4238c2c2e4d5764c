// Random and damaged messages, and whether what a decoder made of them is what
// protobuf's own parser makes of them.
#ifndef ATTENTION_TESTS_WIRE_DIFFERENTIAL_H_
#define ATTENTION_TESTS_WIRE_DIFFERENTIAL_H_

#include <functional>
#include <random>
#include <string>
#include <vector>

#include "attention/v1/attention.pb.h"
#include "google/protobuf/message_lite.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/slice.h"
#include "wire/compute_request.h"
#include "wire/tensor_fields.h"

namespace attention::wire {

// `bytes` cut into slices at random, or whole.
std::vector<grpc::Slice> Cut(const std::string& bytes, std::mt19937* random);

// All bytes of a message.
std::string BytesOf(const grpc::ByteBuffer& message);
std::string BytesOf(SliceReader reader);

v1::Tensor AnyTensor(std::mt19937& random);
v1::ComputeAttentionRequest AnyRequest(std::mt19937& random);

// Damages a message the way senders and attackers do.
void Mutate(std::mt19937& random, std::string* bytes);

void ExpectTensor(const TensorFields& got, bool present,
                  const v1::Tensor& wanted);
void ExpectSame(const RequestFields& got,
                const v1::ComputeAttentionRequest& want);

// A message as a field of another, of bytes of any kind.
std::string Nested(int field, const std::string& bytes);
// `depth` groups, one in another.
std::string Groups(int depth);

// Whether a decoder and the parser both take the bytes, cut at random; fails if
// they disagree, or on what they say.
using Compare =
    std::function<bool(const std::string& bytes, std::mt19937* random)>;
// A message of the kind that is decoded.
using Author = std::function<std::string(std::mt19937& random)>;

// Valid messages, several in one, damaged ones, and bytes at random.
void ExpectAgreement(const Author& author, const Compare& compare);

}  // namespace attention::wire

#endif  // ATTENTION_TESTS_WIRE_DIFFERENTIAL_H_
