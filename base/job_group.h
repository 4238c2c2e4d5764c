// Several jobs as one.
#ifndef ATTENTION_BASE_JOB_GROUP_H_
#define ATTENTION_BASE_JOB_GROUP_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "base/executor.h"

namespace attention {

// Each stage is the next stage of every member that has one: their tasks run
// side by side, those of the members added first begin first. Members must not
// delete themselves in Done(); their used_seconds() stay 0.
class JobGroup : public Executor::Job {
 public:
  // Before the first stage. Throws std::bad_alloc, and then `job` is gone.
  void Add(std::unique_ptr<Executor::Job> job);

  int64_t NextStage() override;
  bool RunTask(int64_t task, const Turn& turn) override;
  // Calls Done() of every member, in the order in which they were added, and
  // destroys it.
  void Done(JobEnd end) override;

 private:
  struct Member {
    std::unique_ptr<Executor::Job> job;
    bool has_stages = true;
  };
  // A member's tasks in this stage, those from number `begin` on.
  struct Part {
    Executor::Job* job;
    int64_t begin;
  };

  std::vector<Member> members_;
  // Ascending, at least one task each; has room for all members.
  std::vector<Part> parts_;
};

}  // namespace attention

#endif  // ATTENTION_BASE_JOB_GROUP_H_
