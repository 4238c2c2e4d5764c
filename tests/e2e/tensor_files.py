"""Reads and writes small .npy and .safetensors files, with the standard
library alone, so that the program's own reader and writer are not the judge."""

import ast
import json
import math
import struct

# struct's letter, .npy's and .safetensors' name of each element type.
_TYPES = {
    "float32": ("f", "<f4", "F32"),
    "float16": ("e", "<f2", "F16"),
    "float64": ("d", "<f8", "F64"),
    "bool": ("?", "|b1", "BOOL"),
    "int32": ("i", "<i4", "I32"),
    "int16": ("h", "<i2", "I16"),
    "uint8": ("B", "|u1", "U8"),
    # As bits: struct has no bfloat16.
    "bfloat16": ("H", None, "BF16"),
}


def _pack(kind, values):
    return struct.pack(f"<{len(values)}{_TYPES[kind][0]}", *values)


def _unpack(kind, data):
    letter = _TYPES[kind][0]
    count = len(data) // struct.calcsize("<" + letter)
    return list(struct.unpack(f"<{count}{letter}", data))


def write_npy(path, kind, shape, values):
    header = str(
        {
            "descr": _TYPES[kind][1],
            "fortran_order": False,
            "shape": tuple(shape),
        }
    ).encode()
    header += b" " * (63 - (10 + len(header)) % 64) + b"\n"
    with open(path, "wb") as file:
        file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)))
        file.write(header + _pack(kind, values))


def read_npy(path):
    """(type, shape, values)."""
    with open(path, "rb") as file:
        start = file.read(10)
        if start[:8] != b"\x93NUMPY\x01\x00":
            raise ValueError(f"{path}: not version 1 of .npy")
        header = ast.literal_eval(
            file.read(struct.unpack("<H", start[8:])[0]).decode()
        )
        data = file.read()
    if header["fortran_order"]:
        raise ValueError(f"{path}: Fortran order")
    kind = next(k for k, t in _TYPES.items() if t[1] == header["descr"])
    values = _unpack(kind, data)
    if len(values) != math.prod(header["shape"]):
        raise ValueError(f"{path}: {len(values)} values, {header}")
    return kind, list(header["shape"]), values


def write_safetensors(path, tensors):
    """`tensors`: {name: (type, shape, values)}."""
    header, payload = {}, b""
    for name, (kind, shape, values) in tensors.items():
        data = _pack(kind, values)
        header[name] = {
            "dtype": _TYPES[kind][2],
            "shape": list(shape),
            "data_offsets": [len(payload), len(payload) + len(data)],
        }
        payload += data
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + payload)


def read_safetensors(path):
    """{name: (type, shape, values)}."""
    with open(path, "rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(length))
        data = file.read()
    tensors = {}
    for name, entry in header.items():
        kind = next(k for k, t in _TYPES.items() if t[2] == entry["dtype"])
        begin, end = entry["data_offsets"]
        values = _unpack(kind, data[begin:end])
        if len(values) != math.prod(entry["shape"]):
            raise ValueError(f"{path}: {len(values)} values, {entry}")
        tensors[name] = (kind, entry["shape"], values)
    return tensors
