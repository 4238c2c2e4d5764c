#include "client/cpp/cli/explain.h"

#include <cmath>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace attention::cli {
namespace {

bool IsBiased(const ComputeRequest& request) {
  const v1::AttentionOptions& options = request.options;
  return request.mask.has_value() || request.indices.has_value() ||
         !request.valid_lengths.empty() ||
         options.causal() != v1::CAUSAL_UNSPECIFIED || options.has_window() ||
         options.chunk_size() != 0 || options.alibi_slopes_size() > 0;
}

// Axes of the output of any layout but RAGGED.
struct Geometry {
  int64_t batches = 0;
  int64_t heads = 0;
  int64_t queries = 0;
  int64_t keys = 0;
  int64_t head_size = 0;
  int64_t value_size = 0;
  // Whether rows of one head stand together, not heads of one row.
  bool head_major = true;
};

absl::StatusOr<Geometry> GeometryOf(const ComputeRequest& request,
                                    const ComputeResult& result) {
  if (!result.scores || result.scores->shape().size() != 4) {
    return absl::InternalError("malformed answer: scores are not of rank 4");
  }
  const std::vector<int64_t>& shape = result.scores->shape();
  Geometry geometry{.batches = shape[0],
                    .heads = shape[1],
                    .queries = shape[2],
                    .keys = shape[3]};
  const int64_t rows = shape[0] * shape[1] * shape[2];
  if (rows > 0) {
    if (result.output.size() % rows != 0) {
      return absl::InternalError(
          "malformed answer: output and scores do not fit");
    }
    const auto query_size = ElementCount(request.query.shape).value_or(0);
    geometry.head_size = query_size / rows;
    geometry.value_size = result.output.size() / rows;
  }
  const v1::Layout layout = request.options.layout();
  geometry.head_major =
      layout != v1::LAYOUT_PACKED && layout != v1::LAYOUT_BSHD &&
      (layout != v1::LAYOUT_UNSPECIFIED || request.query.shape.size() != 3);
  return geometry;
}

absl::Status CheckIndex(const char* flag, int64_t index, int64_t count) {
  if (index >= 0 && index < count) return absl::OkStatus();
  return absl::InvalidArgumentError(
      count == 0
          ? absl::StrCat(flag, ": there is none to explain")
          : absl::StrCat(flag, ": got ", index, ", wanted 0 to ", count - 1));
}

Matrix ScoresOf(const Tensor& scores, const Geometry& geometry, int64_t batch,
                int64_t head) {
  const int64_t size = geometry.queries * geometry.keys;
  const int64_t begin = (batch * geometry.heads + head) * size;
  const std::vector<double> all = scores.ToDoubles();
  return {geometry.queries,
          geometry.keys,
          {all.begin() + begin, all.begin() + begin + size}};
}

Matrix OutputOf(const Tensor& output, const Geometry& geometry, int64_t batch,
                int64_t head) {
  const std::vector<double> all = output.ToDoubles();
  Matrix matrix{geometry.queries, geometry.value_size, {}};
  for (int64_t row = 0; row < geometry.queries; ++row) {
    const int64_t index =
        geometry.head_major
            ? (batch * geometry.heads + head) * geometry.queries + row
            : (batch * geometry.queries + row) * geometry.heads + head;
    const auto begin = all.begin() + index * geometry.value_size;
    matrix.values.insert(matrix.values.end(), begin,
                         begin + geometry.value_size);
  }
  return matrix;
}

// Computes with one stage as scores and takes out one head of it.
absl::StatusOr<Matrix> Stage(const Client& client, ComputeRequest request,
                             const CallOptions& call, v1::Scores stage,
                             const Explanation& chosen) {
  request.options.set_return_scores(stage);
  request.options.set_return_log_sum_exp(false);
  request.options.set_return_present(false);
  absl::StatusOr<ComputeResult> result = client.Compute(request, call);
  if (!result.ok()) return result.status();
  absl::StatusOr<Geometry> geometry = GeometryOf(request, *result);
  if (!geometry.ok()) return geometry.status();
  if (chosen.batch >= geometry->batches || chosen.head >= geometry->heads) {
    return absl::InternalError("malformed answer: scores changed their shape");
  }
  return ScoresOf(*result->scores, *geometry, chosen.batch, chosen.head);
}

}  // namespace

absl::Status CheckChoice(const ComputeResult& result, int64_t batch,
                         int64_t head) {
  if (!result.scores || result.scores->shape().size() != 4) {
    return absl::OkStatus();  // Explain() reports it.
  }
  absl::Status status = CheckIndex("--batch", batch, result.scores->shape()[0]);
  status.Update(CheckIndex("--head", head, result.scores->shape()[1]));
  return status;
}

absl::StatusOr<Explanation> Explain(const Client& client,
                                    const ComputeRequest& request,
                                    const ComputeResult& result,
                                    const CallOptions& call, int64_t batch,
                                    int64_t head) {
  absl::StatusOr<Geometry> geometry = GeometryOf(request, result);
  if (!geometry.ok()) return geometry.status();
  const v1::AttentionOptions& options = request.options;
  Explanation chosen;
  chosen.batch = batch;
  chosen.head = head;
  chosen.head_size = geometry->head_size;
  chosen.default_scale = !options.has_scale();
  chosen.scale = options.has_scale()
                     ? options.scale()
                     : 1 / std::sqrt(static_cast<double>(chosen.head_size));
  chosen.softcap = options.softcap();
  chosen.has_sink = options.sinks_size() > 0 || request.sinks.has_value();
  chosen.weights = ScoresOf(*result.scores, *geometry, batch, head);
  chosen.output = OutputOf(result.output, *geometry, batch, head);

  absl::Status status;
  const auto ask = [&](const ComputeRequest& asked, v1::Scores stage,
                       auto& matrix) {
    if (!status.ok()) return;
    absl::StatusOr<Matrix> answer = Stage(client, asked, call, stage, chosen);
    status.Update(answer.status());
    if (answer.ok()) matrix = *std::move(answer);
  };
  ComputeRequest unscaled = request;
  unscaled.options.set_scale(1);
  ask(unscaled, v1::SCORES_RAW, chosen.similarity);
  ask(request, v1::SCORES_RAW, chosen.scaled);
  if (chosen.softcap > 0) ask(request, v1::SCORES_CAPPED, chosen.capped);
  if (IsBiased(request)) ask(request, v1::SCORES_BIASED, chosen.biased);
  if (!status.ok()) return status;
  return chosen;
}

}  // namespace attention::cli
