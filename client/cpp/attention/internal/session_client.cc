#include "attention/internal/session_client.h"

#include <algorithm>
#include <cstddef>
#include <optional>
#include <system_error>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "attention/internal/patience.h"
#include "attention/internal/retries.h"
#include "attention/internal/session_calls.h"
#include "attention/internal/session_messages.h"
#include "attention/internal/tensor_digest.h"
#include "attention/internal/tensor_message.h"
#include "attention/internal/unary_call.h"

namespace attention::internal {
namespace {

using Clock = SessionState::Clock;

// An append of more bytes is sent in several calls.
constexpr size_t kAppendBytes = size_t{8} << 20;
// The most items of a StepRequest.
constexpr size_t kMostItems = 1024;

absl::Status WithMessage(const absl::Status& status, const std::string& text) {
  absl::Status changed(status.code(), text);
  status.ForEachPayload([&](absl::string_view url, const absl::Cord& bytes) {
    changed.SetPayload(url, bytes);
  });
  return changed;
}

// The call with the message that `encode` writes with the call's lease.
template <typename Encode>
UnaryCall CallWith(absl::string_view name, const Encode& encode) {
  UnaryCall call;
  call.method = SessionMethod(name);
  grpc::ByteBuffer message = encode(call.lease);
  message.Swap(&call.message);
  message.Clear();
  call.message_bytes = call.message.Length();
  return call;
}

// One piece of an append, or all of it.
absl::StatusOr<int64_t> AppendPiece(const Connection& connection,
                                    const CallOptions& options,
                                    const LayerRequest& request,
                                    const std::optional<TokenRange>& range) {
  const absl::StatusOr<grpc::ByteBuffer> answer =
      RunUnaryTries(connection, Twice::kAppend, options, [&] {
        return CallWith("AppendKeyValues", [&](Lease& lease) {
          return range ? EncodeAppend(request, *range, lease)
                       : EncodeAppend(request, lease);
        });
      });
  if (!answer.ok()) return answer.status();
  v1::AppendKeyValuesResponse response;
  absl::Status status = Parse(*answer, &response);
  if (!status.ok()) return status;
  return response.length();
}

// The items of a step that are sent, and what each of them holds.
struct SentItems {
  std::vector<LayerRequest> requests;
  std::vector<size_t> numbers;
  // Nothing for those that do not append.
  std::vector<std::optional<LayerClaim>> claims;
};

absl::StatusOr<std::optional<LayerClaim>> ClaimFor(const StepItem& item,
                                                   SessionState& session) {
  absl::Status status = session.Check();
  if (!status.ok()) return status;
  if (!item.key) return std::nullopt;
  absl::StatusOr<LayerClaim> claim = LayerClaim::Of(session, item.layer);
  if (!claim.ok()) return claim.status();
  return std::optional<LayerClaim>(*std::move(claim));
}

const TensorSpan* PointerTo(const std::optional<TensorSpan>& tensor) {
  return tensor ? &*tensor : nullptr;
}

void AddItem(const StepItem& item, const SessionState& session,
             std::optional<LayerClaim> claim, SentItems& sent) {
  LayerRequest request{.id = session.id(),
                       .incarnation = session.incarnation(),
                       .layer = item.layer,
                       .key = PointerTo(item.key),
                       .value = PointerTo(item.value),
                       .query = PointerTo(item.query),
                       .attend = &item.attend};
  if (claim) {
    request.expected_length = claim->expected_length();
    request.request_id = claim->request_id();
  }
  sent.requests.push_back(std::move(request));
  sent.claims.push_back(std::move(claim));
}

}  // namespace

// What StartAttend() keeps: the caller's objects may be gone before the call
// ends, but not their memory.
struct KeptAttend {
  KeptAttend(const SessionState& session, int64_t layer,
             const TensorSpan& of_query, const AttendOptions& of_attend,
             const v1::Shard* of_shard)
      : query(of_query), attend(of_attend) {
    if (of_shard != nullptr) shard = *of_shard;
    request = {.id = session.id(),
               .incarnation = session.incarnation(),
               .layer = layer,
               .query = &query,
               .attend = &attend,
               .shard = of_shard == nullptr ? nullptr : &shard};
  }
  KeptAttend(const KeptAttend&) = delete;
  KeptAttend& operator=(const KeptAttend&) = delete;

