"""numpy arrays to wire tensors and back."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from attention_client import arguments
from attention_client import attention_pb2 as pb

# Element types by numpy's name. bfloat16 is a type of ml_dtypes, which need
# not be installed.
_NAMES = {
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
# Integers that the wire lacks, and the next wider one that holds them.
_WIDER = {
    "uint8": np.int32,
    "int16": np.int32,
    "uint16": np.int32,
    "uint32": np.int64,
    "uint64": np.int64,
}


def type_name(data_type: int) -> str:
    """numpy's name of a wire type, e.g. "float32"."""
    return _NAMES.get(data_type, f"DataType {data_type}")


def wire_type(dtype: Any, argument: str) -> int:
    """The wire type of a dtype or its name; `argument` is for the error."""
    wanted = f"one of {', '.join(_TYPES)}"
    try:
        name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
    except TypeError:
        arguments.wrong_type(dtype, argument, wanted)
    if name not in _TYPES:
        raise TypeError(f"{argument}: got type {name}, wanted {wanted}")
    return _TYPES[name]


def to_wire(array: Any, argument: str) -> pb.Tensor:
    """Any array of a type that the wire has, whatever its strides and bytes'
    order; numbers without a type become float32."""
    array = arguments.array(array, argument)
    data_type = wire_type(array.dtype, argument)
    if array.dtype.itemsize > 1:
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return pb.Tensor(
        data_type=data_type, shape=array.shape, data=array.tobytes()
    )


def exact_mask(mask: Any) -> Any:
    """A mask as to_wire() takes it: integers that the wire lacks keep their
    values in the next wider type. Warns of integers 0 and 1, which look like
    truth values and are not."""
    if mask is None:
        return None
    arguments.array(mask, "mask")  # Refuses what cannot be read.
    array = np.asarray(mask)
    if array.dtype.kind not in "iu":
        return mask
    if array.size and array.min() >= 0 and array.max() <= 1:
        warnings.warn(
            "mask: got integers that are all 0 or 1; they are added to the "
            "scores and hide no key: pass .astype(bool) for a mask that is "
            "True where a key is seen",
            stacklevel=3,
        )
    wider = _WIDER.get(array.dtype.name)
    if wider is None or not hasattr(mask, "dtype"):
        return mask
    limit = np.iinfo(wider).max
    if array.size and array.max() > limit:
        raise ValueError(
            f"mask: got the {array.dtype.name} {array.max()}, wanted at most "
            f"{limit}, int64's largest"
        )
    return array.astype(wider)


def from_wire(message: Any, field: str) -> np.ndarray | None:
    """The tensor `field` of a response, or None where it has none."""
    if not message.HasField(field):
        return None
    tensor = getattr(message, field)
    dtype = _dtype(tensor.data_type)
    array = np.frombuffer(bytearray(tensor.data), dtype=dtype)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return array.reshape(tuple(tensor.shape))


def _dtype(data_type: int) -> np.dtype:
    name = type_name(data_type)
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name).newbyteorder("<")
