"""What a call says of how to attend, as a message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attention_client import arguments, tensors
from attention_client import attention_pb2 as pb

_CAUSALS = arguments.names_of(pb.Causal)
_MATH_MODES = arguments.names_of(pb.MathMode)
_SCORES = arguments.names_of(pb.Scores)


def fill(
    options: pb.AttentionOptions,
    *,
    scale: float | None,
    softcap: float,
    causal: str | None,
    window: tuple[int | None, int | None] | None,
    chunk_size: int,
    alibi_slopes: Sequence[float] | None,
    sinks: Any,
    math_mode: str | None,
    softmax_precision: Any,
    return_log_sum_exp: bool,
    return_scores: str | None,
) -> None:
    """Sets what is not the default; arguments as in Client.compute."""
    if scale is not None:
        options.scale = arguments.number(scale, "scale")
    if softcap is not None:
        options.softcap = arguments.number(softcap, "softcap")
    if causal is not None:
        options.causal = arguments.enum(causal, "causal", _CAUSALS)
    if window is not None:
        sides = arguments.window(window, "window")
        options.window.CopyFrom(pb.Window(left=sides[0], right=sides[1]))
    options.chunk_size = arguments.whole_number(chunk_size, "chunk_size")
    if alibi_slopes is not None:
        options.alibi_slopes.extend(
            arguments.numbers(alibi_slopes, "alibi_slopes")
        )
    # Others are a tensor of the request.
    if sinks is not None and not tensors.is_per_row(sinks):
        options.sinks.extend(arguments.numbers(sinks, "sinks"))
    if math_mode is not None:
        options.math_mode = arguments.enum(math_mode, "math_mode", _MATH_MODES)
    if softmax_precision is not None:
        options.softmax_precision = tensors.wire_type(
            softmax_precision, "softmax_precision"
        )
    options.return_log_sum_exp = arguments.flag(
        return_log_sum_exp, "return_log_sum_exp"
    )
    if return_scores is not None:
        options.return_scores = arguments.enum(
            return_scores, "return_scores", _SCORES
        )
