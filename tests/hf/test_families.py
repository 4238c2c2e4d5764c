"""Models of many families generate the tokens that they do with eager
attention."""

import pytest
import torch

from attention_client import Client, hf
from hf.architectures import (
    FAMILIES,
    NOT_ASKING,
    NOT_CROPPABLE,
    REFUSED_CACHE,
)
from hf.small_models import generate, prompt, small_model


@pytest.fixture(params=FAMILIES)
def model(request, remote, none_left):
    made = small_model(request.param, **FAMILIES[request.param])
    made.kind = request.param
    return made


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_sample": True, "num_return_sequences": 2},
        {"num_beams": 3},
    ],
    ids=["greedy", "sampling", "beams"],
)
def test_a_padded_batch(remote, model, options):
    ids = prompt(2)
    options["attention_mask"] = torch.ones_like(ids)
    options["attention_mask"][0, :3] = 0
    if model.kind in REFUSED_CACHE:
        options.pop("num_beams", None)  # Not with MPT, whatever the cache.
        with (
            pytest.raises(
                (NotImplementedError, ValueError),
                match=REFUSED_CACHE[model.kind],
            ),
            hf.RemoteCache(remote, model.config) as cache,
        ):
            generate(model, "remote", ids, cache, **options)
        return
    expected = generate(model, "eager", ids, **options)
    with hf.RemoteCache(remote, model.config) as cache:
        actual = generate(model, "remote", ids, cache, **options)
        assert len(cache.sessions) >= len(actual)
    assert torch.equal(actual, expected)


def test_without_a_cache_in_the_server(model, computed):
    ids = prompt(2)
    expected = generate(model, "eager", ids)
    assert torch.equal(generate(model, "remote", ids), expected)
    assert len(set(expected[0].tolist())) > 9  # It says something.
    assert bool(computed) == (model.kind not in NOT_ASKING)


def test_prompt_lookup(remote, model):
    if model.kind in REFUSED_CACHE:
        return
    ids = prompt().repeat(1, 3)
    options = {"prompt_lookup_num_tokens": 3}
    with hf.RemoteCache(remote, model.config) as cache:
        if model.kind in NOT_CROPPABLE:
            words = "that can be cropped|not supported with stateful models"
            with pytest.raises(ValueError, match=words):
                generate(model, "remote", ids, cache, **options)
            return
        actual = generate(model, "remote", ids, cache, **options)
    assert torch.equal(actual, generate(model, "eager", ids, **options))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(remote, none_left, dtype):
    """Close to eager attention, which rounds more often; not more can be
    asked."""
    model = small_model("llama").to(dtype)
    ids = prompt(2)
    logits = {}
    for implementation in ("eager", "remote"):
        model.set_attn_implementation(implementation)
        with torch.no_grad(), hf.RemoteCache(remote, model.config) as cache:
            logits[implementation] = model(
                ids, cache=cache if implementation == "remote" else None
            ).logits
    assert logits["remote"].dtype == dtype
    exact = small_model("llama").to(dtype).double()
    with torch.no_grad():
        expected = exact(ids).logits
    errors = {
        name: (found.double() - expected).abs().max()
        for name, found in logits.items()
    }
    assert errors["remote"] <= 2 * errors["eager"]


def test_an_address_instead_of_a_client(server_address, remote):
    model = small_model("llama")
    hf.register(server_address, "another")
    expected = generate(model, "eager", prompt())
    with hf.RemoteCache(server_address, model.config) as cache:
        actual = generate(model, "another", prompt(), cache)
    assert torch.equal(actual, expected)
    with Client(server_address) as client:
        assert client.list_sessions() == []
