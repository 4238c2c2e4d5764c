package io.github.attentionservice;

import java.lang.ref.WeakReference;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Iterator;
import java.util.List;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.ScheduledFuture;
import java.util.concurrent.TimeUnit;

/**
 * Renews the leases of the sessions whose objects live, when nothing has used them for a third of
 * the lease. One timer per client, which begins with the first session.
 */
final class LeaseKeeper {
  /** Asks for the session, and calls back whether it was told of it. */
  interface Renewal {
    void start(SessionState session, Duration timeout, Runnable ended);
  }

  private static final long LEAST_PAUSE_NANOS = TimeUnit.MILLISECONDS.toNanos(20);

  private static final Duration LONGEST_PAUSE = Duration.ofDays(1);

  private static final class Kept {
    final WeakReference<Session> session;
    final SessionState state;
    final long thirdNanos;
    boolean renewing;
    // The earliest time of another try.
    long notBefore;

    Kept(Session session, SessionState state) {
      this.session = new WeakReference<>(session);
      this.state = state;
      Duration lease = state.config().lease();
      // A server tells it always.
      Duration third = (lease.isZero() ? Duration.ofMinutes(1) : lease).dividedBy(3);
      this.thirdNanos =
          third.compareTo(LONGEST_PAUSE) > 0
              ? LONGEST_PAUSE.toNanos()
              : Math.max(third.toNanos(), LEAST_PAUSE_NANOS);
      this.notBefore = System.nanoTime();
    }

    long due() {
      long idle = state.lastUsed() + thirdNanos;
      return idle - notBefore > 0 ? idle : notBefore;
    }
  }

  private final ScheduledExecutorService timer;
  private final Renewal renewal;
  private final List<Kept> kept = new ArrayList<>();
  private ScheduledFuture<?> next;
  private boolean closed;

  LeaseKeeper(ScheduledExecutorService timer, Renewal renewal) {
    this.timer = timer;
    this.renewal = renewal;
  }

  synchronized void add(Session session, SessionState state) {
    kept.add(new Kept(session, state));
    schedule();
  }

  synchronized void remove(SessionState state) {
    kept.removeIf(one -> one.state == state);
  }

  synchronized void close() {
    closed = true;
    kept.clear();
    if (next != null) {
      next.cancel(false);
    }
  }

  private synchronized void schedule() {
    if (next != null) {
      next.cancel(false);
      next = null;
    }
    if (closed || kept.isEmpty()) {
      return;
    }
    long now = System.nanoTime();
    long soonest = Long.MAX_VALUE;
    for (Kept one : kept) {
      soonest = Math.min(soonest, one.renewing ? one.thirdNanos : one.due() - now);
    }
    next =
        timer.schedule(this::renewDue, Math.max(soonest, LEAST_PAUSE_NANOS), TimeUnit.NANOSECONDS);
  }

  private void renewDue() {
    List<Kept> due = new ArrayList<>();
    synchronized (this) {
      long now = System.nanoTime();
      for (Iterator<Kept> i = kept.iterator(); i.hasNext(); ) {
        Kept one = i.next();
        if (one.session.get() == null || one.state.isGone()) {
          i.remove();
        } else if (!one.renewing && one.due() - now <= 0) {
          one.renewing = true;
          // If it fails, soon again: the lease lasts for two thirds more.
          one.notBefore = now + one.thirdNanos / 4;
          due.add(one);
        }
      }
    }
    for (Kept one : due) {
      renewal.start(one.state, Duration.ofNanos(one.thirdNanos), () -> ended(one));
    }
    schedule();
  }

  private void ended(Kept one) {
    synchronized (this) {
      one.renewing = false;
    }
    schedule();
  }
}
