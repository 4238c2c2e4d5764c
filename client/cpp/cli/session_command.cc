#include "client/cpp/cli/session_command.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "attention/client.h"
#include "attention/session.h"
#include "attention/status.h"
#include "attention/tensor.h"
#include "client/cpp/cli/tensor_argument.h"
#include "client/cpp/cli/tensor_flags.h"

namespace attention::cli {
namespace {

// Makes a client and hands it to `call`, whose status is that of the verb.
template <typename Call>
ExitCode WithClient(const SessionFlags& flags, std::ostream& err,
                    const Call& call) {
  const absl::StatusOr<Connection> connection =
      Connect(flags.server, flags.connection);
  if (!connection.ok()) return BadInput(connection.status(), err);
  const Client client(*connection);
  const absl::Status status = call(client);
  if (status.ok()) return kSuccess;
  err << "attention_client: " << Describe(status) << "\n";
  return ExitCodeOf(status);
}

absl::Duration DurationOf(const google::protobuf::Duration& duration) {
  return absl::Seconds(duration.seconds()) +
         absl::Nanoseconds(duration.nanos());
}

// "59.9s"; 0s where it is over.
std::string ExpiresIn(const v1::Session& session) {
  const absl::Time expires =
      absl::FromUnixSeconds(session.expire_time().seconds()) +
      absl::Nanoseconds(session.expire_time().nanos());
  return absl::FormatDuration(
      std::max(absl::ZeroDuration(),
               absl::Trunc(expires - absl::Now(), absl::Milliseconds(100))));
}

// "7", or "3-7" where layers differ.
std::string LengthRange(const v1::Session& session) {
  const auto& lengths = session.lengths();
  if (lengths.empty()) return "0";
  const auto [least, most] =
      std::minmax_element(lengths.begin(), lengths.end());
  return *least == *most ? absl::StrCat(*least)
                         : absl::StrCat(*least, "-", *most);
}

// "7", or "3,7" where they differ.
std::string Joined(const google::protobuf::RepeatedField<int64_t>& numbers) {
  const bool alike =
      std::all_of(numbers.begin(), numbers.end(),
                  [&](int64_t number) { return number == numbers[0]; });
  if (alike) return absl::StrCat(numbers.empty() ? 0 : numbers[0]);
  return absl::StrJoin(numbers, ",");
}

// Lines about windows, if there are any.
std::string Windows(const v1::Session& session) {
  const v1::SessionConfig& config = session.config();
  if (config.retain_window().empty()) return "";
  return absl::StrCat("\nretain window    ", Joined(config.retain_window()),
                      "\nrollback tokens  ", config.rollback_tokens(),
                      "\nfirst token      ", Joined(session.first_tokens()),
                      "\nleast length     ", Joined(session.least_lengths()));
}

// The error that the server would give had it been asked.
absl::Status CheckLength(const ClientSession& session,
                         const SessionFlags& flags) {
  const int64_t length = session.length(flags.layer);
  if (!flags.expected_length || length < 0 ||
      length == *flags.expected_length) {
    return absl::OkStatus();
  }
  return absl::AbortedError(absl::StrCat(
      "layer ", flags.layer, ": got ", length,
      " tokens, wanted --expected-length=", *flags.expected_length));
}

struct AttendTargets {
  std::optional<TensorTarget> output;
  std::optional<TensorTarget> log_sum_exp;
  std::optional<TensorTarget> scores;
};

absl::Status ReadTargets(const SessionFlags& flags, v1::DataType type,
                         AttendTargets& targets) {
  for (const absl::Status& status :
       {ReadTargetFlag("--output", flags.output_file, "output", type,
                       targets.output),
        ReadTargetFlag("--log-sum-exp-output", flags.log_sum_exp_file,
                       "log_sum_exp", v1::DATA_TYPE_FLOAT32,
                       targets.log_sum_exp),
        ReadTargetFlag("--scores-output", flags.scores_file, "scores", type,
                       targets.scores)}) {
    if (!status.ok()) return status;
  }
  return CheckApart({{"--output", targets.output},
                     {"--log-sum-exp-output", targets.log_sum_exp},
                     {"--scores-output", targets.scores}});
}

struct AttendInputs {
  Tensor query;
  std::optional<Tensor> mask;
  std::optional<Tensor> indices;
  std::optional<Tensor> row_sinks;
};

absl::Status ReadAttendInputs(const SessionFlags& flags, AttendInputs& inputs,
                              AttendTargets& targets) {
  absl::Status status = CheckStandardInput({{"--query", flags.query},
                                            {"--mask", flags.mask},
                                            {"--indices", flags.indices},
                                            {"--row-sinks", flags.row_sinks}});
  if (status.ok()) {
    status = ReadTensorFlag("--query", flags.query, flags.literal_type,
                            inputs.query);
  }
  if (status.ok()) {
    status = ReadTensorFlag("--mask", flags.mask, v1::DATA_TYPE_FLOAT32,
                            inputs.mask);
  }
  if (status.ok()) {
    status = ReadTensorFlag("--indices", flags.indices, v1::DATA_TYPE_INT64,
                            inputs.indices);
  }
  if (status.ok()) {
    status = ReadTensorFlag("--row-sinks", flags.row_sinks,
                            v1::DATA_TYPE_FLOAT32, inputs.row_sinks);
  }
  if (status.ok()) status = ReadTargets(flags, inputs.query.type(), targets);
  return status;
}

}  // namespace

ExitCode RunSessionCreate(const SessionFlags& flags, std::ostream& out,
                          std::ostream& err) {
  return WithClient(flags, err, [&](const Client& client) {
    const auto session = client.CreateSession(flags.config, flags.id,
                                              {.timeout = flags.timeout});
    if (session.ok()) out << OneLine(session->id()) << "\n";
    return session.status();
  });
}

ExitCode RunSessionAppend(const SessionFlags& flags, std::ostream& out,
                          std::ostream& err) {
  TensorInput key;
  std::optional<TensorInput> value;
  absl::Status status =
      CheckStandardInput({{"--key", flags.key}, {"--value", flags.value}});
  if (status.ok()) {
    status = ReadTensorFlag("--key", flags.key, flags.literal_type, key);
  }
  if (status.ok()) {
    status = ReadTensorFlag("--value", flags.value, flags.literal_type, value);
  }
  if (!status.ok()) return BadInput(status, err);
  return WithClient(flags, err, [&](const Client& client) -> absl::Status {
    const CallOptions options{.timeout = flags.tensor_timeout};
    auto session = client.OpenSession(flags.id, options);
    if (!session.ok()) return session.status();
    absl::Status expected = CheckLength(*session, flags);
    if (!expected.ok()) return expected;
    std::optional<TensorSpan> values;
    if (value) values = value->span();
    const auto length =
        session->Append(flags.layer, key.span(), values, options);
    if (length.ok()) out << *length << "\n";
    return length.status();
  });
}

ExitCode RunSessionAttend(const SessionFlags& flags, std::ostream& out,
                          std::ostream& err) {
  AttendInputs inputs;
  AttendTargets targets;
  absl::Status status = ReadAttendInputs(flags, inputs, targets);
  if (!status.ok()) return BadInput(status, err);
  AttendOptions attend;
  if (inputs.mask) attend.mask = *inputs.mask;
  if (inputs.indices) attend.indices = *inputs.indices;
  if (inputs.row_sinks) attend.sinks = *inputs.row_sinks;
  attend.options = flags.options;
  attend.not_causal = flags.not_causal;
  AttendResult result;
  const ExitCode code =
      WithClient(flags, err, [&](const Client& client) -> absl::Status {
        const CallOptions options{.timeout = flags.tensor_timeout};
        const auto session = client.OpenSession(flags.id, options);
        if (!session.ok()) return session.status();
        absl::Status expected = CheckLength(*session, flags);
        if (!expected.ok()) return expected;
        auto attended =
            session->Attend(flags.layer, inputs.query, attend, options);
        if (!attended.ok()) return attended.status();
        result = *std::move(attended);
        return absl::OkStatus();
      });
  if (code != kSuccess) return code;
  Delivery delivery(/*labelled=*/result.log_sum_exp || result.scores, out);
  delivery.Add("output", result.output, targets.output);
  delivery.Add("log_sum_exp", result.log_sum_exp, targets.log_sum_exp);
  delivery.Add("scores", result.scores, targets.scores);
  status = delivery.WriteFiles();
  return status.ok() ? kSuccess : BadInput(status, err);
}

ExitCode RunSessionFork(const SessionFlags& flags, std::ostream& out,
                        std::ostream& err) {
  return WithClient(flags, err, [&](const Client& client) {
    v1::ForkSessionsRequest request;
    v1::ForkSessionsRequest::Fork& fork = *request.add_forks();
    fork.set_source(flags.id);
    fork.set_target(flags.target);
    const auto sessions =
        client.ForkSessions(request, {.timeout = flags.timeout});
    if (sessions.ok()) out << OneLine(sessions->front().id()) << "\n";
    return sessions.status();
  });
}

ExitCode RunSessionTruncate(const SessionFlags& flags, std::ostream& /*out*/,
                            std::ostream& err) {
  return WithClient(flags, err, [&](const Client& client) {
    const CallOptions options{.timeout = flags.timeout};
    auto session = client.OpenSession(flags.id, options);
    if (!session.ok()) return session.status();
    return session->Truncate(flags.length, options);
  });
}

ExitCode RunSessionDelete(const SessionFlags& flags, std::ostream& /*out*/,
                          std::ostream& err) {
  return WithClient(flags, err, [&](const Client& client) {
    return client.DeleteSession(flags.id, {.timeout = flags.timeout});
  });
}

ExitCode RunSessionList(const SessionFlags& flags, std::ostream& out,
                        std::ostream& err) {
  return WithClient(flags, err, [&](const Client& client) {
    const auto sessions = client.ListSessions({.timeout = flags.timeout});
    if (!sessions.ok()) return sessions.status();
    size_t width = 2;
    for (const v1::Session& session : *sessions) {
      width = std::max(width, session.id().size());
    }
    const int columns = static_cast<int>(width);
    out << absl::StrFormat("%-*s  %6s  %12s  %s\n", columns, "id", "layers",
                           "tokens", "expires in");
    for (const v1::Session& session : *sessions) {
      out << absl::StrFormat("%-*s  %6d  %12s  %s\n", columns,
                             OneLine(session.id()),
                             session.config().num_layers(),
                             LengthRange(session), ExpiresIn(session));
    }
    return absl::OkStatus();
  });
}

ExitCode RunSessionShow(const SessionFlags& flags, std::ostream& out,
                        std::ostream& err) {
  return WithClient(flags, err, [&](const Client& client) {
    const auto session =
        client.GetSession(flags.id, {.timeout = flags.timeout});
    if (!session.ok()) return session.status();
    const v1::SessionConfig& config = session->config();
    out << "id               " << OneLine(session->id())
        << "\nlayers           " << config.num_layers() << "\nkv heads         "
        << config.kv_heads() << "\nhead size        " << config.head_size()
        << "\nvalue head size  " << config.value_head_size()
        << (config.value_is_key_prefix() ? ", the first of the key" : "")
        << "\ntype             " << TypeName(config.data_type())
        << "\ntokens           " << Joined(session->lengths())
        << Windows(*session) << "\nlease            "
        << absl::FormatDuration(DurationOf(config.lease()))
        << "\nexpires in       " << ExpiresIn(*session) << "\n";
    return absl::OkStatus();
  });
}

}  // namespace attention::cli
