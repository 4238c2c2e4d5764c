// Log lines: "ts=... level=... key=value ..." (logfmt) on standard error.
#ifndef ATTENTION_SERVER_LOGGING_H_
#define ATTENTION_SERVER_LOGGING_H_

#include <spdlog/logger.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/strings/string_view.h"

namespace attention::server {

struct LogSettings {
  // Least severity written, a log_level of Options.
  std::string level = "info";
  // Of lines that wait to be written, Options::log_buffer_bytes.
  int64_t buffer_bytes = int64_t{1} << 20;
  // Not owned; open until the process ends.
  int fd = 2;
};

// A logger that neither blocks nor fails its callers: lines go through a
// LineWriter, which drops them when nobody reads, and tells of it later by a
// line "event=log_dropped count=N". Thread-safe; logging never throws, so it
// may be called from destructors and when memory is out: a line that cannot be
// formatted is dropped and counted too. That holds for what spdlog does; text
// built by the caller is the caller's: log("key={}", value), not
// log(StrCat("key=", value)).
//
// The last reference to it flushes, for a bounded time (LineWriter).
//
// Throws std::bad_alloc or std::system_error if there is no memory or thread.
std::shared_ptr<spdlog::logger> MakeLogger(const LogSettings& settings);

// Lines that MakeLogger's `logger` dropped since its start, for metrics.
// Thread-safe.
int64_t LogLinesDropped(const spdlog::logger& logger) noexcept;

// `text` as a logfmt value: quoted, on one line.
std::string Quoted(absl::string_view text);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_LOGGING_H_
