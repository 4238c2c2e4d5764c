"""Real input: the first attention layer of all-MiniLM-L6-v2."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from support import minilm_qkv, reference
from support.tolerance import assert_close, growth, largest

REPOSITORY = Path(__file__).resolve().parents[2]
SENTENCES = (
    minilm_qkv.SENTENCE,
    "The animal didn't cross the street because it was too tired.",
)


@pytest.fixture(scope="module")
def layer():
    return minilm_qkv.FirstLayer()


def check(actual, expected, query, key, value):
    unit = growth(query, key)
    assert_close(actual.output, expected.output, unit=unit * largest(value))
    assert_close(actual.log_sum_exp, expected.log_sum_exp, unit=unit)
    assert_close(actual.scores, expected.scores, unit=unit)


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_sentence(sentence, layer, client):
    qkv = layer.qkv(sentence)
    tokens = len(layer.tokens(sentence))
    assert qkv[0].shape == (1, 12, tokens, 32)
    asked = {"return_log_sum_exp": True, "return_scores": "weights"}
    actual = client.compute(*qkv, **asked)
    check(actual, reference.compute(*qkv, **asked), *qkv)
    np.testing.assert_allclose(actual.scores.sum(axis=-1), 1, rtol=1e-6)


def test_a_padded_batch_gives_each_sentence_its_own_answer(layer, client):
    alone = [layer.qkv(sentence) for sentence in SENTENCES]
    lengths = [qkv[0].shape[2] for qkv in alone]
    padded = np.full((3, 2, 12, max(lengths), 32), np.nan, np.float32)
    for b, qkv in enumerate(alone):
        for tensor, of_one in zip(padded, qkv, strict=True):
            tensor[b, :, : lengths[b]] = of_one
    batch = client.compute(*padded, valid_lengths=lengths)
    for b, qkv in enumerate(alone):
        # The same bits: an answer does not depend on what else is in the call.
        np.testing.assert_array_equal(
            batch.output[b, :, : lengths[b]], client.compute(*qkv).output[0]
        )


def test_the_example_file_is_what_its_program_writes():
    stored = load_file(REPOSITORY / "examples/minilm_layer0.safetensors")
    tensors, _ = minilm_qkv.sample()
    assert stored.keys() == tensors.keys()
    for name, tensor in tensors.items():
        # Up to the order in which numpy's matrix product sums.
        np.testing.assert_allclose(stored[name], tensor, rtol=1e-6, atol=1e-6)