  const TensorSpan query;
  const AttendOptions attend;
  v1::Shard shard;
  LayerRequest request;  // Refers to the others.
};

SessionClient::SessionClient(const Connection& connection)
    : connection_(connection), streams_(connection), renewer_(connection) {}

absl::StatusOr<ClientSession> SessionClient::Handle(
    const v1::Session& session) {
  auto state = std::make_shared<SessionState>(session);
  try {
    renewer_.Add(state);
  } catch (const std::system_error& error) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no thread to renew the session's lease: ", error.what()));
  }
  return ClientSession(shared_from_this(), std::move(state));
}

absl::StatusOr<ClientSession> SessionClient::Create(
    const v1::SessionConfig& config, const std::string& id,
    const CallOptions& options) {
  v1::CreateSessionRequest request;
  request.set_id(id);
  *request.mutable_config() = config;
  v1::CreateSessionResponse response;
  absl::Status status =
      Call(connection_, Twice::kHarmless, options,
           SessionMethod("CreateSession"), request, &response);
  if (!status.ok()) return status;
  return Handle(response.session());
}

absl::StatusOr<v1::Session> SessionClient::Get(const std::string& id,
                                               uint64_t incarnation,
                                               const CallOptions& options) {
  v1::GetSessionRequest request;
  request.set_id(id);
  request.set_incarnation(incarnation);
  v1::GetSessionResponse response;
  absl::Status status = Call(connection_, Twice::kHarmless, options,
                             SessionMethod("GetSession"), request, &response);
  if (!status.ok()) return status;
  return std::move(*response.mutable_session());
}

absl::StatusOr<ClientSession> SessionClient::Open(const std::string& id,
                                                  const CallOptions& options) {
  const absl::StatusOr<v1::Session> session =
      Get(id, /*incarnation=*/0, options);
  if (!session.ok()) return session.status();
  return Handle(*session);
}

absl::StatusOr<std::vector<v1::Session>> SessionClient::List(
    const CallOptions& options) {
  const absl::Time begin = absl::Now();
  std::vector<v1::Session> sessions;
  v1::ListSessionsRequest request;
  while (true) {
    v1::ListSessionsResponse page;
    absl::Status status =
        Call(connection_, Twice::kHarmless, InTimeLeft(options, begin),
             SessionMethod("ListSessions"), request, &page);
    if (!status.ok()) return status;
    for (v1::Session& session : *page.mutable_sessions()) {
      sessions.push_back(std::move(session));
    }
    if (page.next_page_token().empty()) return sessions;
    request.set_page_token(page.next_page_token());
  }
}

absl::StatusOr<std::vector<ClientSession>> SessionClient::Fork(
    const v1::ForkSessionsRequest& request, const CallOptions& options) {
  v1::ForkSessionsResponse response;
  absl::Status status = Call(connection_, Twice::kHarmful, options,
                             SessionMethod("ForkSessions"), request, &response);
  if (!status.ok()) return status;
  if (response.sessions_size() != request.forks_size()) {
    return MalformedAnswer(absl::InternalError(
        absl::StrCat("got ", response.sessions_size(), " sessions, wanted ",
                     request.forks_size(), ", one for each fork")));
  }
  std::vector<ClientSession> sessions;
  for (const v1::Session& session : response.sessions()) {
    absl::StatusOr<ClientSession> handle = Handle(session);
    if (!handle.ok()) return handle.status();
    sessions.push_back(*std::move(handle));
  }
  return sessions;
}

absl::Status SessionClient::Delete(const std::string& id, uint64_t incarnation,
                                   const CallOptions& options) {
  v1::DeleteSessionRequest request;
  request.set_id(id);
  request.set_incarnation(incarnation);
  v1::DeleteSessionResponse response;
  return Call(connection_, Twice::kHarmless, options,
              SessionMethod("DeleteSession"), request, &response);
}

