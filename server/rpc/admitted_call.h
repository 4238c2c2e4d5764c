// What every call does that is let in before it is read: from its headers
// through Admission to its end, whatever its messages are.
#ifndef ATTENTION_SERVER_RPC_ADMITTED_CALL_H_
#define ATTENTION_SERVER_RPC_ADMITTED_CALL_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <optional>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/executor.h"
#include "grpcpp/alarm.h"
#include "grpcpp/generic/async_generic_service.h"
#include "kernel/attention.h"
#include "server/admission/admission.h"
#include "server/admission/cost_model.h"
#include "server/rpc/call_environment.h"
#include "server/rpc/call_record.h"
#include "server/rpc/call_traffic.h"

namespace attention::server {

// A call may be touched by gRPC, by threads that work on it and by Admission at
// the same time. So it counts who may still touch it and deletes itself when
// nobody does, and only the first End() counts.
//
// Lifecycle, each step at most once:
//   Start()        who calls, and whether it may come in
//   Admitted()     the derived class reads its first message (ReadFirst())
//   ...            reads, jobs and writes are the derived class's
//   End()          the status is on its way, nothing more may be started
//   OnDone()       gRPC is done with it; once its jobs have ended too Admission
//                  leaves it alone, and what it was charged for is given back
//                  when it has been destroyed
class AdmittedCall : public grpc::ServerGenericBidiReactor,
                     public Admission::Entrant {
 public:
  void Start();

  // Admission's side.
  void Admitted(Admission::Ticket ticket) final;
  void Refused(absl::Status status) final;
  void Expel(absl::Status status) final;
  void Hold() final { holders_.fetch_add(1, std::memory_order_relaxed); }
  void Drop() final {
    if (holders_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
  }

 protected:
  // Jobs that a call may have at the same time.
  enum class JobSlot : uint8_t { kCompute, kCopy };
  static constexpr size_t kJobSlots = 2;

  // `method` as in CallSummary.
  AdmittedCall(absl::string_view method, const ComputeEnvironment& environment,
               grpc::GenericCallbackServerContext* context);
  ~AdmittedCall() override = default;

  // What the derived class does, besides OnReadDone() and OnWriteDone().

  // The call was let in: posts the first read. With mutex_ held.
  virtual void ReadFirst() = 0;
  // The call ends well: tells ticket_ and the cost model, and what is written.
  // With mutex_ held.
  virtual void TellSuccess() = 0;
  virtual void SendAnswer() = 0;
  // The call ends with an error, after what was written before.
  virtual void SendError(const grpc::Status& status) { Finish(status); }
  // Since when a read is under way, if one is. With mutex_ held.
  virtual std::optional<absl::Time> ReadingSince() const = 0;

  void OnCancel() final;
  void OnDone() final;

  // Whether the caller's token is still good, and of the same tenant: for the
  // later messages of a stream. Costs next to nothing unless the tokens were
  // read again. Throws std::bad_alloc.
  absl::Status CheckTokenAgain();

  // A message of no more bytes is decoded and copied on gRPC's thread, in some
  // microseconds: handing it over would cost more.
  static constexpr int64_t kInlineBytes = int64_t{64} << 10;
  // Whether a computation takes well under a millisecond, and is done on gRPC's
  // thread too. Rows without keys are no flops, but work (AttentionPlan::work).
  static bool TakesLittle(double flops, double work) {
    return flops <= 4e6 && work <= 2e7;
  }
  // Smaller answers are in the client's hands as soon as they are sent.
  static constexpr int64_t kLargeAnswer = int64_t{64} << 10;

  // By what its speed is measured.
  static WorkClass WorkClassOf(const AttentionPlan& plan);
  // For the log; `tokens` of a stream.
  void NoteShapes(const AttentionInputs& inputs,
                  std::optional<int64_t> tokens = std::nullopt);

  // What the caller said about the size of its first message.
  std::optional<int64_t> AnnouncedBytes() const;
  // The server's own limit, or the caller's if that is lower.
  int64_t MaxAnswerBytes() const;
  // The client's deadline, or the server's own for those who have none.
  absl::Time Deadline() const;
  // Why the work was given up.
  absl::Status Abandoned() const;
  static absl::Status OutOfMemory();

  // Posts a read, unless the call has ended, after which nothing may be
  // started. False if it has.
  bool ReadInto(grpc::ByteBuffer* message);

  // Changes record_, which Expel() may be reading on another thread.
  template <typename Change>
  void Note(const Change& change) {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    change(record_);
  }

  // Hands a job to the executor, whose Done() must TakeJob() and, as its last
  // step, call JobEnded().
  void Submit(JobSlot slot, std::unique_ptr<Executor::Job> job, double seconds);
  // The job of which Done() is running; it is destroyed with the result.
  std::unique_ptr<Executor::Job> TakeJob(JobSlot slot);
  void JobEnded();

  // What fails for want of memory ends the call, and nothing else.
  template <typename Step>
  void Guarded(const Step& step) {
    try {
      step();
    } catch (const std::bad_alloc&) {
      EndWithoutMemory();
    }
  }

  // False if the call has been ended before. gRPC may delete the call from here
  // on, but for those who hold it. Its jobs are cancelled if it ends badly.
  bool End(const absl::Status& status);

  // After the write of an answer that the client may still have to take: ends
  // the call, which the caller must have held with Hold(), once it is taken.
  void FinishOnceTaken(const grpc::Status& status = grpc::Status::OK);

  // Between what is done before gRPC is called and what follows when it calls
  // back. It orders the two itself, but ThreadSanitizer does not see into it.
  void HandOver() { handovers_.fetch_add(1, std::memory_order_acq_rel); }

  const ComputeEnvironment& env_;
  grpc::GenericCallbackServerContext* const context_;
  // Changed by one thread at a time, with mutex_ held since Admission knows of
  // the call: whoever changes it next may read it without.
  CallRecord record_;
  const int64_t header_bytes_;
  CallTraffic traffic_;
  // Of what was read last, if traffic_ has not been told of it; nothing while a
  // read is under way. Guarded by mutex_ where reads are not alone.
  std::optional<int64_t> message_bytes_;

  // Held by those who start an operation of gRPC, and by those who are not gRPC
  // while they use what it takes away once the call is done. It may call back
  // from within.
  std::recursive_mutex mutex_;
  std::atomic<bool> ended_{false};
  std::atomic<bool> cancelled_{false};  // by the client, or with its connection
  // Nothing that is worked on for it is wanted any more.
  std::atomic<bool> over_{false};
  // A part of the answer is on its way. Guarded by mutex_.
  bool writing_ = false;
  // Destroyed after all that it is charged for, which derived classes hold.
  Admission::Ticket ticket_;

 private:
  // What a header says that is a number of bytes; nothing if it says none.
  std::optional<int64_t> BytesInHeader(const char* name) const;

  void EndWithoutMemory();
  // With mutex_ held.
  void FinishWith(const absl::Status& status);
  void CancelJobs();
  void LetGo();
  void LookWhetherTaken(std::optional<int64_t> bytes_before);
  void LookAgain(int64_t bytes_before);

  // gRPC, until OnDone(); then each job and each function of Admission.
  std::atomic<int> holders_{1};
  // Of these gRPC and the jobs: Admission may end the call while there are any.
  std::atomic<int> users_{1};
  std::atomic<int> handovers_{0};
  // Authenticator::version() when the token was looked at last. Of who has the
  // turn.
  int64_t tokens_version_ = 0;
  bool admitted_ = false;              // guarded by mutex_
  bool done_ = false;                  // guarded by mutex_
  std::atomic<bool> given_up_{false};  // cancelled before its deadline

  std::optional<grpc::Alarm> look_;
  int looks_ = 0;  // with everything delivered
  grpc::Status status_once_taken_;

  std::mutex job_mutex_;
  // Guarded by job_mutex_.
  std::array<std::unique_ptr<Executor::Job>, kJobSlots> jobs_;
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_RPC_ADMITTED_CALL_H_
