"""numpy arrays to what is sent, and what has come to numpy arrays."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attention_client import arguments, dlpack, wire
from attention_client import attention_pb2 as pb

# Element types by numpy's name. bfloat16 is a type of ml_dtypes, which need
# not be installed.
_NAMES: dict[Any, str] = {
    pb.DATA_TYPE_FLOAT32: "float32",
    pb.DATA_TYPE_FLOAT16: "float16",
    pb.DATA_TYPE_BFLOAT16: "bfloat16",
    pb.DATA_TYPE_FLOAT64: "float64",
    pb.DATA_TYPE_BOOL: "bool",
    pb.DATA_TYPE_INT8: "int8",
    pb.DATA_TYPE_INT32: "int32",
    pb.DATA_TYPE_INT64: "int64",
}
_TYPES = {name: data_type for data_type, name in _NAMES.items()}
# Of what sessions store alone, by ml_dtypes' name, and a shorter one.
_STORED = {
    "float8_e4m3fn": pb.DATA_TYPE_FLOAT8_E4M3,
    "float8_e4m3": pb.DATA_TYPE_FLOAT8_E4M3,
}
# Those of numpy's own, in the wire's byte order.
_DTYPES: dict[Any, np.dtype[Any]] = {
    data_type: np.dtype(name).newbyteorder("<")
    for data_type, name in _NAMES.items()
    if name != "bfloat16"
}
_BY_DTYPE = {dtype: data_type for data_type, dtype in _DTYPES.items()}
# Integers that the wire lacks, and the next wider one that holds them.
_WIDER: dict[str, Any] = {
    "uint8": np.int32,
    "int16": np.int32,
    "uint16": np.int32,
    "uint32": np.int64,
    "uint64": np.int64,
}
_ALIGNMENT = 64


def type_name(data_type: int) -> str:
    """numpy's name of a wire type, e.g. "float32"."""
    if data_type == pb.DATA_TYPE_FLOAT8_E4M3:
        return "float8_e4m3"
    return _NAMES.get(data_type, f"DataType {data_type}")


def wire_type(dtype: Any, argument: str) -> Any:
    """The wire type of a dtype or its name; `argument` is for the error."""
    wanted = f"one of {', '.join(_TYPES)}"
    try:
        if dtype is None:  # NumPy's default is float64.
            raise TypeError
        name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
    except TypeError:
        arguments.wrong_type(dtype, argument, wanted)
    if name not in _TYPES:
        raise TypeError(f"{argument}: got type {name}, wanted {wanted}")
    return _TYPES[name]


def stored_type(dtype: Any, argument: str) -> Any:
    """The wire type that a session stores, of a dtype or its name."""
    name = dtype
    if not isinstance(dtype, str):
        # ml_dtypes' types have no name, as numpy's have not.
        name = getattr(dtype, "name", getattr(dtype, "__name__", ""))
    return _STORED.get(name) or wire_type(dtype, argument)


def sendable(value: Any, argument: str) -> tuple[Any, NDArray[Any]]:
    """The wire type and the elements, row-major and little-endian, of any
    array of a type that the wire has; numbers without a type become float32.
    Copied only where they lie otherwise."""
    if type(value) is np.ndarray:  # Nothing to ask; most calls' way.
        return _row_major(value, argument)
    if dlpack.has_bfloat16(value):
        return _bfloat16(value, argument)
    return _row_major(arguments.array(value, argument), argument)


def sendable_if_any(
    value: Any, argument: str
) -> tuple[Any, NDArray[Any]] | None:
    return None if value is None else sendable(value, argument)


