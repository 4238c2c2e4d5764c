// Every setting of the server.
#ifndef ATTENTION_SERVER_OPTIONS_H_
#define ATTENTION_SERVER_OPTIONS_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "kernel/attention.h"
#include "sessions/lease_clock.h"

namespace attention::server {

// A member's flag is its name with dashes; ranges are inclusive.
struct Options {
  // What it serves on.

  // Addresses: "host:port" (port 0 takes a free one), "[ip6]:port",
  // "unix:path", "unix-abstract:name". At least one, none twice. Default: one
  // of loopback only.
  std::vector<std::string> listen = {"127.0.0.1:50051"};

  // Address of the HTTP listener with a page at /, calls at /v1/ and /v2,
  // /metrics, /livez and /readyz: "host:port" (port 0 takes a free one) or
  // "[ip6]:port". Default, empty: none. It has no encryption. Calls need a
  // token where `tokens` are given; the rest is open to all and tells how busy
  // the server is, so name one that only those who may know that can reach.
  std::string http_listen;

  // Permissions of the files of Unix sockets, [0, 0777]; an abstract one has
  // none. Default: 0777 without what the umask takes away. Only who may write
  // to the file can connect.
  std::optional<uint32_t> unix_socket_mode;

  // Unix socket where clients on this machine share memory with the server, so
  // that tensors need not travel: "unix:/path". Default, empty: none. Who may
  // connect is unix_socket_mode's to say. Memory that a client shares and has
  // not touched is allocated when the server touches it, and may then count as
  // the server's.
  std::string shared_memory;

  // Who may call.

  // PEM files of the server's certificate, with those between it and a root
  // certificate, and of its key, without a password. Both or none; with them
  // all of TCP is encrypted, and Unix sockets are not. Read again when they
  // change; open connections go on.
  std::string tls_cert;
  std::string tls_key;
  // PEM file of root certificates: a client then needs a certificate that one
  // of them vouches for. Needs tls_cert. Default, empty: none.
  std::string tls_client_ca;
  // File with a line per token (server/auth/token_file.h): its SHA-256, its
  // tenant, and what that tenant may take. Every call then needs one of these
  // tokens. Read again when it changes. Default, empty: everybody may call.
  std::string tokens;
  // Whether health may be asked for without a token: for balancers and probes
  // that have none. Tells everybody whether the server runs.
  bool open_health = false;
  // Whether --listen and --http-listen may name addresses that other machines
  // can reach, without encryption: whoever is on the way can then read tokens
  // and tensors, and change them.
  bool allow_plaintext = false;

  // What it may use.

  // Threads that compute, [1, 1024]; default: the machine's cores. Fewer leave
  // room for others on the machine.
  int64_t threads = DefaultThreads();
  // Largest request and response message, bytes, [1024, 2^31 - 1 - 2^20], the
  // most that protobuf can carry. The default holds one layer's keys and values
  // of 32768 tokens, 8 heads of 128 in float32 (256 MiB) with their query.
  int64_t max_request_bytes = int64_t{320} << 20;
  int64_t max_response_bytes = int64_t{320} << 20;
  // Largest message of a stream after its header, bytes, [1024, 2^31 - 1 -
  // 2^20]. A stream holds two of them. Larger ones gain nothing; raise it where
  // one token of all sequences, which must fit in, is larger.
  int64_t max_chunk_bytes = int64_t{8} << 20;
  // Bytes that all calls together make the server hold: requests as they were
  // received and as tensors, answers, and what computing takes beside. At least
  // two largest requests and one answer, at most 2^50. Calls wait, unread, for
  // memory to become free, or are refused (RESOURCE_EXHAUSTED, RetryInfo), so
  // that no load can exhaust memory. Raise it on a machine with much memory and
  // many clients.
  int64_t max_inflight_bytes = int64_t{2} << 30;
  // Connections open at once, from all listeners, [1, what MostConnections() in
  // server/connections/limits.h says]. At the limit new ones wait in the
  // system's queue until others close. The default leaves descriptors in
  // reserve and is 10 000 at most. Raise it, with the limit of descriptors
  // (`ulimit -n`, LimitNOFILE=), for more clients; an idle connection costs
  // about 18 KiB.
  int64_t max_connections = DefaultConnections();
  // Unused memory kept for the next requests, bytes, [0, 2^50]. Saves the cost
  // of fresh pages, which is above that of copying into them; costs this much
  // resident memory while idle.
  int64_t max_pooled_bytes = int64_t{512} << 20;

