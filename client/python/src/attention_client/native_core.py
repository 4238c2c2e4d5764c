"""Calls by the C++ client, from the arrays' own memory."""

from __future__ import annotations

import asyncio
import datetime
import os
from collections.abc import Callable
from typing import Any, TypeVar

from attention_client import _native, connection, errors, results, wire
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
        return read(outcome)

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
        )


class NativeCore(_Base):
    """A core.Core."""

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

    def close(self) -> None:
        self._native.close()


class AsyncNativeCore(_Base):
    """A core.AsyncCore."""

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

    async def close(self) -> None:
        self._native.close()


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
