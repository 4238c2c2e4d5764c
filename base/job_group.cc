#include "base/job_group.h"

#include <algorithm>
#include <utility>

namespace attention {

void JobGroup::Add(std::unique_ptr<Executor::Job> job) {
  // NextStage() must not need memory.
  parts_.reserve(members_.size() + 1);
  members_.push_back({std::move(job)});
}

int64_t JobGroup::NextStage() {
  parts_.clear();
  int64_t tasks = 0;
  for (Member& member : members_) {
    if (!member.has_stages) continue;
    const int64_t own = member.job->NextStage();
    member.has_stages = own > 0;
    if (own == 0) continue;
    parts_.push_back({member.job.get(), tasks});
    tasks += own;
  }
  return tasks;
}

bool JobGroup::RunTask(int64_t task, const Turn& turn) {
  const auto after = std::upper_bound(
      parts_.begin(), parts_.end(), task,
      [](int64_t number, const Part& part) { return number < part.begin; });
  const Part& part = *(after - 1);
  return part.job->RunTask(task - part.begin, turn);
}

void JobGroup::Done(JobEnd end) {
  for (Member& member : std::exchange(members_, {})) {
    member.job->Done(end);
    member.job.reset();
  }
}

}  // namespace attention
