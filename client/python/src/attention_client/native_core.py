"""Calls by the C++ client, from the arrays' own memory."""

from __future__ import annotations

import asyncio
import datetime
import math
import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2

from attention_client import (
    _native,
    connection,
    errors,
    results,
    streams,
    wire,
)
from attention_client.core import Settings
from attention_client.results import AttentionResult

_Read = TypeVar("_Read")


class _Base:
    def __init__(self, settings: Settings) -> None:
        security = settings.security
        connection.check(security)  # Says more than gRPC would.
        options: dict[str, Any] = {}
        for name, value in settings.options:
            options.setdefault(name, value)  # Of two, gRPC takes the first.
        self._target = settings.target
        self._native = _native.Core(
            settings.target,
            security.tls,
            os.fsencode(security.tls_ca or ""),
            os.fsencode(security.tls_cert or ""),
            os.fsencode(security.tls_key or ""),
            security.token or "",
            os.fsencode(security.token_file or ""),
            security.allow_plaintext_token,
            settings.use_shared_memory,
            settings.max_attempts,
            options,
        )

    def allocate(self, size: int) -> Any:
        return self._native.allocate(size)

    def _result(
        self, outcome: _native.Answer | _native.Failure
    ) -> AttentionResult:
        if isinstance(outcome, _native.Failure):
            raise self._error(outcome)
        return results.result_of(outcome[:5], outcome[5])

    def _read(
        self, outcome: bytes | _native.Failure, read: Callable[[bytes], _Read]
    ) -> _Read:
        if isinstance(outcome, _native.Failure):
            raise self._error(outcome)
        return self._parsed(outcome, read)

    def _parsed(self, answer: Any, read: Callable[[Any], _Read]) -> _Read:
        try:
            return read(answer)
        except DecodeError as error:
            raise errors.malformed(str(error), self._target) from None

    def _error(self, failure: _native.Failure) -> Exception:
        if failure.too_large:
            return ValueError(
                f"request: got {failure.too_large} bytes, wanted at most "
                f"{wire.MAX_MESSAGE_BYTES}, the largest message of protobuf"
            )
        delay = failure.retry_delay_us
        return errors.from_status(
            failure.code,
            failure.message,
            target=self._target,
            field_violations=failure.field_violations,
            reason=failure.reason,
            retry_delay=(
                None
                if delay is None
                else datetime.timedelta(microseconds=delay)
            ),
            forbids_retry=failure.forbids_retry,
            metadata=_metadata(failure.error_info),
        )


def _metadata(error_info: bytes) -> dict[str, str]:
    try:
        return errors.metadata_of(
            error_details_pb2.ErrorInfo.FromString(error_info)
        )
    except DecodeError:
        return {}


