"""The cases of attention_bench, their tensors, and what is right for them."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Case:
    """As benchmarks/kernel/cases.h has it."""

    name: str
    type: str
    math: str
    batch: int
    query_heads: int
    kv_heads: int
    query_length: int
    key_length: int
    head_size: int
    value_head_size: int
    causal: str
    window_left: int
    mask: str
    ragged: list
    decode: bool
    limit: str  # What bounds it: "float", "double", "bfloat16" or "read".

    @property
    def is_causal(self):
        if self.causal == "BOTTOM_RIGHT":
            raise ValueError(f"{self.name}: no peer aligns bottom right")
        return self.causal == "TOP_LEFT"

    @property
    def group(self):
        """Query heads that share a key/value head."""
        return self.query_heads // self.kv_heads

    @property
    def lengths(self):
        """(queries, keys) of each sequence, batches apart."""
        if self.ragged:
            return [(length, length) for length in self.ragged]
        return [(self.query_length, self.key_length)]


def parse(entries):
    """The cases of attention_bench's list. Fails at a field not known here."""
    return [Case(**entry) for entry in entries]


# BFLOAT16 as its bits, which numpy lacks.
NUMPY_TYPES = {
    "FLOAT64": np.float64,
    "FLOAT32": np.float32,
    "FLOAT16": np.float16,
    "BFLOAT16": np.uint16,
}


def widen(array, type_name):
    """Exactly, to float64."""
    if type_name == "BFLOAT16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float64)


@dataclasses.dataclass(frozen=True)
class Sequence:
    """What is attended at once: (B, H, S or T, D), and (S, T) or None."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    mask: np.ndarray | None


def aligned(array):
    """A copy that begins at a cache line, as a library's own memory does."""
    memory = np.empty(array.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    memory = memory[start : start + array.nbytes]
    copy = memory.view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def split(case, packed):
    """Each sequence of (B, H, S, D), or ragged (sum S, H, D), as the former."""
    if not case.ragged:
        return [packed]
    ends = np.cumsum(case.ragged)[:-1]
    return [
        aligned(part.transpose(1, 0, 2))[None]
        for part in np.split(packed, ends)
    ]


def load(case, folder):
    """The sequences that attention_bench wrote to `folder`."""

    def read(name, heads, length, size):
        elements = np.fromfile(folder / f"{name}.bin", NUMPY_TYPES[case.type])
        if case.ragged:
            return split(case, elements.reshape(-1, heads, size))
        return [aligned(elements.reshape(case.batch, heads, length, size))]

    mask = None
    if case.mask != "NONE":
        kind = np.bool_ if case.mask == "BOOL" else np.float32
        mask = np.fromfile(folder / "mask.bin", kind)
        mask = aligned(mask.reshape(case.query_length, case.key_length))
    c = case
    return [
        Sequence(query, key, value, mask)
        for query, key, value in zip(
            read("query", c.query_heads, c.query_length, c.head_size),
            read("key", c.kv_heads, c.key_length, c.head_size),
            read("value", c.kv_heads, c.key_length, c.value_head_size),
            strict=True,
        )
    ]


def load_output(case, folder):
    """The kernel's own, a (B, Hq, S, Dv) each sequence, in float64."""
    output = np.fromfile(folder / "output.bin", NUMPY_TYPES[case.type])
    shape = (case.batch, case.query_heads, case.query_length)
    if case.ragged:
        shape = (-1, case.query_heads)
    output = output.reshape(*shape, case.value_head_size)
    return [widen(part, case.type) for part in split(case, output)]


def window_mask(case):
    """True where query i sees key j, causal and window taken together."""
    i = np.arange(case.query_length)[:, None]
    j = np.arange(case.key_length)[None, :]
    seen = i - j <= case.window_left
    return seen & (j <= i) if case.is_causal else seen


def reference(case, sequence, head, rows):
    """In float64: query `rows` of one head, in the last batch entry."""

    def one(array, head):
        return widen(array[-1, head], case.type)

    query = one(sequence.query, head)[rows]
    key = one(sequence.key, head // case.group)
    value = one(sequence.value, head // case.group)
    scores = query @ key.T / np.sqrt(case.head_size)
    if sequence.mask is not None:
        mask = sequence.mask[rows]
        if mask.dtype == np.bool_:
            scores[~mask] = -np.inf
        else:
            scores += mask
    columns = np.arange(len(key))
    if case.is_causal:
        scores[columns > rows[:, None]] = -np.inf
    if case.window_left >= 0:
        scores[rows[:, None] - columns > case.window_left] = -np.inf
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weights @ value / weights.sum(axis=1, keepdims=True)


ROWS = 64


def error(case, sequences, outputs):
    """The largest error of first and last head, over the largest output.

    Of the last sequence, ROWS rows spread over it.
    """
    sequence, output = sequences[-1], outputs[-1]
    if output.shape != (*sequence.query.shape[:3], case.value_head_size):
        raise ValueError(f"an output of shape {output.shape}")
    last = sequence.query.shape[2] - 1
    rows = np.unique(np.linspace(0, last, ROWS).astype(int))
    worst = largest = 0.0
    for head in {0, case.query_heads - 1}:
        right = reference(case, sequence, head, rows)
        wrong = np.abs(output[-1, head, rows] - right)
        worst = max(worst, float(np.nan_to_num(wrong, nan=np.inf).max()))
        largest = max(largest, float(np.abs(right).max()))
    return worst / largest
