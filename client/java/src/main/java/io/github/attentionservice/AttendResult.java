package io.github.attentionservice;

import io.github.attentionservice.proto.attention.StepResponse;
import io.github.attentionservice.proto.attention.StepResult;
import java.util.Optional;

/**
 * The answer of a session. What was not asked for is empty.
 *
 * @param output (Hq, S, Dv), of the query's type; without elements where nothing was attended to
 * @param logSumExp (Hq, S)
 * @param scores (Hq, S, T)
 * @param length the layer's tokens, the new ones among them: what was attended to
 * @param timing how long the server took for the whole message
 */
public record AttendResult(
    Tensor output,
    Optional<Tensor> logSumExp,
    Optional<Tensor> scores,
    long length,
    Timing timing) {

  static AttendResult of(StepResponse answer, StepResult result, StepItem item) {
    boolean attends = item.query != null;
    if (attends && !result.hasOutput()) {
      throw AttentionException.malformed("no output");
    }
    AttendResult made =
        new AttendResult(
            attends ? Answers.tensor(result.getOutput()) : Tensor.of(new float[0], 0),
            Answers.optional(result.hasLogSumExp(), result.getLogSumExp()),
            Answers.optional(result.hasScores(), result.getScores()),
            result.getLength(),
            Timing.of(answer.getTiming()));
    if (attends) {
      long[] shape = item.query.shape();
      if (shape.length == 3) {
        SessionConfig config = item.session.config();
        shape[2] = config.valueHeadSize() == 0 ? config.headSize() : config.valueHeadSize();
      }
      Answers.checkOutput(made.output, item.query, shape);
      Answers.checkAsked(
          item.options.options.message(), made.logSumExp, made.scores, Optional.empty());
    }
    return made;
  }
}
