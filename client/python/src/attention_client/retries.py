"""Trying again what can be tried again: calls that are done once, however
often they are sent."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

from attention_client import errors

_Result = TypeVar("_Result")
Sleep = Callable[[float], Awaitable[None]]

# Seconds before the second and the third try, on average.
DELAYS = (0.05, 0.25)


# Seconds: the first and the longest pause before an append is sent again of
# which an earlier try still runs.
_PAUSES = (0.01, 0.5)


def growing_pauses() -> Iterator[float]:
    """Each twice as long as the last, so that large messages are not sent over
    and over."""
    pause, longest = _PAUSES
    while True:
        yield pause
        pause = min(2 * pause, longest)


async def until_answered(
    call: Callable[[float], Awaitable[_Result]], limit: float, sleep: Sleep
) -> _Result:
    """What `call` returns, which takes the seconds that are left: tried again
    where the server could not be reached, or went away before its answer."""
    end = time.monotonic() + limit
    for delay in DELAYS:
        try:
            return await call(end - time.monotonic())
        except errors.Unavailable:
            pause = delay * random.uniform(0.5, 1.5)
            if time.monotonic() + pause >= end:
                raise
            await sleep(pause)
    return await call(end - time.monotonic())
