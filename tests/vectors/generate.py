"""Writes attention.json: what each case asks, and the right answer.

    PYTHONPATH=tests build/venv/bin/python -m vectors.generate

The answers are those of support/reference.py, in double, rounded to the type
of the tensor. README.md describes the file.
"""

import base64
import json
import re
from pathlib import Path

import numpy as np
from ml_dtypes import bfloat16

from support import reference

FILE = Path(__file__).with_name("attention.json")
TYPES = {
    "float32": "DATA_TYPE_FLOAT32",
    "float16": "DATA_TYPE_FLOAT16",
    "bfloat16": "DATA_TYPE_BFLOAT16",
    "float64": "DATA_TYPE_FLOAT64",
    "bool": "DATA_TYPE_BOOL",
    "int8": "DATA_TYPE_INT8",
    "int32": "DATA_TYPE_INT32",
    "int64": "DATA_TYPE_INT64",
}
TENSORS = (
    "query",
    "key",
    "value",
    "mask",
    "past_key",
    "past_value",
    "indices",
)
LISTS = ("valid_lengths", "query_starts", "key_starts")
ENUMS = {"layout": "LAYOUT", "causal": "CAUSAL", "return_scores": "SCORES"}
INF, NAN = np.inf, np.nan


def numbers(*shape, step=7, dtype=np.float32):
    """Multiples of 1/4 in [-1.25, 1.25] that do not repeat too soon."""
    count = np.arange(np.prod(shape, dtype=int))
    return ((count * step % 11 - 5) / 4).reshape(shape).astype(dtype)


def f32(*rows):
    return np.array(rows, np.float32)


def attends(*rows):
    return np.array(rows, bool)


def tensor(array, as_numbers=True):
    """The Tensor in protobuf's JSON."""
    shape = list(array.shape)
    if as_numbers and array.dtype == np.float32 and array.size:
        return {"shape": shape, "float_values": list(map(number, array.flat))}
    message = {"data_type": TYPES[array.dtype.name], "shape": shape}
    if array.size:
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        message["data"] = base64.b64encode(little.tobytes()).decode()
    return message


def number(x):
    """The shortest decimal of a float32; text where JSON has no number."""
    if np.isnan(x):
        return "NaN"
    if np.isinf(x):
        return "Infinity" if x > 0 else "-Infinity"
    return float(str(np.float32(x)))


def request(arguments):
    message = {
        name: tensor(arguments[name]) for name in TENSORS if name in arguments
    }
    message |= {name: arguments[name] for name in LISTS if name in arguments}
    # A list of numbers for heads is an option, an array for rows a tensor.
    if isinstance(arguments.get("sinks"), np.ndarray):
        message["sinks"] = tensor(arguments["sinks"])
    options = {}
    for name, value in arguments.items():
        if name in message:
            continue
        if name in ENUMS:
            value = f"{ENUMS[name]}_{value.upper()}"
        elif name == "window":
            left, right = value
            value = {"left": left, "right": right}
            value = {k: v for k, v in value.items() if v is not None}
        elif name in ("alibi_slopes", "sinks"):
            value = list(map(number, value))
        options[name] = value
    if options:
        message["options"] = options
    return message


def response(arguments):
    result = reference.compute(**arguments)
    query = arguments["query"]
    double = np.float64 in (query.dtype, arguments["value"].dtype)
    as_numbers = query.dtype == np.float32 and query.size > 0

    def rounded(array, dtype):
        return tensor(array.astype(dtype), as_numbers)

    message = {"output": rounded(result.output, query.dtype)}
    if arguments.get("return_log_sum_exp"):
        message["log_sum_exp"] = rounded(
            result.log_sum_exp, np.float64 if double else np.float32
        )
    if "return_scores" in arguments:
        message["scores"] = rounded(result.scores, query.dtype)
    if arguments.get("return_present"):
        for name in ("present_key", "present_value"):
            array = getattr(result, name)
            message[name] = rounded(array, array.dtype)
    return message


def answered(name, description, **arguments):
    return {
        "name": name,
        "description": description,
        "request": request(arguments),
        "response": response(arguments),
    }


def refused(name, description, field, **arguments):
    return {
        "name": name,
        "description": description,
        "request": request(arguments),
        "error": {"code": "INVALID_ARGUMENT", "field": field},
    }


def plain(*leading, s=3, t=4, d=2, dv=None, dtype=np.float32):
    """query, key and value with the same leading axes."""
    return {
        "query": numbers(*leading, s, d, dtype=dtype),
        "key": numbers(*leading, t, d, step=5, dtype=dtype),
        "value": numbers(*leading, t, dv or d, step=3, dtype=dtype),
    }


