package io.github.attentionservice;

import java.util.Queue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.Executor;
import java.util.concurrent.locks.LockSupport;

/**
 * Runs the callbacks of one blocking call on the thread that waits for it, so that an answer costs
 * one change of threads and is read where it is wanted.
 */
final class CallerExecutor implements Executor {
  // gRPC tells the deadline itself, with more to say, if it is given this long.
  private static final long GRACE_NANOS = 20_000_000;

  private final Queue<Runnable> tasks = new ConcurrentLinkedQueue<>();
  private final Thread caller = Thread.currentThread();
  private volatile boolean left;

  @Override
  public void execute(Runnable task) {
    tasks.add(task);
    if (left) {
      runAll();
    } else {
      LockSupport.unpark(caller);
    }
  }

  /**
   * Waits for the call. A thread that is interrupted cancels the call, and stays interrupted.
   *
   * @throws AttentionException if the call failed
   */
  <T> T await(CompletableFuture<T> future, CallContext context) {
    future.whenComplete((value, error) -> LockSupport.unpark(caller));
    boolean interrupted = false;
    try {
      while (!future.isDone()) {
        Runnable task = tasks.poll();
        if (task != null) {
          task.run();
          continue;
        }
        long nanos = context.remainingNanos() + GRACE_NANOS;
        if (nanos <= 0) {
          context.end(AttentionException.timedOut());
          nanos = GRACE_NANOS;
        }
        if (!future.isDone() && tasks.isEmpty()) {
          LockSupport.parkNanos(this, nanos);
        }
        if (Thread.interrupted()) {
          interrupted = true;
          context.end(AttentionException.cancelled());
        }
      }
    } finally {
      left = true;
      runAll();
      if (interrupted) {
        caller.interrupt();
      }
    }
    return Futures.result(future);
  }

  private void runAll() {
    for (Runnable task = tasks.poll(); task != null; task = tasks.poll()) {
      task.run();
    }
  }
}
