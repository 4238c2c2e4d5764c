"""Masks that options say are not sent."""

import itertools

import ml_dtypes
import numpy as np
import pytest
import torch

from attention_client import StepItem, hf
from attention_client.hf_masks import options_for
from hf.small_models import generate, prompt, small_model


def seen_by(options, queries, keys):
    """What the service lets queries see, written out; the last query stands at
    the last key."""
    position = np.arange(keys - queries, keys)[:, None]
    key = np.arange(keys)[None]
    seen = np.ones((queries, keys), bool)
    if "causal" in options:
        seen &= key <= position
    left, right = options.get("window", (None, None))
    if left is not None:
        seen &= key >= position - left
    if right is not None:
        seen &= key <= position + right
    if "chunk_size" in options:
        size = options["chunk_size"]
        seen &= key // size == position // size
    return seen


def rules(queries, keys):
    """Options, more than one of which may hide the same."""
    causal = {"causal": "bottom_right"}
    yield {}
    yield causal
    for size in range(1, keys + 1):
        yield {**causal, "chunk_size": size}
        yield {**causal, "window": (size - 1, None)}
    if queries == keys:
        for sides in itertools.product(range(keys), repeat=2):
            yield {"window": sides}


def written(seen, dtype=np.float32, hidden=None):
    """As transformers writes it, (1, 1, S, T)."""
    if dtype == bool:
        return seen[None, None]
    if hidden is None:
        hidden = ml_dtypes.finfo(dtype).min
    return np.where(seen, 0, hidden).astype(dtype)[None, None]


@pytest.mark.parametrize("keys", [1, 2, 3, 7, 12])
def test_options_hide_what_the_mask_hides(keys):
    for queries in range(1, keys + 1):
        for rule in rules(queries, keys):
            seen = seen_by(rule, queries, keys)
            found = options_for(written(seen))
            assert found is not None, (rule, queries)
            assert np.array_equal(seen_by(found, queries, keys), seen)


@pytest.mark.parametrize("shape", [(1, 4), (2, 3), (3, 3), (2, 5), (4, 3)])
def test_other_masks_are_no_options(shape):
    """Of all that there are."""
    wanted = set()
    if shape[0] <= shape[1]:
        wanted = {seen_by(rule, *shape).tobytes() for rule in rules(*shape)}
    found = set()
    for bits in itertools.product([False, True], repeat=shape[0] * shape[1]):
        seen = np.array(bits).reshape(shape)
        if options_for(written(seen, bool)) is not None:
            found.add(seen.tobytes())
    assert found == wanted


@pytest.mark.parametrize(
    "dtype", [bool, np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
)
def test_masks_of_all_types(dtype):
    seen = seen_by({"causal": "bottom_right", "window": (2, None)}, 5, 9)
    expected = {"causal": "bottom_right", "window": (2, None)}
    assert options_for(written(seen, dtype)) == expected
    if dtype is not bool:
        assert options_for(written(seen, dtype, -np.inf)) == expected


def test_masks_that_add_something():
    mask = written(seen_by({"causal": "bottom_right"}, 5, 5))
    for value in (0.5, -1e4, np.inf, np.nan):
        mask[0, 0, 2, 1] = value
        assert options_for(mask) is None


def test_rows_of_a_batch_that_see_other_keys():
    seen = written(seen_by({"causal": "bottom_right"}, 4, 4), bool)
    padded = seen & (np.arange(4) > 0)
    assert options_for(np.concatenate([seen, seen])) is not None
    assert options_for(np.concatenate([seen, padded])) is None
    assert options_for(np.concatenate([padded, seen], axis=1)) is None


@pytest.mark.parametrize("begin", [256, 512])
def test_masks_that_begin_later(begin):
    """Keys before the first column stay hidden."""
    keys = begin + 40
    for rule in (
        {"causal": "bottom_right", "window": (9, None)},
        {"causal": "bottom_right", "chunk_size": 12},
    ):
        seen = seen_by(rule, 24, keys)
        assert not seen[:, :begin].any()
        found = options_for(written(seen[:, begin:]), begin)
        assert np.array_equal(seen_by(found, 24, keys), seen)
    assert options_for(written(np.ones((2, 8), bool)), begin) is None
    assert options_for(written(np.tri(8, 9, dtype=bool)), begin) is None


@pytest.fixture
def masks(remote, monkeypatch):
    """A list that grows with each mask that is sent."""
    sent = []
    compute, step = type(remote).compute, type(remote).step

    def with_mask(self, *tensors, mask=None, **others):
        sent.extend([] if mask is None else [mask])
        return compute(self, *tensors, mask=mask, **others)

    def with_masks(self, items):
        assert all(isinstance(item, StepItem) for item in items)
        sent.extend(item.mask for item in items if item.mask is not None)
        return step(self, items)

    monkeypatch.setattr(type(remote), "compute", with_mask)
    monkeypatch.setattr(type(remote), "step", with_masks)
    return sent


LOCAL = {
    "mistral": {"sliding_window": 5},
    "gemma3_text": {"sliding_window": 5, "query_pre_attn_scalar": 16},
    "llama4_text": {
        "attention_chunk_size": 6,
        "intermediate_size_mlp": 96,
        "num_local_experts": 2,
    },
}


@pytest.mark.parametrize("kind", LOCAL)
@pytest.mark.parametrize("cached", [False, True])
def test_no_mask_is_sent(remote, none_left, masks, kind, cached, monkeypatch):
    model = small_model(kind, **LOCAL[kind])
    ids = prompt(2, 40)

    def tokens(**options):
        if not cached:
            return generate(model, "remote", ids, **options)
        with hf.RemoteCache(remote, model.config) as cache:
            return generate(model, "remote", ids, cache, **options)

    actual = tokens()
    assert masks == []
    padded = torch.ones_like(ids)
    padded[0, :3] = 0
    tokens(attention_mask=padded)
    assert masks != []
    monkeypatch.setattr(hf.hf_masks, "options_for", lambda *_: None)
    assert torch.equal(tokens(), actual)


def test_the_bits_are_those_of_the_mask(remote):
    generator = np.random.default_rng(1)
    query, key, value = (
        generator.standard_normal((2, 2, 600, 8), np.float32) for _ in "qkv"
    )
    for rule in (
        {"causal": "bottom_right"},
        {"causal": "bottom_right", "window": (99, None)},
        {"causal": "bottom_right", "chunk_size": 128},
        {"window": (40, 300)},
        {},
    ):
        for queries in (600,) if "causal" not in rule else (600, 7):
            mask = written(seen_by(rule, queries, 600))
            options = options_for(mask)
            some = query[:, :, :queries]
            expected = remote.compute(some, key, value, mask=mask)
            actual = remote.compute(some, key, value, **options)
            assert np.array_equal(actual.output, expected.output), rule
