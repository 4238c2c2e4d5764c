#include "benchmarks/kernel/serve.h"

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <istream>
#include <map>
#include <memory>
#include <optional>
#include <ostream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "benchmarks/kernel/cases.h"
#include "benchmarks/kernel/machine_limits.h"
#include "kernel/attention.h"

namespace attention::benchmarks {
namespace {

#ifdef __clang__
constexpr char kCompiler[] = __VERSION__;
#else
constexpr char kCompiler[] = "GCC " __VERSION__;
#endif

std::string Quoted(absl::string_view text) {
  return absl::StrCat("\"", text, "\"");
}

// "NAME": value; names and texts need no escapes.
template <class T>
std::string Field(absl::string_view name, const T& value) {
  return absl::StrCat(Quoted(name), ": ", value);
}

std::string Object(std::initializer_list<std::string> fields) {
  return absl::StrCat("{", absl::StrJoin(fields, ", "), "}");
}

absl::string_view Name(Mask mask) {
  switch (mask) {
    case Mask::kNone:
      return "NONE";
    case Mask::kBool:
      return "BOOL";
    case Mask::kAdditive:
      return "ADDITIVE";
  }
  std::abort();
}

absl::string_view Name(Causal causal) {
  switch (causal) {
    case Causal::kNone:
      return "NONE";
    case Causal::kTopLeft:
      return "TOP_LEFT";
    case Causal::kBottomRight:
      return "BOTTOM_RIGHT";
  }
  std::abort();
}

constexpr std::pair<absl::string_view, Limit> kLimits[] = {
    {"float", Limit::kFloat},
    {"double", Limit::kDouble},
    {"bfloat16", Limit::kBFloat16},
    {"read", Limit::kRead}};

absl::string_view Name(Limit limit) {
  for (const auto& [name, one] : kLimits) {
    if (one == limit) return name;
  }
  std::abort();
}

std::optional<Limit> ParseLimit(absl::string_view name) {
  for (const auto& [known, limit] : kLimits) {
    if (known == name) return limit;
  }
  return std::nullopt;
}

std::string ToJson(const Case& c) {
  return Object({
      Field("name", Quoted(c.name)),
      Field("type", Quoted(attention::Name(c.type))),
      Field("math",
            Quoted(c.math == MathMode::kFast ? "FAST" : "REPRODUCIBLE")),
      Field("batch", c.batch),
      Field("query_heads", c.query_heads),
      Field("kv_heads", c.kv_heads),
      Field("query_length", c.query_length),
      Field("key_length", c.key_length),
      Field("head_size", c.head_size),
      Field("value_head_size", c.value_head_size),
      Field("causal", Quoted(Name(c.causal))),
      Field("window_left", c.window_left),
      Field("mask", Quoted(Name(c.mask))),
      Field("ragged", absl::StrCat("[", absl::StrJoin(c.ragged, ", "), "]")),
      Field("decode", c.decode ? "true" : "false"),
      Field("limit", Quoted(Name(LimitOf(c)))),
  });
}

std::string List() {
  std::vector<Case> listed = AllCases();
  std::erase_if(listed, [](const Case& c) { return !c.for_peers; });
  const std::string cases = absl::StrJoin(
      listed, ", ",
      [](std::string* out, const Case& c) { absl::StrAppend(out, ToJson(c)); });
  return Object({Field("cases", absl::StrCat("[", cases, "]")),
                 Field("simd_target", Quoted(SimdTarget())),
                 Field("compiler", Quoted(kCompiler))});
}

std::string Run(Workload& workload, Executor& executor, double seconds) {
  using Clock = std::chrono::steady_clock;
  workload.Run(executor);
  const auto start = Clock::now();
  std::chrono::duration<double> taken{};
  int64_t runs = 0;
  do {
    workload.Run(executor);
    ++runs;
    taken = Clock::now() - start;
  } while (taken.count() < seconds);
  return Object({Field("seconds", taken.count() / static_cast<double>(runs))});
}

[[noreturn]] void Refuse(const std::string& line) {
  std::fprintf(stderr, "attention_bench: cannot do \"%s\"\n", line.c_str());
  std::exit(2);
}

class Server {
 public:
  std::string Answer(const std::string& line) {
    std::istringstream words(line);
    std::string verb, name, directory;
    int threads = 0;
    double seconds = 0;
    words >> verb;
    if (verb == "list") return List();
    if (verb == "limit" && words >> name >> threads) {
      const std::optional<Limit> limit = ParseLimit(name);
      if (!limit) Refuse(name);
      return Object({Field("rate", MeasureLimit(*limit, Pool(threads)))});
    }
    if (verb == "open" && words >> name >> directory) {
      return Open(name, directory);
    }
    if (verb == "run" && workload_ && words >> threads >> seconds) {
      return Run(*workload_, Pool(threads), seconds);
    }
    Refuse(line);
  }

 private:
  std::string Open(const std::string& name, const std::string& directory) {
    workload_.reset();
    for (const Case& c : AllCases()) {
      if (c.name == name) workload_.emplace(c);
    }
    if (!workload_) Refuse(name);
    workload_->Run(Pool(1));
    workload_->Save(directory);
    return Object({Field("flops", workload_->plan().flops),
                   Field("key_value_bytes", workload_->key_value_bytes())});
  }

  Executor& Pool(int threads) {
    auto& executor = pools_[threads];
    if (!executor) executor = std::make_unique<Executor>(threads - 1);
    return *executor;
  }

  std::map<int, std::unique_ptr<Executor>> pools_;
  std::optional<Workload> workload_;
};

}  // namespace

void ServeBenchmarks(std::istream& requests, std::ostream& answers) {
  Server server;
  for (std::string line; std::getline(requests, line);) {
    answers << server.Answer(line) << '\n' << std::flush;
  }
}

}  // namespace attention::benchmarks