def examples():
    eye = f32([1, 0], [0, 1])
    yield answered(
        "identity",
        "Q = K = V = the identity: weights (0.669762, 0.330238) and "
        "(0.330238, 0.669762).",
        query=eye,
        key=eye,
        value=eye,
        return_log_sum_exp=True,
        return_scores="weights",
    )
    yield answered(
        "two_keys",
        "One query over two keys. The second score, before scaling, is "
        "1.0*0.3 + 0*0.7 = 0.3; the weights are (0.535297, 0.464703).",
        query=f32([1, 0]),
        key=f32([0.5, 0.5], [0.3, 0.7]),
        value=f32([1, 0], [0.5, 0.5]),
        return_scores="weights",
    )


def layouts():
    yield answered(
        "bhsd_grouped_heads",
        "4 query heads over 2 key/value heads: heads 0 and 1 read the first, "
        "2 and 3 the second. Value heads are wider than key heads.",
        query=numbers(1, 4, 2, 2),
        key=numbers(1, 2, 3, 2, step=5),
        value=numbers(1, 2, 3, 3, step=3),
    )
    yield answered(
        "packed",
        "(B, S, heads * size), 2 batches, 2 query heads, 1 key/value head.",
        query=numbers(2, 2, 4),
        key=numbers(2, 3, 2, step=5),
        value=numbers(2, 3, 2, step=3),
        query_heads=2,
        kv_heads=1,
    )
    yield answered(
        "bshd",
        "(B, S, heads, size).",
        query=numbers(1, 2, 3, 2),
        key=numbers(1, 4, 3, 2, step=5),
        value=numbers(1, 4, 3, 2, step=3),
        layout="bshd",
    )
    yield answered(
        "ragged",
        "Sequences of 2, 0 and 1 queries over 1, 2 and 3 keys, causal, each "
        "aligned at its own end.",
        query=numbers(3, 2, 2),
        key=numbers(6, 1, 2, step=5),
        value=numbers(6, 1, 2, step=3),
        layout="ragged",
        query_starts=[0, 2, 2, 3],
        key_starts=[0, 1, 3, 6],
        causal="bottom_right",
        return_log_sum_exp=True,
    )


def masks():
    yield answered(
        "mask_bool",
        "True attends. Row 1 attends nothing: output 0, log-sum-exp -inf.",
        **plain(s=2, t=3),
        mask=attends([1, 0, 1], [0, 0, 0]),
        return_log_sum_exp=True,
        return_scores="weights",
    )
    yield answered(
        "mask_of_numbers",
        "Added to the scores, -inf masks. -1e4 everywhere changes nothing (the "
        "scores are multiples of 1/16: none is rounded); -3e38 everywhere "
        "absorbs the scores, which leaves the mean of V.",
        **plain(s=3, t=3),
        mask=f32([0.5, -INF, 0], [-1e4] * 3, [-3e38] * 3),
        scale=1.0,
    )
    yield answered(
        "mask_of_integers",
        "Added like other numbers.",
        **plain(s=2, t=3),
        mask=np.array([[1, 0, -2]], np.int8),
    )
    yield answered(
        "mask_short",
        "A last axis shorter than the keys masks the rest.",
        **plain(s=2, t=4),
        mask=f32([0, 1], [1, 0]),
    )
    yield answered(
        "mask_of_rank_3_is_by_head",
        "(Hq, S, T): the same mask for both batches, one for each head.",
        **plain(2, 2, s=1, t=2),
        mask=f32([[0, -INF]], [[-INF, 0]]),
    )
    with_nan = plain(s=2, t=3)
    with_nan["key"][1] = NAN
    with_nan["value"][1] = INF
    yield answered(
        "masked_keys_do_not_leak",
        "NaN in a masked key and infinity in its value have no effect.",
        **with_nan,
        mask=attends([1, 0, 1]),
    )


def positions():
    yield answered(
        "causal_top_left",
        "Query i sees keys 0 to i, though there are more keys than queries.",
        **plain(s=2, t=4),
        causal="top_left",
    )
    yield answered(
        "causal_bottom_right",
        "The last query sees the last key; with more queries than keys the "
        "first see none.",
        **plain(s=4, t=2),
        causal="bottom_right",
        return_log_sum_exp=True,
    )
    yield answered(
        "past_and_present",
        "2 past keys before 2 new ones, causal: the offset is 2.",
        **plain(1, 1, s=2, t=2),
        past_key=numbers(1, 1, 2, 2, step=4),
        past_value=numbers(1, 1, 2, 2, step=6),
        causal="top_left",
        return_present=True,
    )
    yield answered(
        "valid_lengths",
        "Of 4 keys, 3 and 1 are valid. Causal: the offset is 1 and -1, so "
        "that the second batch's first query sees nothing.",
        **plain(2, 1, s=2, t=4),
        valid_lengths=[3, 1],
        causal="top_left",
    )
    yield answered(
        "window",
        "One key before a query's own position and none after.",
        **plain(s=4, t=4),
        window=(1, 0),
        return_scores="biased",
    )
    yield answered(
        "alibi",
        "Minus 0.5 for each key of distance in head 0, 0.25 in head 1.",
        **plain(1, 2, s=2, t=3),
        alibi_slopes=[0.5, 0.25],
    )


