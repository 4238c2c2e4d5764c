"""What the clients make of numpy's types."""

import numpy as np

# What an array is sent as: of its own type, or of the next wider integer.
SENT_AS = {
    "float16": "FLOAT16",
    "float32": "FLOAT32",
    "float64": "FLOAT64",
    "bool": "BOOL",
    "int8": "INT8",
    "uint8": "INT32",
    "int16": "INT32",
    "uint16": "INT32",
    "int32": "INT32",
    "uint32": "INT64",
    "uint64": "INT64",
    "int64": "INT64",
}


def line_of(array):
    """What the reader prints of this array; None of what cannot be sent."""
    name = SENT_AS.get(array.dtype.name)
    if name is None or (
        array.dtype.name == "uint64" and np.any(array > 2**63 - 1)
    ):
        return None
    sent = np.ascontiguousarray(array).astype(
        "<" + np.dtype(name.lower()).str[1:]
    )
    shape = ",".join(map(str, array.shape))
    return f"{name} {shape} {sent.tobytes().hex()}"
