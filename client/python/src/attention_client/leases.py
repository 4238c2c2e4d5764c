"""Leases of sessions, renewed while somebody holds the session."""

from __future__ import annotations

import heapq
import itertools
import random
import threading
import time
import weakref
from collections.abc import Callable

from attention_client import errors

# A thread that waits looks this often whether any lease is left.
_LOOK_EVERY = 30.0  # seconds
# Of a lease's interval, when it is renewed at the soonest.
_SOONEST = 0.8


class Lease:
    """The lease of one session; lives as long as the session's object."""

    def __init__(
        self, session_id: str, seconds: float, incarnation: int = 0
    ) -> None:
        self.session_id = session_id
        # Tells the session from others of its id; 0: the server told none.
        self.incarnation = incarnation
        self.interval = seconds / 3
        self.used_at = time.monotonic()
        # Whether it is not to be renewed any more.
        self.over = False
        # Whether the server has said that there is no such session any more.
        self.gone = False

    def used(self) -> None:
        """A call has named the session, which began the lease anew."""
        self.used_at = time.monotonic()

    def lost(self) -> None:
        self.over = self.gone = True


class LeaseRenewer:
    """Renews leases that nothing has used for a third of their time, on one
    thread.

    It refers to leases weakly: who forgets a session lets it expire. The thread
    ends when no lease is left, and keeps no process alive. Thread-safe.
    """

    def __init__(self, renew: Callable[[Lease, float], None]) -> None:
        """`renew` asks the server, within so many seconds."""
        self._renew = renew
        self._changed = threading.Condition()
        # What follows is guarded by it. When to look, and at what; the number
        # tells apart what is due at the same time.
        self._due: list[tuple[float, int, weakref.ref[Lease]]] = []
        self._numbers = itertools.count()
        self._running = False
        self._closed = False

    def watch(self, lease: Lease) -> None:
        with self._changed:
            self._add(lease, lease.used_at + _jitter(lease.interval))
            self._changed.notify()
            if not self._running and not self._closed:
                self._running = True
                threading.Thread(
                    target=self._run, name="attention-leases", daemon=True
                ).start()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _run(self) -> None:
        while (lease := self._next()) is not None:
            self._look_after(lease)
            del lease  # It may be the last reference while this waits.

    def _next(self) -> Lease | None:
        """The next lease that is due; None at the end of the thread."""
        with self._changed:
            while True:
                if self._closed or not self._due:
                    self._running = False
                    return None
                wait = self._due[0][0] - time.monotonic()
                if wait <= 0:
                    lease = heapq.heappop(self._due)[2]()
                    if lease is not None and not lease.over:
                        return lease
                    continue
                self._changed.wait(min(wait, _LOOK_EVERY))
                self._forget_the_dead()

    def _forget_the_dead(self) -> None:
        living = [
            entry
            for entry in self._due
            if (lease := entry[2]()) is not None and not lease.over
        ]
        if len(living) < len(self._due):
            heapq.heapify(living)
            self._due = living

    def _look_after(self, lease: Lease) -> None:
        due = lease.used_at + _jitter(lease.interval)
        if time.monotonic() - lease.used_at >= _SOONEST * lease.interval:
            try:
                self._renew(lease, lease.interval)
            except errors.NotFound:
                lease.lost()
            except errors.AttentionError:
                # Soon again: the server may be back before the lease is over.
                due = time.monotonic() + _jitter(lease.interval / 4)
            except ValueError:
                return  # The client is closed.
            else:
                lease.used()
                due = lease.used_at + _jitter(lease.interval)
        with self._changed:
            if not lease.over:
                self._add(lease, due)

    def _add(self, lease: Lease, due: float) -> None:
        entry = (due, next(self._numbers), weakref.ref(lease))
        heapq.heappush(self._due, entry)


def _jitter(seconds: float) -> float:
    """So that sessions which began together are not renewed together."""
    return seconds * random.uniform(_SOONEST, 1)
