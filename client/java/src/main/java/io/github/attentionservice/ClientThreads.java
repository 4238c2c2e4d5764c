package io.github.attentionservice;

import io.grpc.netty.shaded.io.netty.channel.EventLoopGroup;
import io.grpc.netty.shaded.io.netty.channel.SingleThreadIoEventLoop;
import io.grpc.netty.shaded.io.netty.channel.epoll.Epoll;
import io.grpc.netty.shaded.io.netty.channel.epoll.EpollIoHandler;
import io.grpc.netty.shaded.io.netty.channel.nio.NioIoHandler;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.Executor;
import java.util.concurrent.ForkJoinPool;
import java.util.concurrent.ForkJoinWorkerThread;
import java.util.concurrent.ScheduledThreadPoolExecutor;
import java.util.concurrent.ThreadFactory;
import java.util.concurrent.TimeUnit;

/**
 * The threads of one client. They keep no process alive, and end with the client. Timer and workers
 * begin when they are needed.
 */
final class ClientThreads {
  private static final int MOST_WORKERS = 256;
  private static final long IDLE_SECONDS = 10;

  // Those that live, and some that have ended.
  private final Set<Thread> begun = ConcurrentHashMap.newKeySet();
  private final boolean epoll = Epoll.isAvailable();
  // One, which reads and writes all connections of the client.
  private final EventLoopGroup io =
      new SingleThreadIoEventLoop(
          null,
          named("attention-client-io"),
          epoll ? EpollIoHandler.newFactory() : NioIoHandler.newFactory());
  private final ScheduledThreadPoolExecutor timer =
      new ScheduledThreadPoolExecutor(1, named("attention-client-timer"));
  // Null: the caller has given one.
  private final ForkJoinPool ownWorkers;
  private final Executor workers;

  /** `givenWorkers` may be null. */
  ClientThreads(Executor givenWorkers) {
    timer.setRemoveOnCancelPolicy(true);
    timer.setKeepAliveTime(IDLE_SECONDS, TimeUnit.SECONDS);
    timer.allowCoreThreadTimeOut(true);
    ownWorkers = givenWorkers == null ? newWorkers() : null;
    workers = givenWorkers == null ? ownWorkers : givenWorkers;
  }

  /** A pool that gets more threads while some of them wait for futures. */
  private ForkJoinPool newWorkers() {
    return new ForkJoinPool(
        Math.max(2, Runtime.getRuntime().availableProcessors()),
        pool -> {
          ForkJoinWorkerThread thread =
              ForkJoinPool.defaultForkJoinWorkerThreadFactory.newThread(pool);
          thread.setName("attention-client-worker-" + thread.getPoolIndex());
          remember(thread);
          return thread;
        },
        null,
        true,
        0,
        MOST_WORKERS,
        1,
        pool -> true,
        IDLE_SECONDS,
        TimeUnit.SECONDS);
  }

  private void remember(Thread thread) {
    begun.removeIf(one -> one.getState() == Thread.State.TERMINATED);
    begun.add(thread);
  }

  private ThreadFactory named(String name) {
    return task -> {
      Thread thread = new Thread(task, name);
      thread.setDaemon(true);
      remember(thread);
      return thread;
    };
  }

  EventLoopGroup io() {
    return io;
  }

  boolean isEpoll() {
    return epoll;
  }

  ScheduledThreadPoolExecutor timer() {
    return timer;
  }

  /** Where answers are read, and what depends on futures goes on. */
  Executor workers() {
    return workers;
  }

  /** Ends them, and waits for that as far as this thread is none of them. */
  void close(long timeoutNanos) throws InterruptedException {
    timer.shutdownNow();
    boolean mine = begun.contains(Thread.currentThread());
    if (ownWorkers != null) {
      ownWorkers.shutdown();
      if (!mine) {
        ownWorkers.awaitTermination(timeoutNanos, TimeUnit.NANOSECONDS);
      }
    }
    // Last, since the others may have something to write.
    io.shutdownGracefully(0, timeoutNanos, TimeUnit.NANOSECONDS);
    long end = System.nanoTime() + timeoutNanos;
    for (Thread thread : begun) {
      if (thread != Thread.currentThread()) {
        thread.join(Math.max(1, (end - System.nanoTime()) / 1_000_000));
      }
    }
  }
}
