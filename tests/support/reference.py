"""Attention in double precision, written to be read, row by row.

Takes the arguments of attention_client.Client.compute and returns a result
with the same fields, all float64 (present_key and present_value as they came).
It shares no code with the kernel or the client. Arguments are taken to be
valid: nothing is checked.

Letters: B batch, Hq query heads, Hkv key/value heads, S query length, L new
key/value length, P past length, T = P + L, D and Dv head sizes.
"""

from dataclasses import dataclass

import numpy as np


@dataclass
class Result:
    output: np.ndarray
    log_sum_exp: np.ndarray
    # The stage asked for, (B, Hq, S, T); None where none was.
    scores: np.ndarray | None
    present_key: np.ndarray | None
    present_value: np.ndarray | None


STAGES = ("raw", "capped", "biased", "weights")


def compute(
    query,
    key,
    value,
    *,
    mask=None,
    past_key=None,
    past_value=None,
    valid_lengths=None,
    query_starts=None,
    key_starts=None,
    layout=None,
    query_heads=None,
    kv_heads=None,
    scale=None,
    softcap=0.0,
    causal=None,
    window=None,
    chunk_size=0,
    alibi_slopes=None,
    sinks=None,
    indices=None,
    return_scores=None,
    **_,
):
    """See Client.compute. log_sum_exp and present are always returned."""
    options = {
        "scale": scale,
        "softcap": softcap,
        "causal": causal,
        "window": window,
        "chunk_size": chunk_size,
        "alibi_slopes": alibi_slopes,
        "sinks": sinks,
        "indices": indices,
    }
    layout = layout or {2: "matrix", 3: "packed", 4: "bhsd"}[query.ndim]
    if layout == "ragged":
        return _ragged(query, key, value, query_starts, key_starts, options)

    q = _to_bhsd(query, layout, query_heads)
    k = _to_bhsd(key, layout, kv_heads)
    v = _to_bhsd(value, layout, kv_heads)
    past = 0
    if past_key is not None:
        past = past_key.shape[2]
        k = np.concatenate([past_key, k], axis=2)
        v = np.concatenate([past_value, v], axis=2)
    output, lse, stages = _bhsd(q, k, v, mask, past, valid_lengths, options)
    return Result(
        output=_from_bhsd(output, layout),
        log_sum_exp=lse[0, 0] if layout == "matrix" else lse,
        scores=stages.get(return_scores),
        present_key=k,
        present_value=v,
    )


