"""The bytes of messages, made and read with one copy of each tensor at most.

protobuf's own objects hold a copy of every payload, and so does each message
that one is put into. Here they encode and decode the small fields only; the
payloads are put between them, and found among them, by hand.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any, NamedTuple, Union

from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from attention_client import attention_pb2 as pb

# protobuf cannot hold more in one message.
MAX_MESSAGE_BYTES = 2**31 - 1

# A wire type and the elements; the shape too where the array has another.
Sendable = Union[
    tuple[Any, NDArray[Any]], tuple[Any, NDArray[Any], tuple[int, ...]]
]

# Of the tensors of Request.
_TENSOR_FIELDS = (
    *range(1, 7),
    pb.ComputeAttentionRequest.INDICES_FIELD_NUMBER,
    pb.ComputeAttentionRequest.SINKS_FIELD_NUMBER,
)
_DATA = pb.Tensor.DATA_FIELD_NUMBER
_LENGTH_DELIMITED = 2
# Bytes that a field of the other types of the wire takes.
_FIXED_BYTES = {1: 8, 5: 4}


class Tensor(NamedTuple):
    """A tensor as it travels: row-major, little-endian."""

    data_type: Any  # A value of pb.DataType.
    shape: tuple[int, ...]
    # Its elements, as an object with the buffer protocol.
    data: Any


class Request(NamedTuple):
    """A ComputeAttentionRequest."""

    # query to past_value, indices and sinks, as tensors.sendable() gives them;
    # C-contiguous arrays.
    tensors: tuple[Sendable | None, ...]
    # All other fields, as a message.
    others: bytes


class Message(NamedTuple):
    """A message in pieces, which are sent one after another."""

    # Bytes, and C-contiguous arrays where they are in memory.
    pieces: list[Any]
    # Bytes of all pieces.
    size: int


def joined(request: Request) -> bytes:
    """The bytes of the message.

    Raises:
        ValueError: they would be more than protobuf can hold.
    """
    fields = [
        tensor_field(number, *tensor)
        for number, tensor in zip(_TENSOR_FIELDS, request.tensors)
        if tensor is not None
    ]
    return bytes_of(concatenated([*fields, of_bytes(request.others)]))


def bytes_of(message: Message) -> bytes:
    """The bytes of a message.

    Raises:
        ValueError: they would be more than protobuf can hold.
    """
    check_size(message.size)
    return b"".join(message.pieces)


def check_size(size: int) -> None:
    if size > MAX_MESSAGE_BYTES:
        raise ValueError(
            f"request: got {size} bytes, wanted at most {MAX_MESSAGE_BYTES}, "
            "the largest message of protobuf"
        )


def tensor_field(
    number: int,
    data_type: Any,
    array: NDArray[Any],
    shape: tuple[int, ...] | None = None,
) -> Message:
    """The field of this number, at most 15, that holds a Tensor of this shape,
    which is the array's if it is None. The array is C-contiguous, or each of its
    rows along the first axis is."""
    small = pb.Tensor(
        data_type=data_type, shape=array.shape if shape is None else shape
    ).SerializeToString()
    if array.nbytes:
        small += _tag(_DATA) + _varint(array.nbytes)
    head = _tag(number) + _varint(len(small) + array.nbytes) + small
    rows = [array] if array.flags.c_contiguous else list(array)
    return Message([head, *rows], len(head) + array.nbytes)


def message_field(number: int, message: Message) -> Message:
    """The field of this number, at most 15, that holds a message."""
    head = _tag(number) + _varint(message.size)
    return Message([head, *message.pieces], len(head) + message.size)


def concatenated(messages: Iterable[Message]) -> Message:
    """A message of the fields of all these."""
    pieces: list[Any] = []
    size = 0
    for message in messages:
        pieces += message.pieces
        size += message.size
    return Message(pieces, size)


def of_bytes(message: bytes) -> Message:
    return Message([message], len(message))


def split(
    message: memoryview, fields: Container[int]
) -> tuple[bytes, list[tuple[int, memoryview]]]:
    """A message without its length-delimited fields of these numbers, and the
    latter in their order, where they lie.

    Raises:
        DecodeError: the bytes are no message.
    """
    others = []
    found = []
    at = 0
    while at < len(message):
        begin = at
        tag, at = _read_varint(message, at)
        field, kind = tag >> 3, tag & 7
        if kind == 0:
            _, at = _read_varint(message, at)
        elif kind == _LENGTH_DELIMITED:
            length, at = _read_varint(message, at)
            at += length
        elif kind in _FIXED_BYTES:
            at += _FIXED_BYTES[kind]
        else:
            raise DecodeError(f"wire type {kind} in field {field}")
        if at > len(message):
            raise DecodeError(f"field {field} ends beyond the message")
        if kind == _LENGTH_DELIMITED and field in fields:
            found.append((field, message[at - length : at]))
        else:
            others.append(message[begin:at])
    return b"".join(others), found


def tensor_of(pieces: list[memoryview]) -> Tensor:
    """The tensor of a field, whose message may come in several pieces.

    Raises:
        DecodeError: the bytes are no such message.
    """
    small = []
    data = memoryview(b"")
    for piece in pieces:
        others, payloads = split(piece, (_DATA,))
        small.append(others)
        if payloads:
            data = payloads[-1][1]
    tensor = pb.Tensor.FromString(b"".join(small))
    return Tensor(tensor.data_type, tuple(tensor.shape), data)


def _tag(field: int) -> bytes:
    return bytes((field << 3 | _LENGTH_DELIMITED,))


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _read_varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise DecodeError("a number ends beyond the message")
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise DecodeError("a number is longer than 10 bytes")
