"""Calls by grpcio."""

from __future__ import annotations

import asyncio
import math
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from attention_client import attention_pb2 as pb
from attention_client import (
    connect_failure,
    connection,
    errors,
    proxy,
    results,
    streams,
    targets,
    tensors,
    wire,
)
from attention_client.core import CLOSED, Settings
from attention_client.results import AttentionResult

_Read = TypeVar("_Read")

# Unless the caller says otherwise: of two, gRPC takes the first.
_CHANNEL_OPTIONS = {
    # Answers may be of any size: the caller asked for them.
    "grpc.max_receive_message_length": -1,
    # gRPC's own limit, 8 KiB, is little for the trailers of an error that a
    # proxy has added to.
    "grpc.max_metadata_size": 64 << 10,
}
# Seconds that a server may take to end a stream that is closed.
_GOODBYE = 0.1
_NO_PROXY = ("grpc.enable_http_proxy", 0)
COMPUTE = "/attention.v1.AttentionService/ComputeAttention"
# Tells the server how large the message is before it is sent, so that it can
# keep memory for it or refuse it.
_REQUEST_BYTES_HEADER = "attention-request-bytes"
# Fields of a ComputeAttentionResponse, in the order of AttentionResult.
_ANSWERS = ("output", "log_sum_exp", "scores", "present_key", "present_value")
_FIELDS = pb.ComputeAttentionResponse.DESCRIPTOR.fields_by_name


class _Base:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._target = settings.target
        self._security = settings.security
        options = [*settings.options, *_CHANNEL_OPTIONS.items()]
        # No proxy can reach what is on this machine.
        if targets.is_local(self._target):
            options.append(_NO_PROXY)
        self._proxy = (
            ""
            if _NO_PROXY in options or self._security.token_stays_local
            else proxy.proxy_of(self._target)
        )
        self._connection = connection.connection_to(
            self._target, self._security, options
        )

    def allocate(self, size: int) -> Any:
        return tensors.aligned(size)

    def _metadata(
        self, method: str, message: bytes
    ) -> tuple[tuple[str, str], ...]:
        metadata = self._connection.metadata()
        if method == COMPUTE:
            metadata += ((_REQUEST_BYTES_HEADER, str(len(message))),)
        return metadata

    def _error(self, error: grpc.RpcError) -> errors.AttentionError:
        if connect_failure.misplaced_token(error):
            return errors.FailedPrecondition(
                grpc.StatusCode.FAILED_PRECONDITION,
                connection.plaintext_token(self._target),
                target=self._target,
            )
        cause = connect_failure.cause(error, self._security)
        return errors.from_rpc_error(error, self._target, cause, self._proxy)

    def _read(self, message: bytes, read: Callable[[bytes], _Read]) -> _Read:
        try:
            return read(message)
        except DecodeError as error:
            raise errors.malformed(str(error), self._target) from None


