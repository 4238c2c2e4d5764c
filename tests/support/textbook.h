// Attention as anyone would write it, in the kernel's precision: the measure of
// how exact the kernel should be.
#ifndef ATTENTION_TESTS_SUPPORT_TEXTBOOK_H_
#define ATTENTION_TESTS_SUPPORT_TEXTBOOK_H_

#include "tests/support/attention_case.h"
#include "tests/support/tensor.h"

namespace attention::test {

// The output, rounded to its type. Takes layout BHSD with one batch entry and
// one head, scale, softcap and a mask (S, T) of floats; nothing else.
Tensor Textbook(const AttentionCase& request);

}  // namespace attention::test

#endif  // ATTENTION_TESTS_SUPPORT_TEXTBOOK_H_
