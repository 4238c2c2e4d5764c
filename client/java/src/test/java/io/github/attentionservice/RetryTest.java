package io.github.attentionservice;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.grpc.Metadata;
import io.grpc.Status;
import java.time.Duration;
import java.util.concurrent.atomic.AtomicInteger;
import org.junit.jupiter.api.Test;

class RetryTest {
  private static AttentionException lost() {
    return AttentionException.of(Status.UNAVAILABLE, new Metadata());
  }

  private static AttentionException busy(String pushback) {
    Metadata trailers = new Metadata();
    trailers.put(AttentionException.PUSHBACK, pushback);
    return AttentionException.of(Status.RESOURCE_EXHAUSTED, trailers);
  }

  private static AttentionException underWay() {
    return AttentionException.of(Status.Code.UNAVAILABLE, "APPEND_UNDER_WAY", "still");
  }

  private static Retry retry(Retry.Kind kind, Duration timeout, int attempts) {
    return new Retry(kind, new CallContext(timeout, attempts, null, Runnable::run, null), () -> {});
  }

  private static void assertBetween(long leastMillis, Duration pause) {
    assertTrue(
        pause.toNanos() >= leastMillis * 1_000_000L && pause.toNanos() <= leastMillis * 1_200_000L,
        pause + ", wanted " + leastMillis + " ms");
  }

  @Test
  void pausesDouble() {
    Retry retry = retry(Retry.Kind.REPEATABLE, Duration.ofMinutes(1), 9);
    for (long millis : new long[] {100, 200, 400, 800, 1600, 3200, 5000, 5000}) {
      assertBetween(millis, retry.pauseAfter(lost()));
    }
    assertNull(retry.pauseAfter(lost()));
  }

  @Test
  void pausesOfAppendsUnderWayAreNotCounted() {
    Retry retry = retry(Retry.Kind.APPEND, Duration.ofMinutes(1), 2);
    for (long millis : new long[] {10, 20, 40, 80, 160, 320, 500, 500}) {
      assertBetween(millis, retry.pauseAfter(underWay()));
    }
    assertBetween(100, retry.pauseAfter(lost()));
    assertBetween(500, retry.pauseAfter(underWay()));
    assertNull(retry.pauseAfter(lost()));
    assertNull(retry(Retry.Kind.REPEATABLE, Duration.ofMinutes(1), 4).pauseAfter(underWay()));
  }

  @Test
  void toldDelaysAreNeverUndercut() {
    for (int i = 0; i < 100; ++i) {
      Retry retry = retry(Retry.Kind.ONCE, Duration.ofMinutes(1), 4);
      assertBetween(1234, retry.pauseAfter(busy("1234")));
    }
    assertEquals(
        Duration.ZERO, retry(Retry.Kind.ONCE, Duration.ofMinutes(1), 4).pauseAfter(busy("0")));
  }

  @Test
  void trailersThatForbid() {
    for (String pushback : new String[] {"-1", "", "1.5", "soon", "99999999999999999999"}) {
      assertNull(
          retry(Retry.Kind.REPEATABLE, Duration.ofDays(1), 4).pauseAfter(busy(pushback)), pushback);
    }
  }

  @Test
  void neverPastTheDeadline() {
    assertNull(retry(Retry.Kind.REPEATABLE, Duration.ofMillis(90), 4).pauseAfter(lost()));
    assertNull(retry(Retry.Kind.REPEATABLE, Duration.ofSeconds(5), 4).pauseAfter(busy("5000")));
    // So long that nanoseconds could overflow.
    assertNull(
        retry(Retry.Kind.REPEATABLE, Duration.ofSeconds(Long.MAX_VALUE), 4)
            .pauseAfter(busy("999999999999999")));
  }

  @Test
  void whatMustNotBeDoneTwice() {
    assertNull(retry(Retry.Kind.ONCE, Duration.ofMinutes(1), 4).pauseAfter(lost()));
    AttentionException draining =
        AttentionException.of(Status.Code.UNAVAILABLE, "DRAINING", "goes");
    assertBetween(100, retry(Retry.Kind.ONCE, Duration.ofMinutes(1), 4).pauseAfter(draining));
    AttentionException other =
        AttentionException.of(Status.Code.UNAVAILABLE, "SHARD_LOST", "other reasons are final");
    assertNull(retry(Retry.Kind.REPEATABLE, Duration.ofMinutes(1), 4).pauseAfter(other));
  }

  /** As gRPC tells of a connection that was lost in the middle of a write. */
  @Test
  void closedChannelsAreLostConnections() {
    Status closed =
        Status.UNKNOWN
            .withDescription("channel closed")
            .withCause(new java.nio.channels.ClosedChannelException());
    AttentionException error = AttentionException.of(closed, new Metadata());
    assertEquals(Status.Code.UNAVAILABLE, error.code());
    assertBetween(100, retry(Retry.Kind.REPEATABLE, Duration.ofMinutes(1), 4).pauseAfter(error));
    assertEquals(Status.Code.UNKNOWN, AttentionException.of(Status.UNKNOWN, new Metadata()).code());
  }

  @Test
  void turnedOff() {
    assertNull(retry(Retry.Kind.REPEATABLE, Duration.ofMinutes(1), 1).pauseAfter(lost()));
    assertNull(retry(Retry.Kind.APPEND, Duration.ofMinutes(1), 1).pauseAfter(underWay()));
  }

  @Test
  void lostConnectionsAreOpenedAtOnce() {
    AtomicInteger opened = new AtomicInteger();
    Retry retry =
        new Retry(
            Retry.Kind.REPEATABLE,
            new CallContext(Duration.ofMinutes(1), 4, null, Runnable::run, null),
            opened::incrementAndGet);
    retry.pauseAfter(busy("1"));
    assertEquals(0, opened.get());
    retry.pauseAfter(lost());
    assertEquals(1, opened.get());
  }
}
