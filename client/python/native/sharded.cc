#include "client/python/native/sharded.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <unistd.h>

#include <functional>
#include <stdexcept>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "attention/client.h"
#include "attention/v1/session.pb.h"
#include "client/python/native/core.h"
#include "client/python/native/gil.h"
#include "client/python/native/lent_request.h"
#include "client/python/native/outcome.h"

namespace attention::python {

namespace nb = nanobind;

namespace {

nb::object FailureOr(const absl::Status& status) {
  if (status.ok()) return nb::none();
  return nb::cast(Failure{status});
}

ComputeResult ResultOf(ShardedResult result) {
  ComputeResult computed;
  computed.output = std::move(result.output);
  computed.log_sum_exp = std::move(result.log_sum_exp);
  computed.timing = result.timing;
  return computed;
}

}  // namespace

// Ends a call when a client is closed; as Core::server(), of all of them.
class Sharded::Stop {
 public:
  explicit Stop(const Servers& servers) {
    for (const auto& server : servers) {
      if (server->closing.stop_requested()) {
        throw std::invalid_argument("Cannot invoke RPC on closed channel!");
      }
      callbacks_.push_back(std::make_unique<Callback>(
          server->closing.get_token(), [this] { source_.request_stop(); }));
    }
  }
  CallOptions Options(double limit) const {
    return {.timeout = absl::Seconds(limit), .stop = source_.get_token()};
  }

 private:
  using Callback = std::stop_callback<std::function<void()>>;

