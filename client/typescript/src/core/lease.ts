/** Keeps the leases of sessions that are in use alive. */

import type { SessionState } from "./session_state.js";

/** A third of the lease, or up to a quarter less. */
function intervalOf(session: SessionState): number {
  return (session.leaseMs / 3) * (0.75 + 0.25 * Math.random());
}

/**
 * Renews sessions that nothing has used for about a third of their lease. One timer for all of them, from
 * the first session to close(); it keeps no process alive. A session that nothing refers to any more is
 * forgotten. @internal
 */
export class LeaseRenewer {
  readonly #renew: (session: SessionState) => Promise<void>;
  readonly #sessions = new Set<WeakRef<SessionState>>();
  #timer: ReturnType<typeof setTimeout> | undefined;
  #due = Infinity;
  #closed = false;

  constructor(renew: (session: SessionState) => Promise<void>) {
    this.#renew = renew;
  }

  add(session: SessionState): void {
    if (this.#closed) return;
    session.renewAt = performance.now() + intervalOf(session);
    this.#sessions.add(new WeakRef(session));
    this.#plan(session.renewAt);
  }

  close(): void {
    this.#closed = true;
    this.#sessions.clear();
    clearTimeout(this.#timer);
  }

  #plan(due: number): void {
    if (this.#closed || due >= this.#due) return;
    clearTimeout(this.#timer);
    this.#due = due;
    const wait = Math.min(Math.max(due - performance.now(), 0), 0x7fffffff);
    this.#timer = setTimeout(() => {
      this.#look();
    }, wait);
    // Not in browsers, which have numbers for timers.
    (this.#timer as { unref?: () => void }).unref?.();
  }

  #look(): void {
    this.#due = Infinity;
    const now = performance.now();
    let next = Infinity;
    for (const ref of this.#sessions) {
      const session = ref.deref();
      if (session === undefined || session.gone) {
        this.#sessions.delete(ref);
        continue;
      }
      if (session.renewAt <= now) {
        session.renewAt = session.lastUsed + intervalOf(session);
        if (session.renewAt <= now) this.#start(session, now);
      }
      next = Math.min(next, session.renewAt);
    }
    this.#plan(next);
  }

  #start(session: SessionState, begun: number): void {
    // Meanwhile, and where there is no answer: soon again, for there is time for some more.
    session.renewAt = begun + session.leaseMs / 12;
    this.#renew(session).then(
      () => {
        session.renewAt = begun + intervalOf(session);
      },
      () => undefined,
    );
  }
}
