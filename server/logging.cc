#include "server/logging.h"

#include <spdlog/details/log_msg.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/base_sink.h>

#include <mutex>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "server/line_writer.h"

namespace attention::server {
namespace {

constexpr char kName[] = "attention";

std::unique_ptr<spdlog::formatter> MakeFormatter() {
  return std::make_unique<spdlog::pattern_formatter>(
      "ts=%Y-%m-%dT%H:%M:%S.%fZ level=%l %v", spdlog::pattern_time_type::utc,
      /*eol=*/"");
}

absl::string_view View(const spdlog::memory_buf_t& text) {
  return {text.data(), text.size()};
}

// Called on the writer's thread alone.
std::string DroppedLine(spdlog::formatter& formatter, int64_t count) {
  const std::string text = absl::StrCat("event=log_dropped count=", count);
  spdlog::memory_buf_t line;
  formatter.format(spdlog::details::log_msg(kName, spdlog::level::warn, text),
                   line);
  return std::string(View(line));
}

// Formats on the caller's thread, under a lock that is never held while
// writing.
class LineSink final : public spdlog::sinks::base_sink<std::mutex> {
 public:
  explicit LineSink(const LogSettings& settings)
      : base_sink(MakeFormatter()),
        writer_(
            {.fd = settings.fd,
             .buffer_bytes = static_cast<size_t>(settings.buffer_bytes),
             .dropped_line = [formatter = std::shared_ptr<spdlog::formatter>(
                                  MakeFormatter())](int64_t count) {
               return DroppedLine(*formatter, count);
             }}) {
    // So that no line needs memory when there may be none.
    line_.reserve(2 * LineWriter::kMaxLineBytes);
  }

  LineWriter& writer() { return writer_; }
  const LineWriter& writer() const { return writer_; }

 private:
  void sink_it_(const spdlog::details::log_msg& message) override {
    line_.clear();
    formatter_->format(message, line_);
    writer_.Write(View(line_));
  }

  // The writer's thread needs no telling.
  void flush_() override {}

  spdlog::memory_buf_t line_;  // Guarded by base_sink's mutex_.
  LineWriter writer_;
};

}  // namespace

std::shared_ptr<spdlog::logger> MakeLogger(const LogSettings& settings) {
  auto sink = std::make_shared<LineSink>(settings);
  auto logger = std::make_shared<spdlog::logger>(kName, sink);
  logger->set_level(spdlog::level::from_str(settings.level));
  // Its own handler writes to stderr and waits for it.
  logger->set_error_handler(
      [sink](const std::string&) { sink->writer().CountDropped(); });
  return logger;
}

int64_t LogLinesDropped(const spdlog::logger& logger) noexcept {
  int64_t dropped = 0;
  for (const spdlog::sink_ptr& sink : logger.sinks()) {
    if (const auto* lines = dynamic_cast<const LineSink*>(sink.get())) {
      dropped += lines->writer().dropped();
    }
  }
  return dropped;
}

std::string Quoted(absl::string_view text) {
  return absl::StrCat("\"", absl::CEscape(text), "\"");
}

}  // namespace attention::server
