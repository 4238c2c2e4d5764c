package io.github.attentionservice;

import io.grpc.Status;
import java.time.Duration;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ThreadLocalRandom;
import java.util.function.Supplier;

/**
 * When a call is tried again, by the table that all clients of the service share:
 *
 * <ul>
 *   <li>RESOURCE_EXHAUSTED with a delay, and UNAVAILABLE (DRAINING): always, since nothing was
 *       done;
 *   <li>UNAVAILABLE (APPEND_UNDER_WAY): appends, until they get another answer;
 *   <li>UNAVAILABLE without a reason: the connection was lost, and nobody knows whether the call
 *       was done. So it is tried again where it may be done twice;
 *   <li>anything else: never.
 * </ul>
 */
final class Retry {
  /** What may happen if a call is done twice. */
  enum Kind {
    /** Nothing. */
    REPEATABLE,
    /** Nothing, since it has a request id; an earlier try may still be under way. */
    APPEND,
    /** It must not. */
    ONCE
  }

  private static final Duration FIRST_PAUSE = Duration.ofMillis(100);
  private static final Duration LONGEST_PAUSE = Duration.ofSeconds(5);
  private static final Duration FIRST_UNDER_WAY = Duration.ofMillis(10);
  private static final Duration LONGEST_UNDER_WAY = Duration.ofMillis(500);

  private final Kind kind;
  private final CallContext context;
  private final Runnable lostConnection;
  private int attempts;
  private int underWay;

  /** `lostConnection` runs before a try that follows a lost connection. */
  Retry(Kind kind, CallContext context, Runnable lostConnection) {
    this.kind = kind;
    this.context = context;
    this.lostConnection = lostConnection;
  }

  /** Tries until there is an answer or an error that is final. */
  <T> CompletableFuture<T> run(Supplier<CompletableFuture<T>> attempt) {
    CompletableFuture<T> result = new CompletableFuture<>();
    tryOnce(attempt, result);
    return result;
  }

  private <T> void tryOnce(Supplier<CompletableFuture<T>> attempt, CompletableFuture<T> result) {
    if (context.remainingNanos() <= 0) {
      result.completeExceptionally(AttentionException.timedOut());
      return;
    }
    CompletableFuture<T> tried;
    try {
      tried = attempt.get();
    } catch (RuntimeException e) {
      result.completeExceptionally(e);
      return;
    }
    tried.whenComplete(
        (value, error) -> {
          if (error == null) {
            result.complete(value);
            return;
          }
          // An exception here would be seen by nobody, and the call would never end.
          try {
            AttentionException failure = Futures.errorOf(error);
            Duration pause = pauseAfter(failure);
            if (pause == null) {
              result.completeExceptionally(context.endedOr(failure));
              return;
            }
            context.after(pause, () -> tryOnce(attempt, result), result::completeExceptionally);
          } catch (RuntimeException bug) {
            result.completeExceptionally(bug);
          }
        });
  }

  /** How long to wait before the next try; null if there is none. Counts the tries. */
  Duration pauseAfter(AttentionException error) {
    if (error.retryForbidden() || context.maxAttempts() <= 1 || context.isEnded()) {
      return null;
    }
    Duration pause;
    if (isUnderWay(error)) {
      if (kind != Kind.APPEND) {
        return null;
      }
      pause = error.retryDelay().orElse(doubled(FIRST_UNDER_WAY, underWay, LONGEST_UNDER_WAY));
      ++underWay;
    } else {
      ++attempts;
      if (!mayTryAgain(error) || attempts >= context.maxAttempts()) {
        return null;
      }
      pause = error.retryDelay().orElse(doubled(FIRST_PAUSE, attempts - 1, LONGEST_PAUSE));
    }
    double nanos = pause.toMillis() * 1e6 + pause.toNanosPart() % 1_000_000;
    nanos *= ThreadLocalRandom.current().nextDouble(1, 1.2);
    if (nanos >= context.remainingNanos()) {
      return null;
    }
    if (isLost(error)) {
      lostConnection.run();
    }
    return Duration.ofNanos((long) nanos);
  }

  private boolean mayTryAgain(AttentionException error) {
    return switch (error.code()) {
      case RESOURCE_EXHAUSTED -> error.retryDelay().isPresent();
      case UNAVAILABLE -> error.hasReason("DRAINING") || isLost(error) && kind != Kind.ONCE;
      default -> false;
    };
  }

  static boolean isUnderWay(AttentionException error) {
    return error.code() == Status.Code.UNAVAILABLE && error.hasReason("APPEND_UNDER_WAY");
  }

  static boolean isLost(AttentionException error) {
    return error.code() == Status.Code.UNAVAILABLE && error.hasReason("");
  }

  private static Duration doubled(Duration first, int times, Duration most) {
    Duration pause = first.multipliedBy(1L << Math.min(times, 20));
    return pause.compareTo(most) < 0 ? pause : most;
  }
}
