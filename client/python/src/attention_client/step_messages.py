"""What is said on a stream of SessionService's Step, and how it is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from attention_client import attention_pb2 as pb
from attention_client import errors, results, tensors, wire
from attention_client import session_pb2 as session_pb
from attention_client.results import AttentionResult

# Keys and values of one message: more go in several.
MAX_APPEND_BYTES = 4 << 20
# A message takes no more items, nor, if it has several, more bytes.
_MAX_ITEMS = 1024
_MAX_BYTES = 64 << 20

_ITEM = session_pb.StepItem.DESCRIPTOR.fields_by_name
_RESULT = session_pb.StepResult.DESCRIPTOR.fields_by_name
_TENSORS = ("output", "log_sum_exp", "scores")
_NAMES = {_RESULT[name].number: name for name in _TENSORS}

# A tensor as tensors.sendable() gives it.
Sendable = tuple[Any, NDArray[Any]]


class NewTokens(NamedTuple):
    """Keys and values to append, (Hkv, n, D) and (Hkv, n, Dv)."""

    key: Sendable
    # None where values are the first columns of keys.
    value: Sendable | None

    def split(self) -> list[NewTokens]:
        """The same in pieces of at most MAX_APPEND_BYTES, or of one token. What
        has another shape stays whole: the server says what is wrong."""
        arrays = [part[1] for part in self if part is not None]
        lengths = {array.shape[1] if array.ndim == 3 else 0 for array in arrays}
        size = sum(array.nbytes for array in arrays)
        tokens = max(lengths)
        if size <= MAX_APPEND_BYTES or len(lengths) > 1 or tokens == 0:
            return [self]
        most = max(1, MAX_APPEND_BYTES * tokens // size)
        return [
            NewTokens(
                _cut(self.key, begin, begin + most),
                None
                if self.value is None
                else _cut(self.value, begin, begin + most),
            )
            for begin in range(0, tokens, most)
        ]


def _cut(tensor: Sendable, begin: int, end: int) -> Sendable:
    return tensor[0], tensor[1][:, begin:end]


@dataclass(frozen=True)
class Queries:
    """What is asked of a layer."""

    query: Sendable
    mask: Sendable | None
    options: pb.AttentionOptions
    not_causal: bool


def item(
    session_id: str,
    layer: int,
    new: NewTokens | None,
    queries: Queries | None,
    expected_length: int | None,
    request_id: str,
) -> wire.Message:
    """A StepItem."""
    small = session_pb.StepItem(id=session_id, layer=layer)
    fields: list[wire.Message] = []
    if new is not None:
        if expected_length is not None:
            small.expected_length = expected_length
        small.request_id = request_id
        fields.append(_field("key", new.key))
        if new.value is not None:
            fields.append(_field("value", new.value))
    if queries is not None:
        fields.append(_field("query", queries.query))
        if queries.mask is not None:
            fields.append(_field("mask", queries.mask))
        small.options.CopyFrom(queries.options)
        small.not_causal = queries.not_causal
    return wire.concatenated(
        [wire.of_bytes(small.SerializeToString()), *fields]
    )


def _field(name: str, tensor: Sendable) -> wire.Message:
    return wire.tensor_field(_ITEM[name].number, *tensor)


def requests(items: Sequence[wire.Message]) -> list[tuple[int, wire.Message]]:
    """StepRequests with all items, and how many each has."""
    groups: list[list[wire.Message]] = []
    size = 0
    for message in items:
        full = groups and (
            len(groups[-1]) == _MAX_ITEMS or size + message.size > _MAX_BYTES
        )
        if not groups or full:
            groups.append([])
            size = 0
        groups[-1].append(wire.message_field(1, message))
        size += message.size
    return [(len(group), wire.concatenated(group)) for group in groups]


class ItemResult(NamedTuple):
    """How an item ended that went well."""

    # None where nothing was attended to.
    attended: AttentionResult | None
    # The layer's.
    length: int


def results_of(
    message: Any, count: int, target: str
) -> list[ItemResult | errors.AttentionError]:
    """What a StepResponse says of so many items.

    Raises:
        DecodeError: it is none.
    """
    others, found = wire.split(memoryview(message), (1,))
    if len(found) != count:
        raise DecodeError(f"{len(found)} results for {count} items")
    timing = session_pb.StepResponse.FromString(others).timing
    times = results.Timing(
        timing.queue_us,
        timing.decode_us,
        timing.compute_us,
        timing.encode_us,
    )
    return [_result(piece, times, target) for _, piece in found]


def _result(
    message: memoryview, timing: results.Timing, target: str
) -> ItemResult | errors.AttentionError:
    others, found = wire.split(message, _NAMES)
    small = session_pb.StepResult.FromString(others)
    if small.code != 0:
        return errors.from_details(
            small.code,
            small.message,
            errors.status_of(small.status_details),
            target=target,
        )
    pieces: dict[str, list[memoryview]] = {}
    for number, piece in found:
        pieces.setdefault(_NAMES[number], []).append(piece)
    if "output" not in pieces:
        return ItemResult(None, small.length)
    output, log_sum_exp, scores = (
        _array(name, pieces[name]) if name in pieces else None
        for name in _TENSORS
    )
    assert output is not None
    return ItemResult(
        AttentionResult(output, log_sum_exp, scores, None, None, timing),
        small.length,
    )


def _array(name: str, pieces: list[memoryview]) -> NDArray[Any]:
    data_type, shape, data = results.owned(name, wire.tensor_of(pieces))
    return np.ndarray(shape, tensors.numpy_type(data_type), data)
