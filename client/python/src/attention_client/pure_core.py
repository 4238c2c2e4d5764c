"""Calls by grpcio."""

from __future__ import annotations

import asyncio
import math
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

    def close(self) -> None:
        self._channel.close()


class AsyncPureCore(_Base):
    """A core.AsyncCore. Channels of grpc.aio belong to an event loop each."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._lock = threading.Lock()  # Guards the rest.
        # Those of loops that are closed go when another loop comes.
        self._channels: dict[asyncio.AbstractEventLoop, Any] = {}
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
            answer = await self._channel().unary_unary(method)(
                message,
                timeout=None if limit == math.inf else limit,
                metadata=self._metadata(method, message),
            )
        except grpc.RpcError as error:
            raise self._error(error) from None
        return self._read(answer, read)

    async def close(self) -> None:
        with self._lock:
            self._closed = True
            channels, self._channels = self._channels, {}
        for loop, channel in channels.items():
            if loop is asyncio.get_running_loop():
                await channel.close()
            elif not loop.is_closed():
                asyncio.run_coroutine_threadsafe(channel.close(), loop)

    def _channel(self) -> Any:
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
                self._channels[loop] = self._connection.open(grpc.aio)
            return self._channels[loop]


def _result(message: bytes) -> AttentionResult:
    numbers = {_FIELDS[name].number: name for name in _ANSWERS}
    others, found = wire.split(memoryview(message), numbers)
    pieces: dict[str, list[memoryview]] = {}
    for number, piece in found:
        pieces.setdefault(numbers[number], []).append(piece)
    timing = pb.ComputeAttentionResponse.FromString(others).timing
    answer = [
        _own(name, wire.tensor_of(pieces[name])) if name in pieces else None
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


def _own(field: str, tensor: wire.Tensor) -> wire.Tensor:
    """The tensor with a copy of its elements, which may be written to."""
    dtype = tensors.numpy_type(tensor.data_type)
    if (
        dtype is None
        or min(tensor.shape, default=0) < 0
        or len(tensor.data) != math.prod(tensor.shape) * dtype.itemsize
    ):
        raise DecodeError(
            f"{field} has {len(tensor.data)} bytes of type "
            f"{tensors.type_name(tensor.data_type)}, which do not fit its shape"
        )
    return tensor._replace(data=bytearray(tensor.data))
