package io.github.attentionservice;

import java.time.Duration;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.Executor;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.ScheduledFuture;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;

/**
 * One call of a user, with all its attempts: until when it may take, on which thread it goes on,
 * and how it is ended early.
 */
final class CallContext {
  private static final long LONGEST_NANOS = Duration.ofDays(3650).toNanos();

  private final long deadline;
  private final int maxAttempts;
  private final String requestId;
  private final Executor executor;
  private final ScheduledExecutorService timer;

  // Ends what is under way with this error.
  private Ending ending;
  private AttentionException endedWith;

  /** Ends something that is under way. May be called when it has ended already. */
  interface Ending {
    void end(AttentionException error);
  }

  CallContext(
      Duration timeout,
      int maxAttempts,
      String requestId,
      Executor executor,
      ScheduledExecutorService timer) {
    long nanos =
        timeout.compareTo(Duration.ofNanos(LONGEST_NANOS)) >= 0
            ? LONGEST_NANOS
            : Math.max(timeout.toNanos(), 0);
    this.deadline = System.nanoTime() + nanos;
    this.maxAttempts = maxAttempts;
    this.requestId = requestId;
    this.executor = executor;
    this.timer = timer;
  }

  long remainingNanos() {
    return deadline - System.nanoTime();
  }

  int maxAttempts() {
    return maxAttempts;
  }

  /** Null if there is none. */
  String requestId() {
    return requestId;
  }

  Executor executor() {
    return executor;
  }

  /** Says how to end what is under way now. Ends it at once if the call has been ended. */
  void underWay(Ending newEnding) {
    AttentionException error;
    synchronized (this) {
      ending = newEnding;
      error = endedWith;
    }
    if (error != null) {
      newEnding.end(error);
    }
  }

  /** Ends the call: what is under way fails with this error. */
  void end(AttentionException error) {
    Ending now;
    synchronized (this) {
      if (endedWith != null) {
        return;
      }
      endedWith = error;
      now = ending;
    }
    if (now != null) {
      now.end(error);
    }
  }

  /** The error of a call that was ended early, whatever came of what was under way then. */
  synchronized AttentionException endedOr(AttentionException error) {
    return endedWith == null ? error : endedWith;
  }

  synchronized boolean isEnded() {
    return endedWith != null;
  }

  /** Goes on after a pause, on the call's executor. */
  void after(Duration pause, Runnable next, Ending ifEnded) {
    ScheduledFuture<?> task;
    try {
      task = timer.schedule(() -> executor.execute(next), pause.toNanos(), TimeUnit.NANOSECONDS);
    } catch (RejectedExecutionException e) {
      // The client was closed just now.
      ifEnded.end(AttentionException.cancelled());
      return;
    }
    underWay(
        error -> {
          // Whoever cancels the pause goes on in its place.
          if (task.cancel(false)) {
            ifEnded.end(error);
          }
        });
  }

  /**
   * Ends the call at its deadline, where neither gRPC nor a thread that waits looks after that. The
   * timer is given up when the future is done.
   */
  void watch(CompletableFuture<?> future) {
    if (executor instanceof CallerExecutor) {
      return;
    }
    ScheduledFuture<?> task =
        timer.schedule(
            () -> executor.execute(() -> end(AttentionException.timedOut())),
            Math.max(remainingNanos(), 0),
            TimeUnit.NANOSECONDS);
    future.whenComplete((value, error) -> task.cancel(false));
  }

  /**
   * What the user gets: a future that ends the call when it is done before it, be it by {@code
   * cancel} or {@code orTimeout}, itself or one that depends on it.
   */
  <T> CompletableFuture<T> handOut(CompletableFuture<T> inner) {
    CompletableFuture<T> outer = new Cancelling<>(this);
    inner.whenComplete(
        (value, error) -> {
          if (error == null) {
            outer.complete(value);
          } else {
            outer.completeExceptionally(unwrap(error));
          }
        });
    outer.whenComplete(
        (value, error) -> {
          if (!inner.isDone()) {
            end(
                error instanceof TimeoutException
                    ? AttentionException.timedOut()
                    : AttentionException.cancelled());
          }
        });
    return outer;
  }

  static Throwable unwrap(Throwable error) {
    Throwable at = error;
    while (at instanceof CompletionException && at.getCause() != null) {
      at = at.getCause();
    }
    return at;
  }

  private static final class Cancelling<T> extends CompletableFuture<T> {
    private final CallContext context;

    Cancelling(CallContext context) {
      this.context = context;
    }

    @Override
    public boolean cancel(boolean mayInterruptIfRunning) {
      boolean cancelled = super.cancel(mayInterruptIfRunning);
      if (cancelled) {
        context.end(AttentionException.cancelled());
      }
      return cancelled;
    }

    @Override
    public <U> CompletableFuture<U> newIncompleteFuture() {
      return new Cancelling<>(context);
    }
  }
}