def scores():
    for stage in reference.STAGES:
        yield answered(
            f"scores_{stage}",
            "Scale, soft cap and causal mask, one stage returned.",
            **plain(s=2, t=2),
            scale=2.0,
            softcap=1.5,
            causal="top_left",
            return_scores=stage,
        )
    yield answered(
        "scale_of_zero",
        "Not the default: every key weighs the same.",
        **plain(s=1, t=4),
        scale=0.0,
    )
    yield answered(
        "large_scores",
        "Scores of 10000 overflow exp unless the highest is taken off first.",
        query=f32([100, 0], [-100, 0]),
        key=f32([100, 0], [0, 100], [100, 0]),
        value=f32([1, 2], [3, 4], [5, 6]),
        scale=1.0,
    )
    yield answered(
        "sinks",
        "A logit in the denominator of each head; row 1 attends nothing and "
        "keeps the sink in its log-sum-exp.",
        **plain(1, 2, s=2, t=2),
        mask=attends([1, 1], [0, 0]),
        sinks=[0.5, -INF],
        return_log_sum_exp=True,
    )

    yield answered(
        "row_sinks",
        "A logit in the denominator of each row, in place of options.sinks.",
        **plain(1, 2, s=2, t=2),
        sinks=np.array([[[0.5, -1], [-INF, 2]]], np.float32),
        return_log_sum_exp=True,
    )
    yield answered(
        "indices",
        "Each query sees the keys of its list; -1 is none, a key that comes "
        "twice counts once, and row 2 sees nothing.",
        **plain(1, 2, s=3, t=5),
        indices=np.array([[[4, 0, -1], [2, 2, 1], [-1, -1, -1]]], np.int32),
        return_log_sum_exp=True,
    )
    yield answered(
        "indices_of_heads",
        "A list for each head, beside a causal mask.",
        **plain(1, 2, s=2, t=4),
        indices=np.array([[[[0, 3], [1, 2]], [[3, 2], [0, -1]]]], np.int64),
        causal="bottom_right",
    )


def types():
    for dtype in (np.float16, bfloat16, np.float64):
        yield answered(
            np.dtype(dtype).name,
            "data holds the elements' bytes, little-endian.",
            **plain(s=2, t=3, dtype=dtype),
            return_log_sum_exp=True,
        )
    mixed = plain(s=2, t=3, dtype=np.float16)
    mixed["value"] = mixed["value"].astype(np.float32)
    yield answered(
        "types_mixed", "FLOAT16 query and key, FLOAT32 value.", **mixed
    )
    yield answered(
        "no_keys",
        "Every row attends nothing.",
        **plain(s=2, t=0),
        return_log_sum_exp=True,
    )
    yield answered(
        "no_queries",
        "An empty query gives an empty output.",
        **plain(s=0, t=2),
    )


def errors():
    bad = plain(s=2, t=3)
    bad["key"] = numbers(3, 4)
    yield refused(
        "key_of_other_size", "Head size 4, not 2.", "key.shape", **bad
    )
    yield refused(
        "heads_do_not_divide",
        "3 query heads over 2 key/value heads.",
        "key.shape",
        query=numbers(1, 3, 1, 2),
        key=numbers(1, 2, 1, 2),
        value=numbers(1, 2, 1, 2),
    )
    yield refused(
        "mask_too_long",
        "4 keys, a mask for 5.",
        "mask.shape",
        **plain(),
        mask=f32([0, 0, 0, 0, 0]),
    )
    yield refused(
        "mask_ambiguous",
        "A last axis of 1 could mean one key or all of them.",
        "mask.shape",
        **plain(),
        mask=f32([0]),
    )
    yield refused(
        "softcap_negative",
        "0 is none; below there is nothing.",
        "options.softcap",
        **plain(),
        softcap=-1.0,
    )
    yield refused(
        "past_key_alone",
        "past_key without past_value.",
        "past_value",
        **plain(1, 1),
        past_key=numbers(1, 1, 2, 2),
    )
    no_heads = {name: numbers(1, 2, 4) for name in ("query", "key", "value")}
    yield refused(
        "packed_without_heads",
        "Three axes are PACKED, which needs the heads.",
        "options.query_heads",
        **no_heads,
    )


def cases():
    groups = (examples, layouts, masks, positions, scores, types, errors)
    return [case for group in groups for case in group()]


def text():
    """The file's text: one line for a list of numbers."""
    dumped = json.dumps({"cases": cases()}, indent=2, allow_nan=False)
    return (
        re.sub(
            r"\[\s+([^][{}]*?)\s+\]",
            lambda match: "[" + re.sub(r"\s*\n\s*", " ", match[1]) + "]",
            dumped,
        )
        + "\n"
    )


if __name__ == "__main__":
    FILE.write_text(text())
    print(f"{FILE.name}: {len(cases())} cases")