absl::StatusOr<std::vector<ClientSession>> SessionClient::Fork(
    SessionState& session, const v1::ForkSessionsRequest& request,
    const CallOptions& options) {
  absl::Status status = session.Check();
  if (!status.ok()) return status;
  const Clock::time_point begun = Clock::now();
  absl::StatusOr<std::vector<ClientSession>> made = Fork(request, options);
  session.CallEnded(made.status(), begun);
  return made;
}

absl::Status SessionClient::Delete(SessionState& session,
                                   const CallOptions& options) {
  // A session with the same id would be another.
  if (!session.Check().ok()) return absl::OkStatus();
  absl::Status status = Delete(session.id(), session.incarnation(), options);
  if (status.ok()) session.Deleted();
  return status;
}

absl::StatusOr<int64_t> SessionClient::Append(SessionState& session,
                                              int64_t layer,
                                              const TensorSpan& key,
                                              const TensorSpan* value,
                                              const CallOptions& options) {
  absl::StatusOr<LayerClaim> claim = LayerClaim::Of(session, layer);
  if (!claim.ok()) return claim.status();
  LayerRequest request{.id = session.id(),
                       .incarnation = session.incarnation(),
                       .layer = layer,
                       .key = &key,
                       .value = value};
  const absl::Time begin = absl::Now();
  const auto ranges = RangesOf(key, value, kAppendBytes);
  const int64_t tokens = ranges.back().end;
  // The same tokens again go on where they ended.
  const std::optional<UnfinishedAppend> before = claim->unfinished();
  const bool again = before && before->tokens == tokens &&
                     before->digest == DigestOf(key, value);
  absl::StatusOr<int64_t> length = 0;
  for (const TokenRange& range : ranges) {
    if (again && range.end <= before->done) continue;
    const Clock::time_point begun = Clock::now();
    request.expected_length = claim->expected_length();
    request.request_id = claim->request_id();
    length =
        AppendPiece(connection_, InTimeLeft(options, begin), request,
                    ranges.size() == 1 ? std::nullopt : std::optional(range));
    session.CallEnded(length.status(), begun);
    if (!length.ok()) {
      if (range.begin == 0) return length;
      claim->LeaveUnfinished({.digest = DigestOf(key, value),
                              .tokens = tokens,
                              .done = range.begin});
      return WithMessage(
          length.status(),
          absl::StrCat(length.status().message(), "; the first ", range.begin,
                       " of ", tokens, " tokens were appended"));
    }
    claim->Appended(*length);
    if (options.progress && ranges.size() > 1) {
      const auto total = static_cast<int64_t>(
          key.bytes.size() + (value == nullptr ? 0 : value->bytes.size()));
      options.progress(total / tokens * range.end, total);
    }
  }
  return length;
}

std::vector<StepOutcome> SessionClient::Exchange(
    std::span<const LayerRequest> items, const CallOptions& options) {
  const absl::Time begin = absl::Now();
  std::vector<StepOutcome> outcomes = ExchangeOnce(items, options);
  std::vector<size_t> failed;  // The items of the last message that did.
  for (size_t i = 0; i < items.size(); ++i) {
    if (!outcomes[i].result.ok()) failed.push_back(i);
  }
  if (failed.empty()) return outcomes;
  std::vector<Retries> retries(
      items.size(), Retries(Twice::kAppend, connection_.max_attempts()));
  const Patience patience{begin + options.timeout, options.stop,
                          options.interrupted};
  while (true) {
    // Those that are tried again go together.
    std::vector<size_t> numbers;
    std::vector<LayerRequest> again;
    absl::Duration longest;
    for (const size_t i : failed) {
      const std::optional<absl::Duration> pause =
          retries[i].PauseAfter(outcomes[i].result.status(), patience.deadline);
      if (!pause) continue;
      longest = std::max(longest, *pause);
      numbers.push_back(i);
      again.push_back(items[i]);
    }
    if (again.empty()) return outcomes;
    if (!patience.Sleep(longest)) {
      if (absl::Now() >= patience.deadline) return outcomes;
      for (const size_t i : numbers) {
        outcomes[i] = StepOutcome{.result = CancelledInPause()};
      }
      return outcomes;
    }
    std::vector<StepOutcome> answered =
        ExchangeOnce(again, InTimeLeft(options, begin));
    failed.clear();
    for (size_t i = 0; i < again.size(); ++i) {
      outcomes[numbers[i]] = std::move(answered[i]);
      if (!outcomes[numbers[i]].result.ok()) failed.push_back(numbers[i]);
    }
  }
}

