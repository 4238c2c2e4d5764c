package io.github.attentionservice;

import io.github.attentionservice.proto.attention.ComputeAttentionResponse;
import java.util.Optional;

/**
 * The answer to one computation. What was not asked for is empty.
 *
 * @param output of the query's type; its shape is the layout's
 * @param logSumExp (B, Hq, S), FLOAT32 or FLOAT64
 * @param scores (B, Hq, S, T), of the query's type
 * @param presentKey past and new keys, (B, Hkv, T, D)
 * @param presentValue past and new values, (B, Hkv, T, Dv)
 * @param timing how long the server took
 */
public record ComputeResult(
    Tensor output,
    Optional<Tensor> logSumExp,
    Optional<Tensor> scores,
    Optional<Tensor> presentKey,
    Optional<Tensor> presentValue,
    Timing timing) {

  static ComputeResult of(ComputeAttentionResponse answer, ComputeRequest request) {
    if (!answer.hasOutput()) {
      throw AttentionException.malformed("no output");
    }
    ComputeResult result =
        new ComputeResult(
            Answers.tensor(answer.getOutput()),
            Answers.optional(answer.hasLogSumExp(), answer.getLogSumExp()),
            Answers.optional(answer.hasScores(), answer.getScores()),
            Answers.optional(answer.hasPresentKey(), answer.getPresentKey()),
            Answers.optional(answer.hasPresentValue(), answer.getPresentValue()),
            Timing.of(answer.getTiming()));
    result.check(request);
    return result;
  }

  /** Throws where this cannot be the answer to the request. */
  void check(ComputeRequest request) {
    long[] shape = request.outputShape();
    Answers.checkOutput(output, request.query, shape == null ? output.shape() : shape);
    Answers.checkAsked(
        request.options.message(), logSumExp, scores, presentKey.flatMap(key -> presentValue));
  }
}
