// Log lines: "ts=... level=... key=value ..." (logfmt) on standard error.
#ifndef ATTENTION_SERVER_LOGGING_H_
#define ATTENTION_SERVER_LOGGING_H_

#include <spdlog/logger.h>

#include <memory>
#include <string>

#include "absl/strings/string_view.h"

namespace attention::server {

// Thread-safe; writes lines of at least `level`, a log_level of Options.
std::shared_ptr<spdlog::logger> MakeLogger(const std::string& level);

// `text` as a logfmt value: quoted, on one line.
std::string Quoted(absl::string_view text);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_LOGGING_H_
