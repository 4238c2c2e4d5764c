// A SessionService that hands every call to a real server, and on the way does
// what networks and servers do to calls.
#ifndef ATTENTION_TESTS_CLIENT_SESSION_RELAY_H_
#define ATTENTION_TESTS_CLIENT_SESSION_RELAY_H_

#include <google/protobuf/util/time_util.h>
#include <grpcpp/client_context.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "attention/details/v1/details.pb.h"
#include "attention/v1/session.grpc.pb.h"

namespace attention {

// A status as the server sends it.
inline grpc::Status WithReason(grpc::StatusCode code,
                               const std::string& reason) {
  details::v1::ErrorInfo info;
  info.set_reason(reason);
  info.set_domain("attention");
  details::v1::Status details;
  details.set_code(code);
  auto* const detail = details.add_details();
  detail->set_type_url("type.googleapis.com/google.rpc.ErrorInfo");
  detail->set_value(info.SerializeAsString());
  return {code, reason, details.SerializeAsString()};
}

// Serves on a free port of the loopback interface while it lives. Its members
// may be changed while it serves.
class SessionRelay final : public v1::SessionService::Service {
 public:
  explicit SessionRelay(const std::shared_ptr<grpc::Channel>& to)
      : to_(v1::SessionService::NewStub(to)) {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(),
                             &port);
    builder.SetMaxReceiveMessageSize(-1);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr) throw std::runtime_error("cannot serve");
    address_ = absl::StrCat("127.0.0.1:", port);
  }
  ~SessionRelay() override { Kill(); }

  const std::string& address() const { return address_; }

  // Ends all calls and serves no more.
  void Kill() { server_->Shutdown(std::chrono::system_clock::now()); }

  // So many next answers, of AppendKeyValues and Step, are lost: the server has
  // done what was asked, and the client hears of a broken connection.
  std::atomic<int> lose_answers{0};
  // The same of Attend.
  std::atomic<int> lose_attends{0};
  // The answers to so many appends before those come.
  std::atomic<int> answers_before_loss{0};
  // So many next appends are not handed on, but refused.
  std::atomic<int> refuse_appends{0};
  // Those before are handed on.
  std::atomic<int> appends_before_refusal{0};
  // So many next truncations are not handed on: nobody can be reached.
  std::atomic<int> refuse_truncations{0};
  // So many next messages of Step are not handed on, and get no answer while
  // the client waits.
  std::atomic<int> stall_steps{0};
  // So many next appends and messages of Step are handed on, and done there,
  // but answered as if their first try still ran.
  std::atomic<int> say_under_way{0};
  // The next message of Step is handed on, and goes on at the server also where
  // the client leaves: until this is 0 again, when it is cancelled.
  std::atomic<int> hold_steps{0};
  // Streams begun, messages handed on.
  std::atomic<int> streams{0};
  std::atomic<int> steps{0};
  std::atomic<int> appends{0};

  // Each stream ends after its next answer with this status.
  void EndStreams(const grpc::Status& status) {
    const std::lock_guard<std::mutex> lock(mutex_);
    end_streams_ = status;
  }
  // Called after each answer of Step.
  void AfterAnswers(std::function<void()> then) {
    const std::lock_guard<std::mutex> lock(mutex_);
    after_answers_ = std::move(then);
  }
  // What is done to each answer of Attend.
  void ChangeAttends(std::function<void(v1::AttendResponse&)> change) {
    const std::lock_guard<std::mutex> lock(mutex_);
    change_attends_ = std::move(change);
  }
  // What is done to each answer of CreateSession.
  void ChangeCreated(std::function<void(v1::Session&)> change) {
    const std::lock_guard<std::mutex> lock(mutex_);
    change_created_ = std::move(change);
  }
  // Called before each unary call but appends is handed on.
  void BeforeCalls(std::function<void(const grpc::ServerContext&)> before) {
    const std::lock_guard<std::mutex> lock(mutex_);
    before_calls_ = std::move(before);
  }
  // The lease of sessions that are created, as the client is told.
  void TellLease(std::chrono::milliseconds lease) {
    const std::lock_guard<std::mutex> lock(mutex_);
    lease_ = lease;
  }
  // What GetSession answers, in place of the server.
  void AnswerGets(const grpc::Status& status) {
    const std::lock_guard<std::mutex> lock(mutex_);
    gets_ = status;
  }
  // Calls of GetSession.
  int gets(const std::string& id) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return gets_of_[id];
  }

  grpc::Status CreateSession(grpc::ServerContext* call,
                             const v1::CreateSessionRequest* request,
                             v1::CreateSessionResponse* response) override {
    Before(*call);
    grpc::ClientContext context;
    const grpc::Status status =
        to_->CreateSession(&context, *request, response);
    const std::lock_guard<std::mutex> lock(mutex_);
    if (change_created_) change_created_(*response->mutable_session());
    if (lease_.count() > 0) {
      *response->mutable_session()->mutable_config()->mutable_lease() =
          google::protobuf::util::TimeUtil::MillisecondsToDuration(
              lease_.count());
    }
    return status;
  }
  grpc::Status GetSession(grpc::ServerContext* call,
                          const v1::GetSessionRequest* request,
                          v1::GetSessionResponse* response) override {
    Before(*call);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      ++gets_of_[request->id()];
      if (!gets_.ok()) return gets_;
    }
    grpc::ClientContext context;
    return to_->GetSession(&context, *request, response);
  }
  grpc::Status AppendKeyValues(grpc::ServerContext*,
                               const v1::AppendKeyValuesRequest* request,
                               v1::AppendKeyValuesResponse* response) override {
    if (!Take(appends_before_refusal) && Take(refuse_appends)) {
      return WithReason(grpc::StatusCode::RESOURCE_EXHAUSTED, "SESSION_BYTES");
    }
    ++appends;
    grpc::ClientContext context;
    const grpc::Status status =
        to_->AppendKeyValues(&context, *request, response);
    if (Take(say_under_way)) return UnderWay();
    if (Take(answers_before_loss)) return status;
    return Take(lose_answers) ? Lost() : status;
  }
  grpc::Status ForkSessions(grpc::ServerContext* call,
                            const v1::ForkSessionsRequest* request,
                            v1::ForkSessionsResponse* response) override {
    Before(*call);
    grpc::ClientContext context;
    return to_->ForkSessions(&context, *request, response);
  }
  grpc::Status DeleteSession(grpc::ServerContext* call,
                             const v1::DeleteSessionRequest* request,
                             v1::DeleteSessionResponse* response) override {
    Before(*call);
    grpc::ClientContext context;
    return to_->DeleteSession(&context, *request, response);
  }
  grpc::Status TruncateSession(grpc::ServerContext* call,
                               const v1::TruncateSessionRequest* request,
                               v1::TruncateSessionResponse* response) override {
    Before(*call);
    if (Take(refuse_truncations)) return Lost();
    grpc::ClientContext context;
    return to_->TruncateSession(&context, *request, response);
  }
  grpc::Status Attend(grpc::ServerContext* call,
                      const v1::AttendRequest* request,
                      v1::AttendResponse* response) override {
    Before(*call);
    grpc::ClientContext context;
    const grpc::Status status = to_->Attend(&context, *request, response);
    if (Take(lose_attends)) {
      return {grpc::StatusCode::UNAVAILABLE, "the connection was lost"};
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    if (change_attends_) change_attends_(*response);
    return status;
  }
  grpc::Status Step(grpc::ServerContext* call,
                    grpc::ServerReaderWriter<v1::StepResponse, v1::StepRequest>*
                        stream) override {
    ++streams;
    grpc::ClientContext context;
    const auto to = to_->Step(&context);
    v1::StepRequest request;
    v1::StepResponse response;
    while (stream->Read(&request)) {
      if (Take(stall_steps)) {
        while (!call->IsCancelled()) std::this_thread::yield();
        context.TryCancel();
        static_cast<void>(to->Finish());
        return grpc::Status::CANCELLED;
      }
      if (hold_steps > 0) {
        static_cast<void>(to->Write(request));
        while (hold_steps > 0) std::this_thread::yield();
        context.TryCancel();
        static_cast<void>(to->Finish());
        return grpc::Status::CANCELLED;
      }
      ++steps;
      if (!to->Write(request) || !to->Read(&response)) return to->Finish();
      if (Take(lose_answers)) {
        context.TryCancel();
        static_cast<void>(to->Finish());
        return Lost();
      }
      if (Take(say_under_way)) {
        const grpc::Status status = UnderWay();
        for (v1::StepResult& result : *response.mutable_results()) {
          result.Clear();
          result.set_code(status.error_code());
          result.set_message(status.error_message());
          result.set_status_details(status.error_details());
        }
      }
      stream->Write(response);
      if (const auto then = OnAnswer()) then();
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!end_streams_.ok()) {
        context.TryCancel();
        static_cast<void>(to->Finish());
        return end_streams_;
      }
    }
    to->WritesDone();
    return to->Finish();
  }

 private:
  static grpc::Status Lost() {
    return {grpc::StatusCode::UNAVAILABLE, "Connection reset by peer"};
  }
  static grpc::Status UnderWay() {
    return WithReason(grpc::StatusCode::UNAVAILABLE, "APPEND_UNDER_WAY");
  }
  void Before(const grpc::ServerContext& call) {
    std::function<void(const grpc::ServerContext&)> before;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      before = before_calls_;
    }
    if (before) before(call);
  }
  std::function<void()> OnAnswer() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return after_answers_;
  }
  static bool Take(std::atomic<int>& count) {
    int left = count;
    while (left > 0) {
      if (count.compare_exchange_weak(left, left - 1)) return true;
    }
    return false;
  }

  const std::unique_ptr<v1::SessionService::Stub> to_;
  std::string address_;
  std::mutex mutex_;
  // All guarded by mutex_.
  grpc::Status end_streams_;
  grpc::Status gets_;
  std::function<void()> after_answers_;
  std::function<void(const grpc::ServerContext&)> before_calls_;
  std::function<void(v1::AttendResponse&)> change_attends_;
  std::function<void(v1::Session&)> change_created_;
  std::chrono::milliseconds lease_{0};
  std::map<std::string, int> gets_of_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace attention

#endif  // ATTENTION_TESTS_CLIENT_SESSION_RELAY_H_