  // Bytes that all clients together may share by shared_memory, [1 MiB, 2^50];
  // one connection may share half of them. They take address space, not memory
  // beside the clients' own, unless those share what they never touched. Raise
  // it for clients whose keys and values are large.
  int64_t max_shared_bytes = int64_t{8} << 30;

  // HTTP connections at once, [1, 10000]. When one more comes, the one that has
  // gone longest without finishing a request is closed. The default is 64, or
  // less where descriptors are few. Raise it for many scrapers and probes; each
  // costs a descriptor, which max_connections must then leave, and at most some
  // 150 KiB: the page is the largest answer.
  int64_t http_max_connections = DefaultHttpConnections();
  // How long an HTTP client may take from connecting, or from its answer
  // before, to the end of its answer, [100 ms, 1 h]. Raise it to keep
  // connections open between rare scrapes; slow clients then hold theirs as
  // long.
  absl::Duration http_timeout = absl::Seconds(10);
  // Largest body of a request over HTTP, and largest answer, counted as the
  // message that gRPC would send, bytes, [1 KiB, 1 GiB]; of bodies, a fortieth
  // of max_inflight_bytes where that is less. What they hold is part of that
  // budget: reading a body takes up to 10 times its size for a moment. Raise it
  // for large tensors over HTTP.
  int64_t http_max_body_bytes = int64_t{8} << 20;
  // Origins whose pages may call over HTTP from a browser ("https://a.example",
  // or "*" for all), as CORS has them. None: only pages of this server's own.
  std::vector<std::string> http_allow_origins;

  // What sessions may hold.

  // Bytes of keys and values of all sessions, [0, 2^50]; beyond them what would
  // add tokens is refused. They are kept beside max_inflight_bytes. Raise it on
  // a machine with much memory.
  int64_t max_session_bytes = int64_t{1} << 30;
  // Sessions of all callers, [0, 2^20]; each takes some 200 bytes a layer.
  int64_t max_sessions = int64_t{1} << 16;
  // Longest lease that a session may ask for, [1 s, 24 d]: how long the keys of
  // a client that has vanished take memory.
  absl::Duration max_session_lease = absl::Hours(1);

  // What one call may ask for.

  // Shapes can ask for much with few bytes: these bound what they cost. More is
  // INVALID_ARGUMENT; GetCapabilities tells them. kernel/attention.h says what
  // each bounds.

  // Largest head size of query, key and value, [1, 2^20]. The default is above
  // what any model has. For it a thread takes about 20 MiB of working memory,
  // 40 in FLOAT64, and stays some 10 ms at a block of keys before others get
  // their turn. Both grow with it.
  int64_t max_head_size = AttentionLimits().head_size;
  // Most query heads, [1, 2^20].
  int64_t max_heads = AttentionLimits().heads;
  // Largest batch or number of ragged sequences, [1, 2^20 - 1]. A call's
  // lengths are read and checked in one step; the default keeps it to
  // milliseconds.
  int64_t max_batch = AttentionLimits().batch;
  // Most batch entries or sequences times key/value heads, [1, 2^24]. Each
  // takes some 100 bytes and a microsecond, however short.
  int64_t max_batch_heads = AttentionLimits().batch_heads;
  // Most work of one call, in multiply-adds, [1, 2^62]. The default takes a
  // thread about ten minutes at 60 * 10^9 per second, as long as
  // default_deadline: more would be for nothing on a busy server. 32768 tokens
  // of 8 heads of 128 are a fourteenth of it. Raise it for longer sequences on
  // machines with many threads.
  int64_t max_work = int64_t{1} << 45;

  // What callers may take.

  // How much work may stand before a call, as time, [0 s, 24 h]. A call that
  // would wait longer, or would miss its deadline, is refused at once
  // (RESOURCE_EXHAUSTED, RetryInfo): an answer that comes too late has cost as
  // much as one in time. Lower it where callers have other servers to go to.
  absl::Duration max_queue = absl::Seconds(2);
  // The deadline of calls that come without one, [1 s, 24 h]. Bounds how long a
  // caller that has vanished can hold memory.
  absl::Duration default_deadline = absl::Minutes(10);
  // Slowest upload and slowest taking of an answer that are borne, bytes per
  // second, [1, 2^40]: whoever is slower, over stall_grace, loses the call.
  // Lower them for callers behind thin lines.
  int64_t min_upload_rate = int64_t{64} << 10;
  int64_t min_answer_rate = int64_t{64} << 10;
  // How long an upload or an answer may stand still, [100 ms, 1 h].
  absl::Duration stall_grace = absl::Seconds(10);