std::vector<StepOutcome> SessionClient::ExchangeOnce(
    std::span<const LayerRequest> items, const CallOptions& options) {
  UnaryCall call =
      CallWith("Step", [&](Lease& lease) { return EncodeStep(items, lease); });
  const UnaryAnswer answer = streams_.Run(options, call);
  absl::StatusOr<std::vector<StepOutcome>> outcomes =
      answer.status.ok() ? DecodeStep(answer.message, items) : answer.status;
  if (outcomes.ok()) return *std::move(outcomes);
  return {items.size(), StepOutcome{.result = outcomes.status()}};
}

absl::StatusOr<AttendResult> SessionClient::Attend(SessionState& session,
                                                   int64_t layer,
                                                   const TensorSpan& query,
                                                   const AttendOptions& attend,
                                                   const CallOptions& options) {
  absl::Status status = session.Check();
  if (!status.ok()) return status;
  const LayerRequest request{.id = session.id(),
                             .incarnation = session.incarnation(),
                             .layer = layer,
                             .query = &query,
                             .attend = &attend};
  const Clock::time_point begun = Clock::now();
  // A step that does not append: half the time of a call of its own.
  StepOutcome outcome = std::move(Exchange({&request, 1}, options).front());
  session.CallEnded(outcome.done ? absl::OkStatus() : outcome.result.status(),
                    begun);
  return std::move(outcome.result);
}

void SessionClient::AttendAsync(
    const std::shared_ptr<SessionState>& session, int64_t layer,
    const TensorSpan& query, const AttendOptions& attend,
    const CallOptions& options,
    std::function<void(absl::StatusOr<AttendResult>)> done) {
  StartAttend(
      session, Twice::kHarmless,
      std::make_shared<KeptAttend>(*session, layer, query, attend, nullptr),
      options,
      [outputs = attend.outputs,
       done = std::move(done)](const absl::StatusOr<grpc::ByteBuffer>& answer) {
        if (!answer.ok()) return done(answer.status());
        done(DecodeAttend(*answer, outputs));
      });
}

void SessionClient::AttendShardAsync(
    const std::shared_ptr<SessionState>& session, int64_t layer,
    const TensorSpan& query, const AttendOptions& attend,
    const v1::Shard& shard, Twice twice, const CallOptions& options,
    std::function<void(absl::StatusOr<grpc::ByteBuffer>)> done) {
  StartAttend(
      session, twice,
      std::make_shared<KeptAttend>(*session, layer, query, attend, &shard),
      options, std::move(done));
}

void SessionClient::StartAttend(
    const std::shared_ptr<SessionState>& session, Twice twice,
    const std::shared_ptr<const KeptAttend>& kept, const CallOptions& options,
    std::function<void(absl::StatusOr<grpc::ByteBuffer>)> done) {
  using Answer = absl::StatusOr<grpc::ByteBuffer>;
  const absl::Status gone = session->Check();
  if (!gone.ok()) return done(gone);
  StartedTries<Answer>::Begin(
      connection_, twice, options,
      [connection = connection_, kept](const CallOptions& left,
                                       std::function<void(Answer)> then) {
        StartUnary(connection, left,
                   CallWith("Attend",
                            [&](Lease& lease) {
                              return EncodeAttend(kept->request, lease);
                            }),
                   [then = std::move(then)](const UnaryAnswer& answer) {
                     if (!answer.status.ok()) return then(answer.status);
                     then(answer.message);
                   });
      },
      [session, begun = Clock::now(),
       done = std::move(done)](const Answer& answer) {
        session->CallEnded(answer.status(), begun);
        done(answer);
      });
}

