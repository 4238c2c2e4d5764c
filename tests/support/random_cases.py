"""Seeded random requests over everything that attention takes."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from attention_client import PackedMask
from support import reference, tolerance

LAYOUTS = ("matrix", "packed", "bhsd", "bshd", "ragged")
FLOATS = (np.float32, np.float16, ml_dtypes.bfloat16, np.float64)
INTS = (np.int8, np.int32, np.int64)
# Around the vector lengths of the kernel (4 to 16) and its blocks of 256 keys.
QUERY_LENGTHS = (0, 1, 2, 3, 5, 16, 17, 33)
KEY_LENGTHS = (0, 1, 2, 7, 16, 31, 64, 129, 255, 256, 257, 300, 520)
HEAD_SIZES = (1, 2, 3, 8, 16, 17, 32, 64, 65)


@dataclass
class Case:
    # Keyword arguments of compute().
    arguments: dict
    # As tolerance.growth tells.
    growth: float
    # Whether the computation is in double.
    double: bool

    def __repr__(self):
        shown = {
            name: f"{value.dtype.name}{list(value.shape)}"
            if isinstance(value, np.ndarray)
            else value
            for name, value in self.arguments.items()
            if value is not None
        }
        return f"Case({shown}, growth={self.growth:.3g})"


class Generator:
    """Makes one case; each method draws one part of it."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.layout = self.choose(LAYOUTS)
        matrix = self.layout == "matrix"
        self.batch = 1 if matrix else self.choose((1, 2, 3, 0), (4, 4, 2, 1))
        self.kv_heads = 1 if matrix else self.choose((1, 2, 3))
        self.query_heads = self.kv_heads * (
            1 if matrix else self.choose((1, 2, 3, 4))
        )
        self.size = self.choose(HEAD_SIZES)
        self.value_size = (
            self.size if self.chance(0.5) else self.choose(HEAD_SIZES)
        )
        self.type = self.choose(FLOATS, (4, 2, 2, 1))
        self.value_type = self.type if self.chance(0.7) else self.choose(FLOATS)

    def choose(self, values, weights=None):
        p = None if weights is None else np.divide(weights, sum(weights))
        return values[self.rng.choice(len(values), p=p)]

    def chance(self, probability):
        return self.rng.random() < probability

    def normal(self, *shape, dtype):
        return self.rng.standard_normal(shape).astype(dtype)

    def options(self):
        heads = self.query_heads
        left, right = (self.choose((None, -1, 0, 1, 5, 40)) for _ in range(2))
        return {
            "scale": self.choose((None, 0.0, -0.4, 0.25), (6, 1, 1, 2)),
            "softcap": self.choose((0.0, 0.5, 3.0, 30.0), (6, 1, 1, 1)),
            "causal": self.choose((None, "top_left", "bottom_right")),
            "window": (left, right) if self.chance(0.3) else None,
            "chunk_size": self.choose((0, 1, 7, 64), (6, 1, 1, 1)),
            "alibi_slopes": (
                self.rng.uniform(0, 0.2, heads) if self.chance(0.2) else None
            ),
            "sinks": self.sinks() if self.chance(0.2) else None,
            "softmax_precision": self.choose(
                (None, "float16", "float32", "float64"), (5, 1, 1, 1)
            ),
            "math_mode": self.choose((None, "reproducible")),
            "return_log_sum_exp": bool(self.chance(0.7)),
        }

    def sinks(self):
        sinks = self.rng.standard_normal(self.query_heads)
        return np.where(self.rng.random(len(sinks)) < 0.2, -np.inf, sinks)

    def indices(self, lengths, keys, batch):
        """Lists of keys of each sequence, shared by the heads or not."""
        count = self.choose((0, 1, 3, 17, 300))
        heads = (self.query_heads,) if self.chance(0.4) else ()
        dtype = self.choose((np.int32, np.int64))
        if batch:
            shape = (*batch, *heads, lengths[0], count)
            return self.rng.integers(-1, max(keys[0], 0), shape, dtype)
        return np.concatenate(
            [
                self.rng.integers(-1, max(most, 0), (n, *heads, count), dtype)
                for n, most in zip(lengths, keys)
            ]
            or [np.zeros((0, *heads, count), dtype)]
        )

    def mask(self, length, keys):
        """Broadcast and padded in every way that is allowed."""
        last = keys
        if keys > 2 and self.chance(0.25):
            last = int(self.rng.integers(2, keys))
        shape = [self.batch, self.query_heads, length, last]
        for axis in range(3):
            if self.chance(0.3):
                shape[axis] = 1
        shape = shape[-self.choose((1, 2, 3, 4)) :]
        attends = self.rng.random(shape) < self.choose((0.2, 0.8, 1.0))
        if len(shape) > 1 and self.chance(0.5):
            # Rows without any key.
            attends &= self.rng.random((*shape[:-1], 1)) < 0.7
        if self.chance(0.4):
            if self.chance(0.3):
                bits = np.packbits(attends, bitorder="little")
                return PackedMask(bits, attends.shape)
            return attends
        if self.chance(0.2):
            return self.rng.integers(-3, 4, shape).astype(self.choose(INTS))
        values = 2 * self.rng.standard_normal(shape)
        return np.where(attends, values, -np.inf).astype(self.choose(FLOATS))

    def padded(self):
        """A case of any layout but ragged."""
        length = self.choose(QUERY_LENGTHS, (1, 4, 2, 2, 2, 2, 2, 2))
        keys = self.choose(KEY_LENGTHS)
        past = self.choose((0, 1, 5, 256)) if self.chance(0.3) else None
        total = keys + (past or 0)
        b, h, g, d, dv = (
            self.batch,
            self.query_heads,
            self.kv_heads,
            self.size,
            self.value_size,
        )
        arguments = self.options() | {
            "query": self.normal(b, h, length, d, dtype=self.type),
            "key": self.normal(b, g, keys, d, dtype=self.type),
            "value": self.normal(b, g, keys, dv, dtype=self.value_type),
            "return_scores": self.choose((None, *reference.STAGES)),
            "return_present": bool(self.chance(0.3)),
        }
        if past is not None:
            arguments["past_key"] = self.normal(b, g, past, d, dtype=self.type)
            arguments["past_value"] = self.normal(
                b, g, past, dv, dtype=self.value_type
            )
        elif self.chance(0.3):
            arguments["valid_lengths"] = self.rng.integers(0, total + 1, b)
        if self.chance(0.5):
            arguments["mask"] = self.mask(length, total)
        if self.chance(0.25):
            arguments["indices"] = self.indices([length], [total], (b,))
        if arguments["sinks"] is None and self.chance(0.2):
            arguments["sinks"] = self.normal(
                b, h, length, dtype=self.choose(FLOATS)
            )
        case = self.case(arguments, total)
        self.poison(arguments)
        self.lay_out(arguments)
        return case

    def ragged(self):
        sequences = self.batch
        lengths = [self.choose(QUERY_LENGTHS) for _ in range(sequences)]
        keys = [self.choose(KEY_LENGTHS) for _ in range(sequences)]
        h, g = self.query_heads, self.kv_heads
        arguments = self.options() | {
            "layout": "ragged",
            "query_starts": [0, *np.cumsum(lengths, dtype=int).tolist()],
            "key_starts": [0, *np.cumsum(keys, dtype=int).tolist()],
            "query": self.normal(sum(lengths), h, self.size, dtype=self.type),
            "key": self.normal(sum(keys), g, self.size, dtype=self.type),
            "value": self.normal(
                sum(keys), g, self.value_size, dtype=self.value_type
            ),
        }
        if self.chance(0.25):
            arguments["indices"] = self.indices(lengths, keys, ())
        if arguments["sinks"] is None and self.chance(0.2):
            arguments["sinks"] = self.normal(
                sum(lengths), h, dtype=self.choose(FLOATS)
            )
        return self.case(arguments, max(keys, default=0))

    def case(self, arguments, keys):
        extra = 0.0
        mask = arguments.get("mask")
        if mask is not None and not isinstance(mask, PackedMask):
            extra += tolerance.largest(mask)
        if arguments["alibi_slopes"] is not None:
            # No key is further away than the longest of both.
            reach = keys + max(QUERY_LENGTHS)
            extra += max(arguments["alibi_slopes"]) * reach
        key = arguments["key"]
        if arguments.get("past_key") is not None:
            key = np.concatenate([arguments["past_key"], key], axis=2)
        return Case(
            arguments,
            tolerance.growth(
                arguments["query"], key, scale=arguments["scale"], extra=extra
            ),
            double=np.float64 in (self.type, self.value_type)
            or arguments["softmax_precision"] == "float64",
        )

    def poison(self, arguments):
        """Puts NaN and infinity where no row looks, or NaN anywhere."""
        if self.chance(0.5):
            return
        biased = reference.compute(
            **{**arguments, "return_scores": "biased"}
        ).scores
        shape = (self.batch, self.kv_heads, -1, *biased.shape[2:])
        if biased.size == 0:
            return
        unseen = (biased.reshape(shape) == -np.inf).all(axis=(2, 3))
        if self.chance(0.2):
            unseen |= self.rng.random(unseen.shape) < 0.1
            bad = np.nan
        else:
            bad = self.choose((np.nan, np.inf, -np.inf))
        past = 0
        if "past_key" in arguments:
            past = arguments["past_key"].shape[2]
            arguments["past_key"][unseen[:, :, :past]] = bad
            arguments["past_value"][unseen[:, :, :past]] = bad
        arguments["key"][unseen[:, :, past:]] = bad
        arguments["value"][unseen[:, :, past:]] = bad

    def lay_out(self, arguments):
        for name in ("query", "key", "value"):
            x = arguments[name]
            if self.layout == "matrix":
                x = x[0, 0]
            elif self.layout in ("packed", "bshd"):
                x = x.transpose(0, 2, 1, 3)
            if self.layout == "packed":
                x = x.reshape(*x.shape[:2], x.shape[2] * x.shape[3])
            arguments[name] = x
        if self.layout == "bshd" or self.chance(0.5):
            arguments["layout"] = self.layout
        if self.layout == "packed" or self.chance(0.2):
            arguments["query_heads"] = self.query_heads
            arguments["kv_heads"] = self.kv_heads


def random_case(seed):
    generator = Generator(seed)
    if generator.layout == "ragged":
        return generator.ragged()
    return generator.padded()