  // How long a new connection may take until HTTP/2's SETTINGS have come,
  // [1 ms, 1 h]. Cuts peers that connect and say nothing. Raise it for clients
  // behind very slow links; each silent peer then holds a connection for
  // longer.
  absl::Duration handshake_timeout = absl::Seconds(10);
  // How long a connection may have no call, [1 ms, 24 d], or infinite. Those
  // that are idle for longer take the place of others; a gRPC client connects
  // again by itself with its next call, in about a millisecond.
  absl::Duration max_connection_idle = absl::Minutes(10);
  // How long a connection may be used, [1 ms, 24 d], or infinite; gRPC varies
  // it by 10 %. Its client is then told to connect anew (GOAWAY), and what runs
  // may go on for the grace, [1 ms, 24 d] or infinite, before it is cut. By
  // default there is no end: set one, such as 30 min, where a balancer should
  // spread clients over servers that were added later.
  absl::Duration max_connection_age = absl::InfiniteDuration();
  absl::Duration max_connection_age_grace = absl::Minutes(10);

  // Largest headers of a call, bytes, [8 KiB, 1 MiB], counted as HTTP/2 does:
  // name, value and 32 for each. Larger ones end their own call
  // (RESOURCE_EXHAUSTED) up to kHeaderSlack times as much, and beyond that, by
  // gRPC, their connection. Raise it for clients with long tokens; costs this
  // much memory for each call.
  int64_t max_header_bytes = int64_t{64} << 10;
  // Least time between the pings of a client, [0 s, 1 h]; pings that come
  // faster end its connection (GOAWAY, "too_many_pings"). The default bears a
  // ping per 5 s, also where the network shortens the time between two of them.
  // Lower it for clients that ping more often; costs an answer for each ping.
  absl::Duration min_ping_interval = absl::Seconds(4);

  // How it behaves.

  // How long a signal to stop shows in health alone, while all is served as
  // before, [0 s, 1 h]. Clients of gRPC need none: they are told to leave, and
  // lose no call. Raise it behind a balancer that polls health, above the time
  // it takes to notice; a stop then takes this much longer.
  absl::Duration drain_delay = absl::ZeroDuration();
  // How long running calls may go on after that, [0 s, 1 h]. Raise it above
  // the longest call; whoever supervises the process must wait as long.
  absl::Duration shutdown_grace = absl::Seconds(30);
  // Least severity logged: "trace", "debug", "info", "warning", "error", "off".
  // A line for each failed request is info, for each good one debug.
  std::string log_level = "info";
  // Log lines that may wait for whoever reads standard error, bytes, [64 KiB,
  // 1 GiB]; what comes when they are full is dropped and counted. The default
  // holds about 4000 lines, which bridges a pause of the reader. Raise it where
  // it pauses for longer; costs this much memory once the reader has paused.
  int64_t log_buffer_bytes = int64_t{1} << 20;
  // Lines logged per second for each kind of failed request, [0, 10^6]; how
  // many more there were is told. 0 logs them all. The default shows each kind
  // while one client that fails in a loop cannot bury the others. Raise it to
  // look into single calls; costs time of the log's reader and place on its
  // disk.
  int64_t log_lines_per_second = 10;

  // No flag: whether all memory of the process is the server's, as in the
  // program. Then admission also counts what gRPC has really allocated, beyond
  // what it was charged for.
  bool own_process = false;
  // No flag: what leases of sessions run on; never null. Tests have their own.
  std::shared_ptr<const LeaseClock> lease_clock =
      std::make_shared<const LeaseClock>();
  // No flag: how often files are looked at that are read again.
  absl::Duration reload_interval = absl::Seconds(1);

  // gRPC itself bounds headers to so many times max_header_bytes.
  static constexpr int64_t kHeaderSlack = 4;

  AttentionLimits kernel_limits() const;

  static int64_t DefaultThreads();
  static int64_t DefaultConnections();
  static int64_t DefaultHttpConnections();
};

// One line for each setting that is out of its range, beginning with the flag's
// name ("--threads: got 0, wanted 1 to 1024"). Empty if all is well.
std::vector<std::string> Validate(const Options& options);

}  // namespace attention::server

#endif  // ATTENTION_SERVER_OPTIONS_H_