@dataclass(frozen=True, eq=False)
class PackedMask:
    """A mask of one bit for each element, which is an eighth of one of bools:

        PackedMask(np.packbits(mask, bitorder="little"), mask.shape)

    FlashInfer's packed mask of one request is such bits.

    Args:
        bits: uint8, the elements of the whole mask in row-major order, the
            first one in the least significant bit of the first byte: a number
            for each 8 elements that are begun.
        shape: of the mask.
    """

    bits: Any
    shape: Sequence[int]

    def sendable(self) -> tuple[Any, NDArray[Any], tuple[int, ...]]:
        shape = tuple(arguments.whole_numbers(self.shape, "mask.shape"))
        bits = arguments.array(self.bits, "mask.bits")
        if bits.dtype != np.uint8:
            raise TypeError(
                f"mask.bits: got type {bits.dtype.name}, wanted uint8"
            )
        wanted = -(-math.prod(shape) // 8)
        if bits.size != wanted:
            raise ValueError(
                f"mask.bits: got {bits.size} bytes, wanted {wanted} for shape "
                f"{shape}"
            )
        packed = np.asarray(bits, order="C").reshape(-1)
        return pb.DATA_TYPE_BITS, packed, shape


def sendable_indices(value: Any) -> tuple[Any, NDArray[Any]] | None:
    """Integers of any type, and lists of them."""
    if value is None:
        return None
    if dlpack.has_bfloat16(value):  # The server says that it takes none.
        return _bfloat16(value, "indices")
    array = (
        arguments.array(value, "indices")
        if hasattr(value, "dtype")
        else _whole(value)
    )
    wider = _WIDER.get(array.dtype.name)
    if array.dtype == np.int8:
        wider = np.int32
    if wider is not None:
        limit = np.iinfo(wider).max
        if array.size and int(array.max()) > limit:
            raise ValueError(
                f"indices: got {array.max()}, wanted at most {limit}, int64's "
                "largest"
            )
        array = array.astype(wider)
    return _row_major(array, "indices")


def _whole(value: Any) -> NDArray[Any]:
    # What is no array, or not of numbers, is refused as elsewhere.
    array = arguments.array(value, "indices")
    try:
        plain = np.asarray(value)
    except (TypeError, ValueError):
        return array
    if plain.size == 0 or plain.dtype.kind == "i":
        return plain.astype(np.int64)
    return plain if plain.dtype.kind == "u" else array


def sendable_sinks(value: Any) -> tuple[Any, NDArray[Any]] | None:
    """Those of each row; None where they are one for each head."""
    if value is None or not is_per_row(value):
        return None
    return sendable(value, "sinks")


def is_per_row(sinks: Any) -> bool:
    """Whether sinks are an array of more axes than that of heads."""
    ndim = getattr(sinks, "ndim", 1)
    return isinstance(ndim, int) and ndim > 1


def sendable_mask(mask: Any) -> wire.Sendable | None:
    """A mask as sendable() gives it: integers that the wire lacks keep their
    values in the next wider type. Warns of integers 0 and 1, which look like
    truth values and are not."""
    if mask is None:
        return None
    if isinstance(mask, PackedMask):
        return mask.sendable()
    if dlpack.has_bfloat16(mask):
        return _bfloat16(mask, "mask")
    array = arguments.array(mask, "mask")
    # Lists of integers have become float32 by now.
    plain = array if hasattr(mask, "dtype") else np.asarray(mask)
    if plain.dtype.kind not in "iu":
        return _row_major(array, "mask")
    if plain.size and plain.min() >= 0 and plain.max() <= 1:
        warnings.warn(
            "mask: got integers that are all 0 or 1; they are added to the "
            "scores and hide no key: pass .astype(bool) for a mask that is "
            "True where a key is seen",
            stacklevel=3,
        )
    wider = _WIDER.get(plain.dtype.name)
    if wider is None or not hasattr(mask, "dtype"):
        return _row_major(array, "mask")
    limit = np.iinfo(wider).max
    # As int: numpy 1 would compare both as float64.
    if array.size and int(array.max()) > limit:
        raise ValueError(
            f"mask: got the {array.dtype.name} {array.max()}, wanted at most "
            f"{limit}, int64's largest"
        )
    return _row_major(array.astype(wider), "mask")


def numpy_type(data_type: int) -> np.dtype[Any] | None:
    """The dtype of a wire type; None where there is none of that number."""
    if data_type == pb.DATA_TYPE_BFLOAT16:
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return _DTYPES.get(data_type)


def empty(
    shape: Any, dtype: Any, allocate: Callable[[int], Any]
) -> NDArray[Any]:
    """An array for Client.empty() in what `allocate` gives for a number of
    bytes."""
    data_type = wire_type(dtype, "dtype")
    if isinstance(shape, (int, np.integer)):
        shape = (shape,)
    lengths = arguments.whole_numbers(shape, "shape")
    for i, length in enumerate(lengths):
        if length < 0:
            raise ValueError(
                f"shape[{i}]: got {length}, wanted a number of elements"
            )
    element = numpy_type(data_type)
    assert element is not None  # wire_type() knows the same types.
    size = math.prod(lengths) * element.itemsize
    if size > sys.maxsize:
        raise ValueError(
            f"shape: got {tuple(lengths)}, {size} bytes, wanted at most "
            f"{sys.maxsize}"
        )
    try:
        memory = allocate(max(size, 1))
    except MemoryError:
        raise MemoryError(
            f"shape: got {tuple(lengths)}, {size} bytes, more than can be had"
        ) from None
    return np.ndarray(lengths, element, memory)


def aligned(size: int) -> NDArray[Any]:
    """So many bytes, aligned to a cache line and to SIMD's widest loads."""
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % _ALIGNMENT
    return memory[begin : begin + size]


def _row_major(array: NDArray[Any], argument: str) -> tuple[Any, NDArray[Any]]:
    data_type = _BY_DTYPE.get(array.dtype)
    if data_type is None:
        data_type = wire_type(array.dtype, argument)
        if data_type == pb.DATA_TYPE_BFLOAT16:
            # Its own type has no buffer protocol.
            array = array.view(np.uint16)
            return data_type, np.asarray(array, dtype="<u2", order="C")
    # No copy where it is so already.
    return data_type, np.asarray(array, dtype=_DTYPES[data_type], order="C")


def _bfloat16(value: Any, argument: str) -> tuple[Any, NDArray[Any]]:
    arguments.refuse_other_than_plain(value, argument)
    try:
        bits = dlpack.bfloat16_bits(value)
    except Exception as error:  # Whatever another library raises.
        raise arguments.cannot_read(value, argument, error) from error
    return pb.DATA_TYPE_BFLOAT16, np.asarray(bits, order="C")
