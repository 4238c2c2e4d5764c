"""Numbers that any language makes alike, and the digest of an answer."""

import hashlib

import numpy as np
from ml_dtypes import bfloat16

TYPES = {
    "DATA_TYPE_FLOAT32": np.dtype(np.float32),
    "DATA_TYPE_FLOAT16": np.dtype(np.float16),
    "DATA_TYPE_BFLOAT16": np.dtype(bfloat16),
    "DATA_TYPE_FLOAT64": np.dtype(np.float64),
    "DATA_TYPE_BOOL": np.dtype(np.bool_),
}


def fill(tensor):
    """The array of {"data_type", "shape", "seed"}: multiples of 1/64 below 2,
    which are exact in every type, or for booleans those that are odd."""
    count = np.arange(np.prod(tensor["shape"], dtype=int), dtype=np.uint64)
    mixed = (count * np.uint64(2654435761) + tensor["seed"] * 40503) % 2**32
    whole = (mixed >> 16).astype(np.int64) % 255 - 127
    dtype = TYPES[tensor["data_type"]]
    numbers = whole % 2 != 0 if dtype == np.bool_ else whole / 64
    return numbers.astype(dtype).reshape(tensor["shape"])


def digest(array):
    """SHA-256 of the elements, row-major and little-endian."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return hashlib.sha256(little.tobytes()).hexdigest()
