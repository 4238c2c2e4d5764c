"""Models of many families generate the tokens that they do with eager
attention."""

import pytest
import torch

from attention_client import Client, hf
from hf.small_models import generate, prompt, small_model

_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
_MOE = {
    **_EXPERTS,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
_LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_PER_LAYER = {
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 96,
}
FAMILIES = {
    "apertus": {},
    "arcee": {},
    "cohere2": {"sliding_window": 5},
    "deepseek_v3": {
        "head_dim": 8,
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 2,
    },
    "ernie4_5": {},
    "gemma": {},
    "gemma2": {
        "sliding_window": 5,
        "attn_logit_softcapping": 2.0,
        "query_pre_attn_scalar": 16,
    },
    "gemma3_text": {"sliding_window": 5, "query_pre_attn_scalar": 16},
    # Layers that attend to the keys of others.
    "gemma3n_text": {
        **_PER_LAYER,
        "sliding_window": 5,
        "num_kv_shared_layers": 2,
        "laurel_rank": 8,
        "altup_num_inputs": 2,
        "activation_sparsity_pattern": [0.0] * 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    # Layers of different head sizes.
    "gemma4_text": {**_PER_LAYER, "sliding_window": 5, "global_head_dim": 32},
    "glm4": {},
    "gpt2": {"n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 256},
    "gpt_neox": {},
    # Sinks.
    "gpt_oss": {**_LOCAL_EXPERTS, "sliding_window": 5},
    "granite": {},
    "helium": {},
    "hunyuan_v1_dense": {},
    # Convolutions beside attention.
    "lfm2": {},
    "llama": {},
    "llama4_text": {
        "attention_chunk_size": 6,
        "num_local_experts": 2,
        "intermediate_size_mlp": 96,
    },
    "mimo_v2_flash": {},
    "ministral": {"sliding_window": 5},
    "mistral": {"sliding_window": 5},
    "mixtral": _LOCAL_EXPERTS,
    "nemotron": {},
    "olmo2": {},
    "olmoe": _EXPERTS,
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "persimmon": {},
    "phi": {},
    "phi3": {"sliding_window": 6},
    "qwen2": {
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 2,
    },
    "qwen3": {},
    "qwen3_moe": _MOE,
    # Linear attention beside attention.
    "qwen3_next": {
        **_MOE,
        "linear_num_value_heads": 2,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    },
    "seed_oss": {},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {"sliding_window": 5},
}
# Whose tokens cannot be taken back: layers of different sizes, or with a state.
NOT_CROPPABLE = {"gemma4_text", "mimo_v2_flash", "qwen3_next"}
# Which makes its keys of what the cache keeps, so that no cache but its own
# process's will do.
NOT_KEPT = {"deepseek_v3"}


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
    expected = generate(model, "eager", ids, **options)
    with hf.RemoteCache(remote, model.config) as cache:
        if model.kind in NOT_KEPT:
            with pytest.raises(NotImplementedError, match="keys of layer 0"):
                generate(model, "remote", ids, cache, **options)
            return
        actual = generate(model, "remote", ids, cache, **options)
        assert len(cache.sessions) >= len(actual)
    assert torch.equal(actual, expected)


def test_without_a_cache_in_the_server(model):
    ids = prompt(2)
    expected = generate(model, "eager", ids)
    assert torch.equal(generate(model, "remote", ids), expected)
    assert len(set(expected[0].tolist())) > 9  # It says something.


def test_prompt_lookup(remote, model):
    if model.kind in NOT_KEPT:
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
