"""What sends a client's calls: one interface, two implementations.

native_core stands on the project's C++ client, as attention_client._native,
where that is built in; pure_core on grpcio alone. They do the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from attention_client import connection, wire
from attention_client.results import AttentionResult

# Says which one to take, "native" or "pure", for tests. Empty: the native one
# where there is one that can do what is asked for.
VARIABLE = "ATTENTION_CLIENT_CORE"

_INT32 = range(-(2**31), 2**31)
_Read = TypeVar("_Read")


@dataclass(frozen=True)
class Settings:
    """What a client was made with, once it is checked."""

    target: str
    security: connection.Security
    # gRPC's channel arguments.
    options: tuple[tuple[str, Any], ...]
    # With a server on this machine that offers it.
    use_shared_memory: bool
    # Tries of a call. Cores make one; what they give to others makes all.
    max_attempts: int


class Core(Protocol):
    """Thread-safe. A time limit is in seconds, infinity for none. Each function
    tries its call once.

    A call that fails raises an AttentionError, and so does one that close()
    ends; a call after close() raises ValueError.
    """

    def compute(self, request: wire.Request, limit: float) -> AttentionResult:
        """Nothing refers to the request's memory any more once it returns."""

    def call(
        self,
        method: str,
        message: bytes,
        limit: float,
        read: Callable[[bytes], _Read],
    ) -> _Read:
        """Calls a method, "/package.Service/Method", and reads its answer."""

    def exchange(
        self,
        method: str,
        message: wire.Message,
        limit: float,
        read: Callable[[Any], _Read],
    ) -> _Read:
        """Sends a message on a stream of this method, each of whose messages is
        answered by one, and reads the answer, an object with the buffer
        protocol. Streams are kept open between calls. The message must be safe
        to send again, which happens where such a stream has ended meanwhile.
        """

    def allocate(self, size: int) -> Any:
        """So many bytes, aligned to 64, that calls send from best: an object
        with the buffer protocol."""

    def close(self) -> None:
        """Ends running calls. May be repeated."""


class BlockingCalls(Protocol):
    """Calls that wait, beside those of an AsyncCore."""

    def call(
        self,
        method: str,
        message: bytes,
        limit: float,
        read: Callable[[bytes], _Read],
    ) -> _Read: ...


class AsyncCore(Protocol):
    """As Core, for any number of event loops."""

    async def compute(
        self, request: wire.Request, limit: float
    ) -> AttentionResult: ...

    async def call(
        self,
        method: str,
        message: bytes,
        limit: float,
        read: Callable[[bytes], _Read],
    ) -> _Read: ...

    async def exchange(
        self,
        method: str,
        message: wire.Message,
        limit: float,
        read: Callable[[Any], _Read],
    ) -> _Read: ...

    def blocking(self) -> BlockingCalls:
        """Of the same connection where that can be; ends with this core."""

    def allocate(self, size: int) -> Any: ...

    async def close(self) -> None: ...


CLOSED = "Cannot invoke RPC on closed channel!"


def is_native(settings: Settings) -> bool:
    """Whether the native core is to be taken.

    Raises:
        ImportError, ValueError: VARIABLE wants one that there is not, or that
            cannot do what is asked for.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", "native", "pure"):
        raise ValueError(
            f"{VARIABLE}: got {wanted!r}, wanted 'native' or 'pure'"
        )
    if wanted == "pure":
        return False
    obstacle = _obstacle(settings)
    if wanted == "native":
        if obstacle:
            raise ValueError(
                f"{VARIABLE}: got 'native', which takes no {obstacle}"
            )
        from attention_client import _native  # noqa: F401

        return True
    return not obstacle and _can_import()


def _can_import() -> bool:
    try:
        from attention_client import _native  # noqa: F401
    except ImportError:
        return False
    return True


def _obstacle(settings: Settings) -> str:
    """What only grpcio can do; "" if nothing."""
    if settings.security.credentials is not None:
        return "credentials"
    for name, value in settings.options:
        if isinstance(value, bytes) or (
            isinstance(value, int) and value not in _INT32
        ):
            return f"channel option {name} of this type"
    return ""
