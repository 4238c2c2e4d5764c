"""One text for clients that wait and for clients of asyncio.

What takes several calls is written as a coroutine. Under a client that waits,
everything it awaits has ended when it is awaited, so that it never suspends.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

_Result = TypeVar("_Result")


def run(coroutine: Coroutine[Any, Any, _Result]) -> _Result:
    """The result of a coroutine that never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: _Result = end.value
        return result
    coroutine.close()
    raise AssertionError("the coroutine waits for an event loop")
