"""What is computed: FLOAT32, layout BHSD, B = 1, unit-normal numbers.

Letters as in kernel/attention.h.
"""

import dataclasses

import numpy as np

FLOAT32_BYTES = 4
# Largest error over the largest output: sums of some hundred products.
TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    title: str
    query_heads: int
    kv_heads: int
    queries: int
    keys: int
    head_size: int
    causal: bool = False

    @property
    def query_shape(self):
        return (1, self.query_heads, self.queries, self.head_size)

    @property
    def key_shape(self):
        return (1, self.kv_heads, self.keys, self.head_size)

    @property
    def request_bytes(self):
        elements = np.prod(self.query_shape) + 2 * np.prod(self.key_shape)
        return FLOAT32_BYTES * int(elements)

    @property
    def answer_bytes(self):
        return FLOAT32_BYTES * int(np.prod(self.query_shape))

    @property
    def words(self):
        """What a client program is told of it."""
        return (
            self.query_heads,
            self.kv_heads,
            self.queries,
            self.keys,
            self.head_size,
            int(self.causal),
        )


CASES = [
    Case("tiny", "S=T=16, H 1, d 64", 1, 1, 16, 16, 64),
    Case("128", "S=T=128, H 8, d 64", 8, 8, 128, 128, 64),
    Case("1024", "S=T=1024, H 8, d 64", 8, 8, 1024, 1024, 64),
    Case("decode", "S=1, T=8192, H 32/8, d 128: 67 MB in", 32, 8, 1, 8192, 128),
    Case(
        "prefill",
        "causal, S=T=2048, H 32/8, d 128",
        *(32, 8, 2048, 2048, 128),
        causal=True,
    ),
]


def write(case, folder):
    """Its tensors as files of numbers: query, key and value."""
    random = np.random.default_rng(1)
    shapes = {
        "query": case.query_shape,
        "key": case.key_shape,
        "value": case.key_shape,
    }
    for name, shape in shapes.items():
        random.standard_normal(shape, np.float32).tofile(folder / name)


def read(case, folder):
    """Query, key and value as write() left them, mapped: however many
    clients there are, memory holds them once."""
    shapes = (case.query_shape, case.key_shape, case.key_shape)
    return [
        np.memmap(folder / name, np.float32, "c", shape=shape).view(np.ndarray)
        for name, shape in zip(("query", "key", "value"), shapes, strict=True)
    ]


def reference(query, key, value, causal, rows):
    """Some query rows of every head, in double precision."""
    heads, keys = query.shape[1], key.shape[2]
    group = heads // key.shape[1]
    outputs = []
    for head in range(heads):
        k = key[0, head // group].astype(np.float64)
        v = value[0, head // group].astype(np.float64)
        scores = query[0, head, rows].astype(np.float64) @ k.T
        scores /= np.sqrt(k.shape[1])
        if causal:
            hidden = np.arange(keys)[None, :] > np.array(rows)[:, None]
            scores[hidden] = -np.inf
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        outputs.append(weights / weights.sum(axis=1, keepdims=True) @ v)
    return np.stack(outputs)


class Expected:
    """What the answers to a case are held against: a few rows of each head
    against double precision, all of them against the first right answer."""

    def __init__(self, case, folder):
        self._case = case
        self._rows = sorted({0, case.queries // 2, case.queries - 1})
        self._reference = reference(
            *read(case, folder), case.causal, self._rows
        )
        self._first = None

    def error(self, answer):
        """The largest difference over the largest output; infinite for what
        is no answer."""
        shape = self._case.query_shape
        if answer.size != np.prod(shape) or not np.isfinite(answer).all():
            return float("inf")
        answer = answer.reshape(shape)
        rows = answer[0, :, self._rows].swapaxes(0, 1)
        found = difference(rows, self._reference)
        if self._first is None:
            if found <= TOLERANCE:
                self._first = answer
            return found
        return max(found, difference(answer, self._first))


def difference(found, wanted):
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())
