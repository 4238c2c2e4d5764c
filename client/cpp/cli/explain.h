// The four steps of scaled dot-product attention, as tables.
//
// Every number shown was computed by the server; here they are only laid out.
#ifndef ATTENTION_CLIENT_CPP_CLI_EXPLAIN_H_
#define ATTENTION_CLIENT_CPP_CLI_EXPLAIN_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "attention/client.h"

namespace attention::cli {

// Row-major numbers.
struct Matrix {
  int64_t rows = 0;
  int64_t columns = 0;
  std::vector<double> values;

  double at(int64_t row, int64_t column) const {
    return values[row * columns + column];
  }
};

// One head of one batch, step by step. S rows (queries) each; T columns (keys),
// Dv for `output`.
struct Explanation {
  int64_t batch = 0;
  int64_t head = 0;
  // D; 0 if unknown for want of queries.
  int64_t head_size = 0;
  double scale = 1;
  // Whether `scale` is the default, 1 / sqrt(D).
  bool default_scale = true;
  Matrix similarity;
  Matrix scaled;
  // Present where the request has a soft cap.
  double softcap = 0;
  std::optional<Matrix> capped;
  // Present where the request has anything that masks or biases.
  std::optional<Matrix> biased;
  // Whether a sink takes part of each row's weight.
  bool has_sink = false;
  Matrix weights;
  Matrix output;
};

// Whether the answer to a request with SCORES_WEIGHTS has this batch and head;
// InvalidArgument, naming the flag, if not.
absl::Status CheckChoice(const ComputeResult& result, int64_t batch,
                         int64_t head);

// Asks the server for the other stages of `request` (two to four calls) and
// takes out one head. `result` is the answer to the request with
// SCORES_WEIGHTS; CheckChoice() must have passed. Errors: the server's.
absl::StatusOr<Explanation> Explain(const Client& client,
                                    const ComputeRequest& request,
                                    const ComputeResult& result,
                                    const CallOptions& call, int64_t batch,
                                    int64_t head);

// Large tables are cut in the middle; the map of the weights joins neighbouring
// keys instead. `ascii`: shades by ASCII characters, not by block elements.
std::string Render(const Explanation& explanation, bool ascii);

}  // namespace attention::cli

#endif  // ATTENTION_CLIENT_CPP_CLI_EXPLAIN_H_
