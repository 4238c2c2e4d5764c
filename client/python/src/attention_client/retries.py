"""Whether and when a call that failed is tried again: docs/retries.md."""

from __future__ import annotations

import enum
import random
import time

import grpc

from attention_client import errors

DEFAULT_MAX_ATTEMPTS = 4

# Seconds.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_FIRST_UNDER_WAY, _LONGEST_UNDER_WAY = 0.01, 0.5


class Twice(enum.Enum):
    """What comes of doing a call twice."""

    HARMFUL = "not the same as once"
    HARMLESS = "the same as once"
    # And a try may still run.
    APPEND = "the same as once, by its request id"


class Retries:
    """Of one call."""

    def __init__(self, twice: Twice, max_attempts: int) -> None:
        self._twice = twice
        self._max_attempts = max_attempts
        self._attempts = 0  # Those that count.
        self._under_way = _FIRST_UNDER_WAY

    def pause_after(
        self, failed: errors.AttentionError, end: float
    ) -> float | None:
        """To be asked after each try that failed: the seconds until the next
        one; None: there is none, or it would begin after `end`, of
        time.monotonic()."""
        self._attempts += 1
        pause = self._pause_after(failed)
        # Up to a fifth longer, so that clients which were refused together do
        # not come back together.
        if pause is not None:
            pause *= random.uniform(1, 1.2)
            if time.monotonic() + pause < end:
                return pause
        return None

    def _pause_after(self, failed: errors.AttentionError) -> float | None:
        if failed.forbids_retry:
            return None
        delay = failed.retry_delay
        told = None if delay is None else delay.total_seconds()
        unavailable = failed.code is grpc.StatusCode.UNAVAILABLE
        if unavailable and failed.reason == errors.UNDER_WAY:
            if self._twice is not Twice.APPEND or self._max_attempts == 1:
                return None
            self._attempts -= 1
            # Longer each time, so that large messages are not sent over and
            # over.
            own = self._under_way
            self._under_way = min(2 * own, _LONGEST_UNDER_WAY)
            return max(told or 0, own)
        if unavailable:
            may_repeat = failed.reason == "DRAINING" or (
                not failed.reason and self._twice is not Twice.HARMFUL
            )
        else:
            may_repeat = (
                failed.code is grpc.StatusCode.RESOURCE_EXHAUSTED
                and told is not None
            )
        if not may_repeat or self._attempts >= self._max_attempts:
            return None
        if told is not None:
            return told
        return min(
            _FIRST_PAUSE * (1 << min(self._attempts - 1, 10)), _LONGEST_PAUSE
        )
