"""Tensors of bfloat16 from libraries that do not give them to numpy.

numpy has no bfloat16, and PyTorch does not know that of ml_dtypes. DLPack, the
exchange format of tensor libraries, does: what it tells of a tensor in memory
is a C struct, read here. https://dmlc.github.io/dlpack/latest/c_api.html
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CPU = 1
_BFLOAT = 4


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("id", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
    )


class _Tensor(ctypes.Structure):
    """The first member of DLManagedTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        # Counted in elements; null if they lie row-major.
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype = ctypes.c_void_p
_get_pointer.argtypes = (ctypes.py_object, ctypes.c_char_p)


class _Bits:
    """What numpy makes an array of; keeps the tensor's memory."""

    def __init__(self, tensor: _Tensor, capsule: object) -> None:
        # A capsule that nobody has taken over frees the tensor at its end.
        self._capsule = capsule
        shape = tuple(tensor.shape[: tensor.ndim])
        strides = (
            tuple(2 * step for step in tensor.strides[: tensor.ndim])
            if tensor.strides
            else None
        )
        self.__array_interface__ = {
            "version": 3,
            "shape": shape,
            "strides": strides,
            "typestr": "<u2",
            # Read-only: it is somebody else's.
            "data": ((tensor.data or 0) + tensor.byte_offset, True),
        }


def has_bfloat16(value: Any) -> bool:
    """Whether `value` is a tensor of bfloat16 that only DLPack gives away."""
    return (
        hasattr(type(value), "__dlpack__")
        and not isinstance(value, np.ndarray)
        and str(getattr(value, "dtype", "")).endswith(".bfloat16")
    )


def bfloat16_bits(value: Any) -> NDArray[Any]:
    """The bits of such a tensor as uint16, where they are. It must be in the
    CPU's memory."""
    capsule = value.__dlpack__()
    tensor = _Tensor.from_address(_get_pointer(capsule, b"dltensor"))
    dtype = tensor.dtype
    if (dtype.code, dtype.bits, dtype.lanes) != (_BFLOAT, 16, 1):
        raise BufferError(
            f"DLPack gives type ({dtype.code}, {dtype.bits}, {dtype.lanes}), "
            f"wanted bfloat16, ({_BFLOAT}, 16, 1)"
        )
    if tensor.device.type != _CPU:
        raise BufferError(
            f"DLPack gives memory of device {tensor.device.type}, wanted the "
            f"CPU's, {_CPU}"
        )
    return np.asarray(_Bits(tensor, capsule))
