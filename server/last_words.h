// So that the process never ends in silence. For the main function.
#ifndef ATTENTION_SERVER_LAST_WORDS_H_
#define ATTENTION_SERVER_LAST_WORDS_H_

#include "absl/strings/string_view.h"

namespace attention::server {

// Writes "attention_server: `text`" as a line on standard error, for at most a
// second if nobody reads it. Allocates nothing.
void TellOnStderr(absl::string_view text) noexcept;

// From here on a line on standard error says why the process ends, when an
// exception is not caught or something calls abort(); gRPC does where it gets
// no memory, thread or descriptor. A start that fails so exits with 1, without
// a core dump, until StartSucceeded() was called; after it abort() does as
// always.
//
// There is no std::new_handler: an allocation that fails is not the end, the
// call that needed it is refused.
void InstallLastWords();
void StartSucceeded();

// Tells on standard error of the exception that is being handled.
void TellOfException() noexcept;

}  // namespace attention::server

#endif  // ATTENTION_SERVER_LAST_WORDS_H_