def _to_bhsd(x, layout, heads):
    if layout == "matrix":
        return x[None, None]
    if layout == "packed":
        batch, length, columns = x.shape
        split = x.reshape(batch, length, heads, columns // heads)
        return split.transpose(0, 2, 1, 3)
    if layout == "bshd":
        return x.transpose(0, 2, 1, 3)
    return x


def _from_bhsd(x, layout):
    if layout == "matrix":
        return x[0, 0]
    if layout == "packed":
        batch, heads, length, size = x.shape
        return x.transpose(0, 2, 1, 3).reshape(batch, length, heads * size)
    if layout == "bshd":
        return x.transpose(0, 2, 1, 3)
    return x


def _ragged(query, key, value, query_starts, key_starts, options):
    output = np.zeros((*query.shape[:2], value.shape[2]))
    lse = np.zeros(query.shape[:2])
    for b in range(len(query_starts) - 1):
        rows = slice(query_starts[b], query_starts[b + 1])
        keys = slice(key_starts[b], key_starts[b + 1])
        q, k, v = (
            x.transpose(1, 0, 2)[None]
            for x in (query[rows], key[keys], value[keys])
        )
        # Of this sequence alone, as of a batch of one: (1, S, k), (1, Hq, S).
        own = dict(options)
        if options["indices"] is not None:
            lists = options["indices"][rows]
            per_head = lists.ndim == 3
            own["indices"] = (lists.swapaxes(0, 1) if per_head else lists)[None]
        if np.ndim(options["sinks"]) == 2:
            own["sinks"] = np.asarray(options["sinks"])[rows].T[None]
        out, sums, _ = _bhsd(q, k, v, None, 0, None, own)
        output[rows] = out[0].transpose(1, 0, 2)
        lse[rows] = sums[0].T
    return Result(output, lse, None, None, None)


def _bhsd(q, k, v, mask, past, valid_lengths, options):
    """Returns output, log-sum-exp and all stages by name."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    batch, heads, length, _ = q.shape
    keys = k.shape[2]
    group = heads // k.shape[1]
    output = np.zeros((batch, heads, length, v.shape[3]))
    lse = np.zeros((batch, heads, length))
    stages = {stage: np.zeros((batch, heads, length, keys)) for stage in STAGES}
    bias_of_mask = _mask_bias(mask, (batch, heads, length, keys))
    for b in range(batch):
        valid = None if valid_lengths is None else int(valid_lengths[b])
        for h in range(heads):
            bias = bias_of_mask[b, h] + _position_bias(
                length, keys, past, valid, h, options
            )
            bias = np.where(
                _selected(options["indices"], (b, h), bias.shape), bias, -np.inf
            )
            output[b, h], lse[b, h], stage = _head(
                q[b, h],
                k[b, h // group],
                v[b, h // group],
                bias,
                _sinks_of(options["sinks"], (b, h), length),
                options,
            )
            for name in STAGES:
                stages[name][b, h] = stage[name]
    return output, lse, stages


def _selected(indices, place, shape):
    """Whether a list of (B, S, k), (B, Hq, S, k) or (S, k) has each key."""
    if indices is None:
        return True
    b, h = place
    lists = np.asarray(indices)
    if lists.ndim > 2:
        lists = lists[b] if lists.ndim == 3 else lists[b, h]
    selected = np.zeros(shape, bool)
    for i, keys in enumerate(lists):
        selected[i, keys[keys >= 0].astype(int)] = True
    return selected


def _sinks_of(sinks, place, length):
    """The sink of each row of a head, (S)."""
    b, h = place
    if sinks is None:
        return np.full(length, -np.inf)
    sinks = np.asarray(sinks, np.float64)
    return np.full(length, sinks[h]) if sinks.ndim == 1 else sinks[b, h]


def _mask_bias(mask, shape):
    """The mask tensor as numbers to add, broadcast to (B, Hq, S, T)."""
    if mask is None:
        return np.zeros(shape)
    if hasattr(mask, "bits"):  # A PackedMask.
        size = int(np.prod(mask.shape))
        bits = np.unpackbits(mask.bits, count=size, bitorder="little")
        mask = bits.astype(bool).reshape(mask.shape)
    if mask.dtype == bool:
        bias = np.where(mask, 0.0, -np.inf)
    else:
        bias = np.asarray(mask, np.float64)
    missing = shape[3] - bias.shape[-1]
    if missing > 0:
        padding = np.full((*bias.shape[:-1], missing), -np.inf)
        bias = np.concatenate([bias, padding], axis=-1)
    return np.broadcast_to(bias, shape)


def _position_bias(length, keys, past, valid, head, options):
    """Causal mask, window, valid length and ALiBi of one head, (S, T)."""
    if valid is not None:
        offset = valid - length
    elif options["causal"] == "bottom_right":
        offset = keys - length
    else:
        offset = past
    own = np.arange(length)[:, None] + offset
    j = np.arange(keys)[None, :]
    left, right = options["window"] or (None, None)

    seen = np.ones((length, keys), bool)
    if valid is not None:
        seen &= j < valid
    if options["causal"] is not None:
        seen &= j <= own
    if left not in (None, -1):
        seen &= own - left <= j
    if right not in (None, -1):
        seen &= j <= own + right
    if options["chunk_size"]:
        chunk = options["chunk_size"]
        seen &= np.floor_divide(j, chunk) == np.floor_divide(own, chunk)
    bias = np.where(seen, 0.0, -np.inf)
    if options["alibi_slopes"] is not None:
        bias = bias - options["alibi_slopes"][head] * np.abs(own - j)
    return bias


def _head(q, k, v, bias, sinks, options):
    """One head: q (S, D), k (T, D), v (T, Dv), bias (S, T), sinks (S)."""
    scale = options["scale"]
    if scale is None:
        scale = 1 / np.sqrt(q.shape[1])
    softcap = options["softcap"]

    # What is masked may hold NaN and infinity; whether a key is masked is
    # decided on the bias alone, and only keys that are not are ever read below.
    with np.errstate(invalid="ignore", over="ignore"):
        raw = scale * (q @ k.T)
        capped = softcap * np.tanh(raw / softcap) if softcap > 0 else raw
        seen = bias != -np.inf
        biased = np.where(seen, capped + bias, -np.inf)

    output = np.zeros((q.shape[0], v.shape[1]))
    lse = np.full(q.shape[0], -np.inf)
    weights = np.zeros_like(bias)
    for i in range(q.shape[0]):
        see = seen[i]
        sink = sinks[i]
        if not see.any():
            lse[i] = sink
            continue
        x = biased[i, see]
        with np.errstate(invalid="ignore"):
            highest = max(x.max(), sink)
            exp = np.exp(x - highest)
            total = exp.sum() + np.exp(sink - highest)
            # A NaN that is seen makes all of its row NaN, masked keys too.
            weights[i] = np.nan if np.isnan(total) else 0.0
            weights[i, see] = exp / total
            lse[i] = highest + np.log(total)
            output[i] = weights[i, see] @ v[see]
    stages = {
        "raw": raw,
        "capped": capped,
        "biased": biased,
        "weights": weights,
    }
    return output, lse, stages
