"""PyTorch: scaled_dot_product_attention, and flex_attention, compiled."""

import numpy as np
import torch
from torch.nn.attention.flex_attention import (
    create_block_mask,
    flex_attention,
)
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.peers import cases

torch.inference_mode().__enter__()


def version():
    return f"PyTorch {torch.__version__.split('+')[0]}"


def tensor(array, case):
    made = torch.from_numpy(array)
    return made.view(torch.bfloat16) if case.type == "BFLOAT16" else made


def tensors(case, sequences, threads):
    torch.set_num_threads(threads)
    return [
        tuple(tensor(a, case) for a in (s.query, s.key, s.value))
        for s in sequences
    ]


def to_numpy(outputs):
    return [np.asarray(output.double()) for output in outputs]


def sdpa(case, sequences, threads):
    """A call each sequence; a window is a mask, since there is no other way."""
    inputs = tensors(case, sequences, threads)
    mask = sequences[0].mask
    causal = case.is_causal
    if case.window_left >= 0:
        mask, causal = cases.window_mask(case), False
    options = {"is_causal": causal, "enable_gqa": case.group > 1}
    if mask is not None:
        options["attn_mask"] = torch.from_numpy(mask)

    def run():
        return [scaled_dot_product_attention(*i, **options) for i in inputs]

    return run, to_numpy


def sdpa_rows(case, sequences, threads):
    """Decoding with the query heads of a group as rows of one head."""
    if not case.decode:
        raise NotImplementedError("for decoding only")
    ((query, key, value),) = tensors(case, sequences, threads)
    rows = query.view(case.batch, case.kv_heads, case.group, case.head_size)

    def run():
        out = scaled_dot_product_attention(rows, key, value)
        return [out.reshape(case.batch, case.query_heads, 1, -1)]

    return run, to_numpy


def flex(case, sequences, threads):
    if not (case.decode or case.window_left >= 0):
        raise NotImplementedError("for windows and decoding only")
    inputs = tensors(case, sequences, threads)[0]
    options = {"enable_gqa": case.group > 1}
    if case.window_left >= 0:

        def seen(_batch, _head, i, j):
            return (j <= i) & (i - j <= case.window_left)

        options["block_mask"] = create_block_mask(
            seen, None, None, case.query_length, case.key_length, device="cpu"
        )
    torch.compiler.reset()
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda: [compiled(*inputs, **options)], to_numpy


WAYS = {"sdpa": sdpa, "sdpa_rows": sdpa_rows, "flex": flex}