class PureCore(_Base):
    """A core.Core."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._channel = self._connection.open(grpc)
        self._methods: dict[str, Any] = {}
        self._lock = threading.Lock()  # Guards the next one.
        self._streams: dict[str, streams.Streams[_Stream]] = {}

    def compute(self, request: wire.Request, limit: float) -> AttentionResult:
        return self.call(COMPUTE, wire.joined(request), limit, _result)

    def call(
        self,
        method: str,
        message: bytes,
        limit: float,
        read: Callable[[bytes], _Read],
    ) -> _Read:
        errors.check_time(limit, self._target)
        call = self._methods.get(method)
        if call is None:
            call = self._channel.unary_unary(method)
            self._methods[method] = call
        try:
            answer = call(
                message,
                timeout=None if limit == math.inf else limit,
                metadata=self._metadata(method, message),
            )
        except grpc.RpcError as error:
            raise self._error(error) from None
        return self._read(answer, read)

    def exchange(
        self,
        method: str,
        message: wire.Message,
        limit: float,
        read: Callable[[Any], _Read],
    ) -> _Read:
        with self._lock:
            if method not in self._streams:
                self._streams[method] = streams.Streams(
                    lambda: self._open_stream(method)
                )
        return self._read(self._streams[method].exchange(message, limit), read)

    def close(self) -> None:
        with self._lock:
            for kept in self._streams.values():
                kept.close()
        self._channel.close()

    def _open_stream(self, method: str) -> _Stream:
        requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        call = self._channel.stream_stream(method)(
            iter(requests.get, None), metadata=self._metadata(method, b"")
        )
        return _Stream(call, requests, self._error, self._target)


class _Stream:
    """A streams.Stream. grpcio reads the queue on a thread of its own."""

    def __init__(
        self,
        call: Any,
        requests: queue.SimpleQueue[bytes | None],
        error: Callable[[grpc.RpcError], errors.AttentionError],
        target: str,
    ) -> None:
        self._call = call
        self._requests = requests
        self._error = error
        self._target = target

    async def exchange(self, message: wire.Message, limit: float) -> bytes:
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self._call.cancel()

        timer = None
        self._requests.put(wire.bytes_of(message))
        if limit != math.inf:
            timer = threading.Timer(max(0, limit), give_up)
            timer.daemon = True
            timer.start()
        try:
            answer: bytes = next(self._call)
        except StopIteration:
            raise streams.ended(self._target) from None
        except grpc.RpcError as error:
            if late.is_set():
                raise streams.out_of_time(self._target) from None
            raise self._error(error) from None
        finally:
            if timer is not None:
                timer.cancel()
                timer.join()  # It may be giving up just now.
        if late.is_set():
            raise streams.out_of_time(self._target)
        return answer

    def close(self) -> None:
        ended = threading.Event()
        if self._call.add_callback(ended.set):
            self._requests.put(None)
            ended.wait(_GOODBYE)
        self.cancel()

    def cancel(self) -> None:
        self._requests.put(None)
        self._call.cancel()

    def __del__(self) -> None:
        self._requests.put(None)  # Else the thread waits for ever.


class AsyncPureCore(_Base):
    """A core.AsyncCore. Channels of grpc.aio belong to an event loop each."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._lock = threading.Lock()  # Guards the rest.
        # Those of loops that are closed go when another loop comes.
        self._channels: dict[asyncio.AbstractEventLoop, _Channel] = {}
        self._blocking: PureCore | None = None
        self._closed = False

    async def compute(
        self, request: wire.Request, limit: float
    ) -> AttentionResult:
        return await self.call(COMPUTE, wire.joined(request), limit, _result)

    async def call(
        self,
        method: str,
        message: bytes,
        limit: float,
        read: Callable[[bytes], _Read],
    ) -> _Read:
        errors.check_time(limit, self._target)
        try:
            answer = await self._channel().channel.unary_unary(method)(
                message,
                timeout=None if limit == math.inf else limit,
                metadata=self._metadata(method, message),
            )
        except grpc.RpcError as error:
            raise self._error(error) from None
        return self._read(answer, read)

    async def exchange(
        self,
        method: str,
        message: wire.Message,
        limit: float,
        read: Callable[[Any], _Read],
    ) -> _Read:
        opened = self._channel()
        if method not in opened.streams:
            opened.streams[method] = streams.AsyncStreams(
                lambda: _AsyncStream(
                    opened.channel.stream_stream(method)(
                        metadata=self._metadata(method, b"")
                    ),
                    self._error,
                    self._target,
                )
            )
        kept = opened.streams[method]
        return self._read(await kept.exchange(message, limit), read)

    def blocking(self) -> PureCore:
        with self._lock:
            if self._closed:
                raise ValueError(CLOSED)
            if self._blocking is None:
                self._blocking = PureCore(self._settings)
            return self._blocking

    async def close(self) -> None:
        with self._lock:
            self._closed = True
            channels, self._channels = self._channels, {}
            if self._blocking is not None:
                self._blocking.close()
        for loop, opened in channels.items():
            if loop is asyncio.get_running_loop():
                await opened.close()
            elif not loop.is_closed():
                asyncio.run_coroutine_threadsafe(opened.close(), loop)

    def _channel(self) -> _Channel:
        loop = asyncio.get_running_loop()
        with self._lock:
            if self._closed:
                raise ValueError(CLOSED)
            if loop not in self._channels:
                self._channels = {
                    other: channel
                    for other, channel in self._channels.items()
                    if not other.is_closed()
                }
                self._channels[loop] = _Channel(self._connection.open(grpc.aio))
            return self._channels[loop]


class _Channel:
    """A channel of grpc.aio, and the streams on it by method."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.streams: dict[str, streams.AsyncStreams[_AsyncStream]] = {}

    async def close(self) -> None:
        for kept in self.streams.values():
            kept.close()
        await self.channel.close()


class _AsyncStream:
    """A streams.Stream."""

    def __init__(
        self,
        call: Any,
        error: Callable[[grpc.RpcError], errors.AttentionError],
        target: str,
    ) -> None:
        self._call = call
        self._error = error
        self._target = target

    async def exchange(self, message: wire.Message, limit: float) -> bytes:
        try:
            return await asyncio.wait_for(
                self._answer(wire.bytes_of(message)),
                None if limit == math.inf else max(0, limit),
            )
        except asyncio.TimeoutError:
            raise streams.out_of_time(self._target) from None
        except grpc.RpcError as error:
            raise self._error(error) from None

    async def _answer(self, message: bytes) -> bytes:
        try:
            await self._write(message)
            answer = await self._call.read()
        except asyncio.InvalidStateError:  # It has ended before.
            answer = grpc.aio.EOF
        if answer is not grpc.aio.EOF:
            return answer  # type: ignore[no-any-return]
        code = await self._call.code()
        if code is grpc.StatusCode.OK:
            raise streams.ended(self._target)
        raise grpc.aio.AioRpcError(
            code,
            await self._call.initial_metadata(),
            await self._call.trailing_metadata(),
            details=await self._call.details(),
        )

    async def _write(self, message: bytes) -> None:
        try:
            await self._call.write(message)
        except grpc.aio.AioRpcError as error:
            # What a write fails with that comes before the status of a stream
            # that has ended.
            if "Internal error from Core" in (error.details() or ""):
                raise streams.ended(self._target) from None
            raise

    def close(self) -> None:
        self.cancel()

    def cancel(self) -> None:
        self._call.cancel()


def _result(message: bytes) -> AttentionResult:
    numbers = {_FIELDS[name].number: name for name in _ANSWERS}
    others, found = wire.split(memoryview(message), numbers)
    pieces: dict[str, list[memoryview]] = {}
    for number, piece in found:
        pieces.setdefault(numbers[number], []).append(piece)
    timing = pb.ComputeAttentionResponse.FromString(others).timing
    answer = [
        results.owned(name, wire.tensor_of(pieces[name]))
        if name in pieces
        else None
        for name in _ANSWERS
    ]
    if answer[0] is None:
        raise DecodeError("output is missing")
    return results.result_of(
        answer,
        (
            timing.queue_us,
            timing.decode_us,
            timing.compute_us,
            timing.encode_us,
        ),
    )
