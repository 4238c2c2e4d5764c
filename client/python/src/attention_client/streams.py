"""Streams that stay open between calls.

Each message has a stream to itself until it is answered, so that none waits for
the answer to another's. At most MOST messages are under way; more wait.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import grpc

from attention_client import errors, waiting, wire

MOST = 16


class Stream(Protocol):
    """One stream, for one message at a time."""

    async def exchange(self, message: wire.Message, limit: float) -> Any:
        """The answer, an object with the buffer protocol. Whatever is raised
        instead ends the stream."""

    def close(self) -> None:
        """Ends the stream well, between messages."""

    def cancel(self) -> None:
        """Ends it after a message that failed. May be repeated."""


_AnyStream = TypeVar("_AnyStream", bound=Stream)


class StreamsBase(Generic[_AnyStream]):
    """Streams of one method. What is sent must be safe to send again."""

    def __init__(self, open_stream: Callable[[], _AnyStream]) -> None:
        self._open = open_stream
        # Those that nobody uses; the last one was used last.
        self._idle: deque[_AnyStream] = deque()
        self._closed = False

    async def _exchange(self, message: wire.Message, limit: float) -> Any:
        end = time.monotonic() + limit
        await self._enter(limit)
        try:
            try:
                kept = self._idle.pop()
            except IndexError:
                pass
            else:
                try:
                    return await self._on(kept, message, _left(end))
                except errors.AttentionError as error:
                    if not _ended_between(error):
                        raise
            return await self._on(self._open(), message, _left(end))
        finally:
            self._leave()

    async def _on(
        self, stream: _AnyStream, message: wire.Message, limit: float
    ) -> Any:
        try:
            answer = await stream.exchange(message, limit)
        except BaseException:
            stream.cancel()
            raise
        self._idle.append(stream)
        if self._closed:
            self._close_idle()
        return answer

    def close(self) -> None:
        """Ends what is idle, and the others once they are."""
        self._closed = True
        self._close_idle()

    def _close_idle(self) -> None:
        while True:
            try:
                self._idle.pop().close()
            except IndexError:
                return

    async def _enter(self, limit: float) -> None:
        raise NotImplementedError

    def _leave(self) -> None:
        raise NotImplementedError


class Streams(StreamsBase[_AnyStream]):
    """For threads. Thread-safe."""

    def __init__(self, open_stream: Callable[[], _AnyStream]) -> None:
        super().__init__(open_stream)
        self._free = threading.Semaphore(MOST)

    def exchange(self, message: wire.Message, limit: float) -> Any:
        return waiting.run(self._exchange(message, limit))

    async def _enter(self, limit: float) -> None:
        wait = None if limit == math.inf else max(0, limit)
        if not self._free.acquire(timeout=wait):
            raise out_of_time()

    def _leave(self) -> None:
        self._free.release()


class AsyncStreams(StreamsBase[_AnyStream]):
    """For the tasks of one event loop."""

    def __init__(self, open_stream: Callable[[], _AnyStream]) -> None:
        super().__init__(open_stream)
        self._free = asyncio.Semaphore(MOST)

    async def exchange(self, message: wire.Message, limit: float) -> Any:
        return await self._exchange(message, limit)

    async def _enter(self, limit: float) -> None:
        wait = None if limit == math.inf else max(0, limit)
        try:
            await asyncio.wait_for(self._free.acquire(), wait)
        except asyncio.TimeoutError:
            raise out_of_time() from None

    def _leave(self) -> None:
        self._free.release()


def out_of_time(target: str = "") -> errors.AttentionError:
    return errors.DeadlineExceeded(
        grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", target=target
    )


def ended(target: str) -> errors.AttentionError:
    """What a stream raises that the server has ended well, without an
    answer."""
    return errors.Unavailable(
        grpc.StatusCode.UNAVAILABLE,
        "the server ended the stream before its answer",
        target=target,
    )


def _ended_between(error: errors.AttentionError) -> bool:
    """Whether a stream may have failed for what happened while it was idle: the
    server drains, heard nothing for long, is short of memory or knows its token
    no more, in whose place a new stream may have another."""
    if error.forbids_retry:
        return False
    return (error.code is grpc.StatusCode.UNAVAILABLE and not error.reason) or (
        error.code is grpc.StatusCode.UNAUTHENTICATED
        or error.reason in ("DRAINING", "IDLE_TOO_LONG", "MEMORY_BUSY")
    )


def _left(end: float) -> float:
    return end - time.monotonic()