absl::StatusOr<int64_t> SessionClient::AppendRange(SessionState& session,
                                                   int64_t layer,
                                                   const TensorSpan& key,
                                                   const TensorSpan* value,
                                                   const TokenRange& range,
                                                   const CallOptions& options) {
  absl::StatusOr<LayerClaim> claim = LayerClaim::Of(session, layer);
  if (!claim.ok()) return claim.status();
  const Clock::time_point begun = Clock::now();
  const absl::StatusOr<int64_t> length =
      AppendPiece(connection_, options,
                  {.id = session.id(),
                   .incarnation = session.incarnation(),
                   .layer = layer,
                   .expected_length = claim->expected_length(),
                   .request_id = claim->request_id(),
                   .key = &key,
                   .value = value},
                  range);
  session.CallEnded(length.status(), begun);
  if (length.ok()) claim->Appended(*length);
  return length;
}

SessionClient::Results SessionClient::Step(std::span<const StepItem> items,
                                           const CallOptions& options) {
  Results results(items.size(),
                  absl::StatusOr<AttendResult>(absl::UnknownError("not sent")));
  SentItems sent;
  for (size_t i = 0; i < items.size(); ++i) {
    absl::Status wrong;
    if (items[i].session == nullptr ||
        items[i].session->client_.get() != this) {
      wrong = absl::InvalidArgumentError(
          "session: got none or one of another client, wanted one of this "
          "client");
    } else if (items.size() > kMostItems) {
      wrong = absl::InvalidArgumentError(absl::StrCat(
          "items: got ", items.size(), ", wanted at most ", kMostItems));
    }
    if (!wrong.ok()) {
      results[i] = wrong;
      continue;
    }
    SessionState& session = *items[i].session->state_;
    auto claim = ClaimFor(items[i], session);
    if (!claim.ok()) {
      results[i] = claim.status();
      continue;
    }
    AddItem(items[i], session, *std::move(claim), sent);
    sent.numbers.push_back(i);
  }
  if (sent.requests.empty()) return results;

  const Clock::time_point begun = Clock::now();
  std::vector<StepOutcome> outcomes = Exchange(sent.requests, options);
  for (size_t i = 0; i < sent.numbers.size(); ++i) {
    StepOutcome& outcome = outcomes[i];
    if (outcome.done && sent.claims[i]) {
      sent.claims[i]->Appended(outcome.length);
    }
    items[sent.numbers[i]].session->state_->CallEnded(
        outcome.done ? absl::OkStatus() : outcome.result.status(), begun);
    results[sent.numbers[i]] = std::move(outcome.result);
  }
  return results;
}

absl::Status SessionClient::Truncate(SessionState& session, int64_t length,
                                     const CallOptions& options) {
  absl::Status status = session.Check();
  if (!status.ok()) return status;
  v1::TruncateSessionRequest request;
  request.set_id(session.id());
  request.set_incarnation(session.incarnation());
  request.set_length(length);
  v1::TruncateSessionResponse response;
  const Clock::time_point begun = Clock::now();
  status = Call(connection_, Twice::kHarmless, options,
                SessionMethod("TruncateSession"), request, &response);
  session.CallEnded(status, begun);
  if (status.ok()) session.SetLengths(response.session());
  return status;
}

absl::Status SessionClient::Refresh(SessionState& session,
                                    const CallOptions& options) {
  absl::Status status = session.Check();
  if (!status.ok()) return status;
  const Clock::time_point begun = Clock::now();
  const absl::StatusOr<v1::Session> got =
      Get(session.id(), session.incarnation(), options);
  session.CallEnded(got.status(), begun);
  if (got.ok()) session.SetLengths(*got);
  return got.status();
}

void SessionClient::Release(const std::shared_ptr<SessionState>& session) {
  renewer_.Remove(session);
}

}  // namespace attention::internal
