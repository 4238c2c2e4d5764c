package io.github.attentionservice;

import java.time.Duration;

/**
 * How long the server took.
 *
 * @param queue from the request's arrival to the start of work on it
 * @param decode reading the message into tensors, checks included
 * @param compute the attention itself
 * @param encode writing the answer
 */
public record Timing(Duration queue, Duration decode, Duration compute, Duration encode) {
  static Timing of(io.github.attentionservice.proto.attention.Timing timing) {
    return new Timing(
        micros(timing.getQueueUs()),
        micros(timing.getDecodeUs()),
        micros(timing.getComputeUs()),
        micros(timing.getEncodeUs()));
  }

  private static Duration micros(long micros) {
    return Duration.of(micros, java.time.temporal.ChronoUnit.MICROS);
  }
}
