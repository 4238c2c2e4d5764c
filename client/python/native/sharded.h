// A sequence over several servers, for Python: sharded.py of the package.
#ifndef ATTENTION_CLIENT_PYTHON_NATIVE_SHARDED_H_
#define ATTENTION_CLIENT_PYTHON_NATIVE_SHARDED_H_

#include <nanobind/nanobind.h>
#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "attention/sharded_session.h"
#include "client/python/native/server.h"

namespace attention::python {

void DefineSharded(nanobind::module_& module);

// All functions are called with the GIL, and run calls without it. Limits are
// in seconds, infinity for none. What fails gives a Failure. Calls hold the
// caller's arrays until they have ended. Ctrl-C waits for them.
class Sharded {
 public:
  // What calls share with their clients: the first one that is closed ends
  // them.
  using Servers = std::vector<std::shared_ptr<Server>>;

  Sharded(Servers servers, ShardedSession session);
  ~Sharded();
  Sharded(const Sharded&) = delete;
  Sharded& operator=(const Sharded&) = delete;

  // `config`: a SessionConfig; nothing: Open().
  static nanobind::object Make(const nanobind::list& cores,
                               const std::optional<nanobind::bytes>& config,
                               const std::string& id, int64_t blocks_per_run,
                               double limit);

  std::vector<std::string> ids() const { return session_->ids(); }
  std::vector<int64_t> Lengths() const;
  std::vector<std::pair<int64_t, int64_t>> TokensOf(int64_t shard,
                                                    int64_t layer) const;

  // (data type, array) each; `value` may be None.
  nanobind::object Append(int64_t layer, const nanobind::tuple& key,
                          const nanobind::object& value, double limit);
  // `options`: AttentionOptions. What OutcomeOf() makes, and a list of the
  // missing tokens, (begin, end) each.
  nanobind::object Attend(int64_t layer, const nanobind::tuple& query,
                          const nanobind::object& mask,
                          const nanobind::object& indices,
                          const nanobind::object& sinks,
                          const nanobind::bytes& options, bool not_causal,
                          bool allow_missing, double limit) const;
  nanobind::object Fork(const std::string& id, double limit) const;
  nanobind::object Truncate(int64_t length, double limit);
  nanobind::object Refresh(double limit);
  nanobind::object Delete(double limit);

 private:
  class Stop;

  const pid_t process_;
  const Servers servers_;
  std::unique_ptr<ShardedSession> session_;
};

}  // namespace attention::python

#endif  // ATTENTION_CLIENT_PYTHON_NATIVE_SHARDED_H_
