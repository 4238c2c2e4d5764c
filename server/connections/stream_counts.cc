#include "server/connections/stream_counts.h"

#include <grpc/grpc.h>
#include <grpc/support/alloc.h>

#include <algorithm>
#include <memory>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "grpcpp/version_info.h"
#include "server/connections/percent.h"

namespace attention::server {
namespace {

// Sockets are listed no more often, and take one part in so many of the time.
constexpr absl::Duration kLessonInterval = absl::Milliseconds(100);
constexpr int kLessonShare = 20;
constexpr intptr_t kSocketsPerPage = 500;

// gRPC has bounded streams that are reset by itself since 1.58, and may take
// this interface away.
#if GRPC_CPP_VERSION_MAJOR == 1 && GRPC_CPP_VERSION_MINOR < 58

struct Free {
  void operator()(char* text) const { gpr_free(text); }
};
using Text = std::unique_ptr<char, Free>;

Text Servers(int64_t from) { return Text(grpc_channelz_get_servers(from)); }
Text ServerSockets(int64_t server, int64_t from) {
  return Text(grpc_channelz_get_server_sockets(server, from, kSocketsPerPage));
}
Text Socket(int64_t socket) { return Text(grpc_channelz_get_socket(socket)); }

#else

using Text = std::unique_ptr<char>;

Text Servers(int64_t) { return nullptr; }
Text ServerSockets(int64_t, int64_t) { return nullptr; }
Text Socket(int64_t) { return nullptr; }

#endif

// channelz answers in JSON without spaces, all its values are strings, and no
// name that is looked for here is part of a peer's text. The next value of
// `name`, and `rest` what follows it; nothing if there is none.
std::optional<absl::string_view> NextValue(absl::string_view name,
                                           absl::string_view& rest) {
  const std::string begin = "\"" + std::string(name) + "\":\"";
  const size_t found = rest.find(begin);
  if (found == absl::string_view::npos) return std::nullopt;
  rest.remove_prefix(found + begin.size());
  const absl::string_view value = rest.substr(0, rest.find('"'));
  rest.remove_prefix(value.size());
  return value;
}

std::optional<int64_t> NextNumber(absl::string_view name,
                                  absl::string_view& rest) {
  const auto value = NextValue(name, rest);
  int64_t number;
  if (!value || !absl::SimpleAtoi(*value, &number)) return std::nullopt;
  return number;
}

bool IsLastPage(absl::string_view json) {
  return absl::StrContains(json, "\"end\":true");
}

}  // namespace

std::optional<int64_t> StreamCounts::Started(const std::string& peer,
                                             absl::Time now) {
  auto found = sockets_.find(peer);
  if (found == sockets_.end() && now >= next_lesson_) {
    LearnSockets(now);
    found = sockets_.find(peer);
  }
  if (found == sockets_.end()) return std::nullopt;
  const Text text = Socket(found->second);
  if (!text) {  // Another connection may have the peer's port by now.
    sockets_.erase(found);
    return std::nullopt;
  }
  absl::string_view json(text.get());
  return NextNumber("streamsStarted", json).value_or(0);
}

void StreamCounts::LearnSockets(absl::Time now) {
  const absl::Time begin = absl::Now();
  sockets_.clear();
  bool last_server = false;
  for (int64_t server = 0; !last_server;) {
    const Text servers = Servers(server);
    if (!servers) break;
    absl::string_view json(servers.get());
    last_server = IsLastPage(json);
    while (const auto id = NextNumber("serverId", json)) {
      server = *id + 1;
      bool last = false;
      for (int64_t socket = 0; !last;) {
        const Text page = ServerSockets(*id, socket);
        if (!page) break;
        absl::string_view sockets(page.get());
        const int64_t first = socket;
        last = IsLastPage(sockets);
        // "chttp2 ipv4:127.0.0.1:54321", and its id after it.
        while (const auto name = NextValue("name", sockets)) {
          const auto socket_id = NextNumber("socketId", sockets);
          if (!socket_id) break;
          socket = *socket_id + 1;
          sockets_[PercentDecoded(name->substr(name->find(' ') + 1))] =
              *socket_id;
        }
        last = last || socket == first;
      }
    }
  }
  next_lesson_ =
      now + std::max(kLessonInterval, kLessonShare * (absl::Now() - begin));
}

}  // namespace attention::server
