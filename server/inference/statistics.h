// What ModelStatistics tells.
#ifndef ATTENTION_SERVER_INFERENCE_STATISTICS_H_
#define ATTENTION_SERVER_INFERENCE_STATISTICS_H_

#include <mutex>

#include "absl/time/time.h"
#include "inference/inference.pb.h"

namespace attention::server {

// Thread-safe.
class InferenceStatistics {
 public:
  // How long the phases of an inference took.
  struct Phases {
    absl::Duration queue, decode, compute, encode, total;
  };

  InferenceStatistics();

  // An inference has ended, well or not.
  void Add(bool succeeded, const Phases& phases);

  inference::ModelStatistics Get() const;

 private:
  mutable std::mutex mutex_;
  inference::ModelStatistics statistics_;  // guarded by mutex_
};

}  // namespace attention::server

#endif  // ATTENTION_SERVER_INFERENCE_STATISTICS_H_