  std::stop_source source_;
  std::vector<std::unique_ptr<Callback>> callbacks_;
};

Sharded::Sharded(Servers servers, ShardedSession session)
    : process_(getpid()),
      servers_(std::move(servers)),
      session_(std::make_unique<ShardedSession>(std::move(session))) {}

Sharded::~Sharded() {
  if (getpid() != process_) {
    // Without gRPC's threads its end could wait for ever: it has none.
    [[maybe_unused]] const auto* const kept = session_.release();
    return;
  }
  const WithoutGil without_gil;
  session_.reset();
}

nb::object Sharded::Make(const nb::list& cores,
                         const std::optional<nb::bytes>& config,
                         const std::string& id, int64_t blocks_per_run,
                         double limit) {
  Servers servers;
  std::vector<Client> clients;
  for (const nb::handle core : cores) {
    servers.push_back(nb::cast<Core&>(core).server());
    clients.emplace_back(servers.back()->connection);
  }
  v1::SessionConfig fields;
  if (config && !fields.ParseFromArray(config->c_str(),
                                       static_cast<int>(config->size()))) {
    throw std::invalid_argument("wanted a SessionConfig");
  }
  const ShardedOptions sharding = {.id = id, .blocks_per_run = blocks_per_run};
  absl::StatusOr<ShardedSession> session = absl::UnknownError("not made");
  {
    const WithoutGil without_gil;
    const Stop stop(servers);
    session =
        config ? ShardedSession::Create(clients, fields, sharding,
                                        stop.Options(limit))
               : ShardedSession::Open(clients, sharding, stop.Options(limit));
    clients.clear();
  }
  if (!session.ok()) return FailureOr(session.status());
  return nb::cast(new Sharded(std::move(servers), *std::move(session)),
                  nb::rv_policy::take_ownership);
}

std::vector<int64_t> Sharded::Lengths() const {
  std::vector<int64_t> lengths;
  lengths.reserve(static_cast<size_t>(session_->config().num_layers()));
  for (int64_t layer = 0; layer < session_->config().num_layers(); ++layer) {
    lengths.push_back(session_->length(layer));
  }
  return lengths;
}

std::vector<std::pair<int64_t, int64_t>> Sharded::TokensOf(
    int64_t shard, int64_t layer) const {
  std::vector<std::pair<int64_t, int64_t>> ranges;
  for (const TokenRange& range : session_->TokensOf(shard, layer)) {
    ranges.emplace_back(range.begin, range.end);
  }
  return ranges;
}

nb::object Sharded::Append(int64_t layer, const nb::tuple& key,
                           const nb::object& value, double limit) {
  // A request that has them twice, where a computation has other tensors.
  const bool has_value = !value.is_none();
  const LentRequest lent(
      nb::make_tuple(key, key, has_value ? value : nb::object(key), nb::none(),
                     nb::none(), nb::none(), nb::none(), nb::none()),
      nb::bytes("", 0));
  absl::StatusOr<int64_t> length;
  {
    const WithoutGil without_gil;
    const Stop stop(servers_);
    length = session_->Append(
        layer, lent.request().key,
        has_value ? std::optional(lent.request().value) : std::nullopt,
        stop.Options(limit));
  }
  if (!length.ok()) return FailureOr(length.status());
  return nb::int_(*length);
}

nb::object Sharded::Attend(int64_t layer, const nb::tuple& query,
                           const nb::object& mask, const nb::object& indices,
                           const nb::object& sinks, const nb::bytes& options,
                           bool not_causal, bool allow_missing,
                           double limit) const {
  const LentRequest lent(nb::make_tuple(query, query, query, mask, nb::none(),
                                        nb::none(), indices, sinks),
                         nb::bytes("", 0));
  ShardedAttendOptions attend;
  if (!attend.options.ParseFromArray(options.c_str(),
                                     static_cast<int>(options.size()))) {
    throw std::invalid_argument("wanted AttentionOptions");
  }
  attend.mask = lent.request().mask;
  attend.indices = lent.request().indices;
  attend.sinks = lent.request().sinks;
  attend.not_causal = not_causal;
  attend.allow_missing = allow_missing;
  absl::StatusOr<ShardedResult> result = absl::UnknownError("not attended");
  {
    const WithoutGil without_gil;
    const Stop stop(servers_);
    result = session_->Attend(layer, lent.request().query, attend,
                              stop.Options(limit));
  }
  if (!result.ok()) return FailureOr(result.status());
  nb::list missing;
  for (const TokenRange& range : result->missing) {
    missing.append(nb::make_tuple(range.begin, range.end));
  }
  return nb::make_tuple(OutcomeOf(ResultOf(*std::move(result)), 0), missing);
}

nb::object Sharded::Fork(const std::string& id, double limit) const {
  absl::StatusOr<ShardedSession> fork = absl::UnknownError("not made");
  {
    const WithoutGil without_gil;
    const Stop stop(servers_);
    fork = session_->Fork(id, stop.Options(limit));
  }
  if (!fork.ok()) return FailureOr(fork.status());
  return nb::cast(new Sharded(servers_, *std::move(fork)),
                  nb::rv_policy::take_ownership);
}

nb::object Sharded::Truncate(int64_t length, double limit) {
  absl::Status status;
  {
    const WithoutGil without_gil;
    const Stop stop(servers_);
    status = session_->Truncate(length, stop.Options(limit));
  }
  return FailureOr(status);
}

nb::object Sharded::Refresh(double limit) {
  absl::Status status;
  {
    const WithoutGil without_gil;
    const Stop stop(servers_);
    status = session_->Refresh(stop.Options(limit));
  }
  return FailureOr(status);
}

nb::object Sharded::Delete(double limit) {
  absl::Status status;
  {
    const WithoutGil without_gil;
    const Stop stop(servers_);
    status = session_->Delete(stop.Options(limit));
  }
  return FailureOr(status);
}

void DefineSharded(nb::module_& module) {
  nb::class_<Sharded>(module, "Sharded")
      .def_static("make", &Sharded::Make, nb::arg("cores"),
                  nb::arg("config").none(), nb::arg("id"),
                  nb::arg("blocks_per_run"), nb::arg("limit"))
      .def_prop_ro("ids", &Sharded::ids)
      .def_prop_ro("lengths", &Sharded::Lengths)
      .def("tokens_of", &Sharded::TokensOf)
      .def("append", &Sharded::Append, nb::arg("layer"), nb::arg("key"),
           nb::arg("value").none(), nb::arg("limit"))
      .def("attend", &Sharded::Attend, nb::arg("layer"), nb::arg("query"),
           nb::arg("mask").none(), nb::arg("indices").none(),
           nb::arg("sinks").none(), nb::arg("options"), nb::arg("not_causal"),
           nb::arg("allow_missing"), nb::arg("limit"))
      .def("fork", &Sharded::Fork)
      .def("truncate", &Sharded::Truncate)
      .def("refresh", &Sharded::Refresh)
      .def("delete", &Sharded::Delete);
}

}  // namespace attention::python