class NativeCore(_Base):
    """A core.Core."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._lock = threading.Lock()  # Guards the next one.
        self._streams: dict[str, streams.Streams[_Stream]] = {}

    def compute(self, request: wire.Request, limit: float) -> AttentionResult:
        errors.check_time(limit, self._target)
        return self._result(
            self._native.compute(request.tensors, request.others, limit)
        )

    def call(
        self,
        method: str,
        message: bytes,
        limit: float,
        read: Callable[[bytes], _Read],
    ) -> _Read:
        errors.check_time(limit, self._target)
        return self._read(self._native.call(method, message, limit), read)

    def exchange(
        self,
        method: str,
        message: wire.Message,
        limit: float,
        read: Callable[[Any], _Read],
    ) -> _Read:
        wire.check_size(message.size)
        with self._lock:
            if method not in self._streams:
                self._streams[method] = streams.Streams(
                    lambda: _Stream(
                        self._native.open_stream(method, True), self._error
                    )
                )
        return self._parsed(
            self._streams[method].exchange(message, limit), read
        )

    def close(self) -> None:
        with self._lock:
            for kept in self._streams.values():
                kept.close()
        self._native.close()


class _Stream:
    """A streams.Stream."""

    def __init__(
        self,
        stream: _native.Stream,
        error: Callable[[_native.Failure], Exception],
    ) -> None:
        self._native = stream
        self._error = error

    async def exchange(self, message: wire.Message, limit: float) -> Any:
        outcome = self._native.exchange(message.pieces, limit)
        if isinstance(outcome, _native.Failure):
            raise self._error(outcome)
        return outcome

    def close(self) -> None:
        """It ends with the object."""

    def cancel(self) -> None:
        """It has ended."""


class AsyncNativeCore(_Base):
    """A core.AsyncCore."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._lock = threading.Lock()  # Guards the next one.
        # Those of loops that are closed go when another loop comes.
        self._streams: dict[
            asyncio.AbstractEventLoop,
            dict[str, streams.AsyncStreams[_AsyncStream]],
        ] = {}

    async def compute(
        self, request: wire.Request, limit: float
    ) -> AttentionResult:
        errors.check_time(limit, self._target)
        return self._result(
            await _ended(
                lambda done: self._native.start_compute(
                    request.tensors, request.others, limit, done
                )
            )
        )

    async def call(
        self,
        method: str,
        message: bytes,
        limit: float,
        read: Callable[[bytes], _Read],
    ) -> _Read:
        errors.check_time(limit, self._target)
        return self._read(
            await _ended(
                lambda done: self._native.start_call(
                    method, message, limit, done
                )
            ),
            read,
        )

    async def exchange(
        self,
        method: str,
        message: wire.Message,
        limit: float,
        read: Callable[[Any], _Read],
    ) -> _Read:
        wire.check_size(message.size)
        kept = self._streams_here()
        if method not in kept:
            kept[method] = streams.AsyncStreams(
                lambda: _AsyncStream(
                    self._native.open_stream(method, False), self._error
                )
            )
        return self._parsed(await kept[method].exchange(message, limit), read)

    def blocking(self) -> _BlockingCalls:
        return _BlockingCalls(self)

    async def close(self) -> None:
        with self._lock:
            for kept in self._streams.values():
                for of_method in kept.values():
                    of_method.close()
            self._streams = {}
        self._native.close()

    def _streams_here(self) -> dict[str, streams.AsyncStreams[_AsyncStream]]:
        loop = asyncio.get_running_loop()
        with self._lock:
            if loop not in self._streams:
                self._streams = {
                    other: kept
                    for other, kept in self._streams.items()
                    if not other.is_closed()
                }
                self._streams[loop] = {}
            return self._streams[loop]


class _BlockingCalls:
    """Calls of an AsyncNativeCore that wait."""

    def __init__(self, of: AsyncNativeCore) -> None:
        self._of = of

    def call(
        self,
        method: str,
        message: bytes,
        limit: float,
        read: Callable[[bytes], _Read],
    ) -> _Read:
        of = self._of
        return of._read(of._native.call(method, message, limit), read)


class _AsyncStream:
    """A streams.Stream."""

    def __init__(
        self,
        stream: _native.Stream,
        error: Callable[[_native.Failure], Exception],
    ) -> None:
        self._native = stream
        self._error = error

    async def exchange(self, message: wire.Message, limit: float) -> Any:
        ended = _ended(
            lambda done: self._native.start_exchange(message.pieces, done)
        )
        try:
            outcome = await asyncio.wait_for(
                ended, None if limit == math.inf else max(0, limit)
            )
        except asyncio.TimeoutError:
            raise streams.out_of_time() from None
        if isinstance(outcome, _native.Failure):
            raise self._error(outcome)
        return outcome

    def close(self) -> None:
        """It ends with the object."""

    def cancel(self) -> None:
        """It has ended."""


async def _ended(
    start: Callable[[Callable[[Any], None]], _native.Call],
) -> Any:
    """What a call ends with that `start` begins, and that calls back on some
    thread. It is cancelled with the task that waits here."""
    loop = asyncio.get_running_loop()
    ended = loop.create_future()

    def set_result(outcome: Any) -> None:
        if ended.done():
            return
        if isinstance(outcome, BaseException):
            ended.set_exception(outcome)
        else:
            ended.set_result(outcome)

    def done(outcome: Any) -> None:
        try:
            loop.call_soon_threadsafe(set_result, outcome)
        except RuntimeError:  # The loop is closed: nobody waits any more.
            pass

    call = start(done)
    try:
        return await ended
    except asyncio.CancelledError:
        call.cancel()
        raise
