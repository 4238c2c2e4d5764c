"""What calls return."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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
    output: np.ndarray
    # Natural log of the softmax's denominator, float32 or float64: (B, Hq, S);
    # matrix (S); ragged (sum S, Hq).
    log_sum_exp: np.ndarray | None
    # The query's type, (B, Hq, S, T).
    scores: np.ndarray | None
    # past_key and key joined, (B, Hkv, T, D).
    present_key: np.ndarray | None
    # past_value and value joined, (B, Hkv, T, Dv).
    present_value: np.ndarray | None
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
