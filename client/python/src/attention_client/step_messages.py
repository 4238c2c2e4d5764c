"""What is said on a stream of SessionService's Step, and how it is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

# Up to so many bytes protobuf's own objects are faster, though they copy more.
_SMALL_BYTES = 64 << 10

# A tensor as tensors.sendable() gives it, of its array's shape.
Plain = tuple[Any, NDArray[Any]]


class NewTokens(NamedTuple):
    """Keys and values to append, (Hkv, n, D) and (Hkv, n, Dv)."""

    key: Plain
    # None where values are the first columns of keys.
    value: Plain | None

    def split(self) -> list[NewTokens]:
        """The same in pieces of at most MAX_APPEND_BYTES, or of one token. What
        has another shape stays whole: the server says what is wrong."""
        arrays = [part[1] for part in self if part is not None]
        size = sum(array.nbytes for array in arrays)
        if size <= MAX_APPEND_BYTES:
            return [self]
        lengths = {array.shape[1] if array.ndim == 3 else 0 for array in arrays}
        tokens = max(lengths)
        if len(lengths) > 1 or tokens == 0:
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


def _cut(tensor: Plain, begin: int, end: int) -> Plain:
    return tensor[0], tensor[1][:, begin:end]


@dataclass(frozen=True)
class Queries:
    """What is asked of a layer."""

    query: Plain
    mask: wire.Sendable | None
    options: pb.AttentionOptions
    not_causal: bool
    mask_begin: int
    indices: Plain | None = None
    sinks: Plain | None = None


class Place(NamedTuple):
    """Where an item belongs."""

    session_id: str
    incarnation: int
    layer: int


def item(
    place: Place,
    new: NewTokens | None,
    queries: Queries | None,
    expected_length: int | None,
    request_id: str,
) -> wire.Message:
    """A StepItem."""
    small = session_pb.StepItem(
        id=place.session_id, layer=place.layer, incarnation=place.incarnation
    )
    sent: dict[str, wire.Sendable] = {}
    if new is not None:
        if expected_length is not None:
            small.expected_length = expected_length
        small.request_id = request_id
        sent["key"] = new.key
        if new.value is not None:
            sent["value"] = new.value
    if queries is not None:
        sent["query"] = queries.query
        for name in ("mask", "indices", "sinks"):
            tensor = getattr(queries, name)
            if tensor is not None:
                sent[name] = tensor
        small.options.CopyFrom(queries.options)
        small.not_causal = queries.not_causal
        small.mask_begin = queries.mask_begin
    if sum(tensor[1].nbytes for tensor in sent.values()) <= _SMALL_BYTES:
        for name, (data_type, array, *shape) in sent.items():
            tensor = getattr(small, name)
            tensor.data_type = data_type
            tensor.shape.extend(shape[0] if shape else array.shape)
            tensor.data = array.tobytes()
        return wire.of_bytes(small.SerializeToString())
    return wire.concatenated(
        [
            wire.of_bytes(small.SerializeToString()),
            *(
                wire.tensor_field(_ITEM[name].number, *tensor)
                for name, tensor in sent.items()
            ),
        ]
    )


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
    bytes_ = memoryview(message)
    if bytes_.nbytes <= _SMALL_BYTES:
        response = session_pb.StepResponse.FromString(bytes(bytes_))
        found: list[Any] = list(response.results)
        result_of: Callable[..., Any] = _small_result
    else:
        others, pieces = wire.split(bytes_, (1,))
        response = session_pb.StepResponse.FromString(others)
        found = [piece for _, piece in pieces]
        result_of = _large_result
    if len(found) != count:
        raise DecodeError(f"{len(found)} results for {count} items")
    timing = response.timing
    times = results.Timing(
        timing.queue_us,
        timing.decode_us,
        timing.compute_us,
        timing.encode_us,
    )
    return [result_of(one, times, target) for one in found]


def _small_result(
    result: session_pb.StepResult, timing: results.Timing, target: str
) -> ItemResult | errors.AttentionError:
    arrays = {}
    for name in _TENSORS:
        if result.HasField(name):
            tensor = getattr(result, name)
            arrays[name] = _array(
                name,
                wire.Tensor(tensor.data_type, tuple(tensor.shape), tensor.data),
            )
    return _result(result, arrays, timing, target)


def _large_result(
    message: memoryview, timing: results.Timing, target: str
) -> ItemResult | errors.AttentionError:
    others, found = wire.split(message, _NAMES)
    pieces: dict[str, list[memoryview]] = {}
    for number, piece in found:
        pieces.setdefault(_NAMES[number], []).append(piece)
    arrays = {
        name: _array(name, wire.tensor_of(parts))
        for name, parts in pieces.items()
    }
    small = session_pb.StepResult.FromString(others)
    return _result(small, arrays, timing, target)


def _result(
    small: session_pb.StepResult,
    arrays: dict[str, NDArray[Any]],
    timing: results.Timing,
    target: str,
) -> ItemResult | errors.AttentionError:
    if small.code != 0:
        return errors.from_details(
            small.code,
            small.message,
            errors.status_of(small.status_details),
            target=target,
        )
    if "output" not in arrays:
        return ItemResult(None, small.length)
    return ItemResult(
        AttentionResult(
            arrays["output"],
            arrays.get("log_sum_exp"),
            arrays.get("scores"),
            None,
            None,
            timing,
        ),
        small.length,
    )


def _array(name: str, tensor: wire.Tensor) -> NDArray[Any]:
    data_type, shape, data = results.owned(name, tensor)
    return np.ndarray(shape, tensors.numpy_type(data_type), data)
