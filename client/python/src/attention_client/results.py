"""What calls return."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from attention_client import attention_pb2 as pb
from attention_client import tensors, wire


@dataclass(frozen=True)
class Timing:
    """How long the server took, in microseconds."""

    # From the request's arrival to the start of work on it.
    queue_us: int
    # Reading the request, checks included.
    decode_us: int
    # The attention itself.
    compute_us: int
    # Writing the answer.
    encode_us: int


@dataclass(frozen=True)
class AttentionResult:
    """The answer of Client.compute; arrays are the caller's own.

    Letters as in Client.compute. What was not asked for is None.
    """

    # The query's type; shape by the layout: that of the query with head size
    # Dv in place of D.
    output: NDArray[Any]
    # Natural log of the softmax's denominator, float32 or float64: (B, Hq, S);
    # matrix (S); ragged (sum S, Hq).
    log_sum_exp: NDArray[Any] | None
    # The query's type, (B, Hq, S, T).
    scores: NDArray[Any] | None
    # past_key and key joined, (B, Hkv, T, D).
    present_key: NDArray[Any] | None
    # past_value and value joined, (B, Hkv, T, Dv).
    present_value: NDArray[Any] | None
    timing: Timing


@dataclass(frozen=True)
class Capabilities:
    """What a server can do, and its limits."""

    # As in semver.org.
    version: str
    # Google Highway's name of the SIMD target in use: "AVX2", "NEON", ...
    simd_target: str
    # Threads that compute.
    threads: int
    # numpy's names of the types of query, key and value: "float32", ...
    data_types: tuple[str, ...]
    # Of "reproducible" and "fast".
    math_modes: tuple[str, ...]
    # Size of the largest request and answer, in bytes.
    max_request_bytes: int
    max_response_bytes: int
    # Keys a block: partial results merge bit-exactly only when split at
    # multiples of this many keys.
    key_block: int
    # The most that one call may ask for. All are 0 where the server is too old
    # to tell. The head size of query, key and value:
    max_head_size: int
    # Query heads.
    max_heads: int
    # Batch size, or number of sequences with layout "ragged".
    max_batch: int
    # The same times the number of key/value heads.
    max_batch_heads: int
    # Work in multiply-adds, as attention.proto counts it.
    max_work: int
    # Where clients on the server's machine share memory with it, "unix:/path";
    # empty: nowhere.
    shared_memory: str


def result_of(
    answer: Iterable[wire.Tensor | None], timing: Sequence[int]
) -> AttentionResult:
    """The result of an answer's tensors, from output to present_value, whose
    elements become the result's; the times in the order of Timing."""
    output, log_sum_exp, scores, present_key, present_value = map(
        _array, answer
    )
    assert output is not None  # What lacks it is no answer.
    return AttentionResult(
        output,
        log_sum_exp,
        scores,
        present_key,
        present_value,
        Timing(*timing),
    )


def owned(field: str, tensor: wire.Tensor) -> wire.Tensor:
    """The tensor with a copy of its elements, which may be written to.

    Raises:
        DecodeError: they do not fit its shape.
    """
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


def _array(tensor: wire.Tensor | None) -> NDArray[Any] | None:
    if tensor is None:
        return None
    data_type, shape, data = tensor
    return np.ndarray(shape, tensors.numpy_type(data_type), data)


def capabilities_of(message: bytes) -> Capabilities:
    """What a GetCapabilitiesResponse says."""
    response = pb.GetCapabilitiesResponse.FromString(message)
    return Capabilities(
        version=response.version,
        simd_target=response.simd_target,
        threads=response.threads,
        data_types=tuple(map(tensors.type_name, response.data_types)),
        math_modes=tuple(
            pb.MathMode.Name(mode)[len("MATH_MODE_") :].lower()
            for mode in response.math_modes
        ),
        max_request_bytes=response.max_request_bytes,
        max_response_bytes=response.max_response_bytes,
        key_block=response.key_block,
        max_head_size=response.max_head_size,
        max_heads=response.max_heads,
        max_batch=response.max_batch,
        max_batch_heads=response.max_batch_heads,
        max_work=response.max_work,
        shared_memory=response.shared_memory,
    )
