"""What generate() and users do with a RemoteCache, and what is refused."""

import copy

import pytest
import torch
import transformers

from attention_client import NotFound, hf
from hf.small_models import generate, prompt, small_model


@pytest.fixture
def llama(remote, none_left):
    return small_model("llama")


@pytest.fixture
def cache(remote, llama):
    with hf.RemoteCache(remote, llama.config) as made:
        yield made


def test_a_session_for_each_row(llama, cache):
    assert cache.get_seq_length() == 0
    generate(llama, "remote", prompt(3), cache)
    # The last token's keys are not needed.
    assert [session.length for session in cache.sessions] == [24] * 3
    assert cache.get_seq_length() == 24
    assert {session.config.layers for session in cache.sessions} == {4}


def test_a_step_for_each_layer_and_pass(llama, cache, remote, monkeypatch):
    sent = []
    original = type(remote).step
    monkeypatch.setattr(
        type(remote),
        "step",
        lambda self, items: sent.append(len(items)) or original(self, items),
    )
    generate(llama, "remote", prompt(3), cache, max_new_tokens=5)
    assert sent == [3] * 4 * 5


def test_an_assistant_model(llama, cache):
    assistant = small_model("llama", num_hidden_layers=2)
    expected = generate(llama, "eager", prompt())
    actual = generate(
        llama, "remote", prompt(), cache, assistant_model=assistant
    )
    assert torch.equal(actual, expected)


def test_a_prompt_in_two_parts(llama, cache):
    ids = prompt(2, 12)
    expected = generate(llama, "eager", ids)
    llama.set_attn_implementation("remote")
    with torch.no_grad():
        llama(ids[:, :5], cache=cache)
    actual = generate(llama, "remote", ids, cache)
    assert torch.equal(actual, expected)


def test_a_copy_shares_what_came_before(llama, cache):
    ids = prompt(2, 12)
    llama.set_attn_implementation("remote")
    with torch.no_grad():
        llama(ids[:, :8], cache=cache)
    for i in range(2):
        longer = torch.cat([ids, prompt(2, 3 + i)], dim=1)
        with copy.deepcopy(cache) as branch:
            assert branch.get_seq_length() == 8
            actual = generate(llama, "remote", longer, branch)
        assert torch.equal(actual, generate(llama, "eager", longer))
    assert cache.get_seq_length() == 8
    assert [session.length for session in cache.sessions] == [8, 8]


def test_rows_are_repeated_and_selected(llama, cache):
    ids = prompt(2, 8)
    llama.set_attn_implementation("remote")
    with torch.no_grad():
        llama(ids, cache=cache)
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([3, 0, 0]))
        cache.batch_select_indices(torch.tensor([True, True, False]))
        cache.reorder_cache(torch.tensor([1, 1]))
        assert len(cache.sessions) == 2
        following = prompt(2, 1)
        actual = llama(following, cache=cache).logits[:, -1]
        llama.set_attn_implementation("eager")
        both = torch.cat([ids[:1].repeat(2, 1), following], dim=1)
        expected = llama(both).logits[:, -1]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_a_reset_cache_is_empty(llama, cache):
    first = generate(llama, "remote", prompt(2), cache)
    cache.reset()
    assert cache.sessions == []
    assert torch.equal(generate(llama, "remote", prompt(2), cache), first)


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_an_encoder_and_a_decoder(remote, none_left, kind):
    sizes = (
        {"d_model": 64, "decoder_layers": 3, "encoder_layers": 2}
        if kind == "bart"
        else {
            "d_model": 64,
            "d_kv": 16,
            "d_ff": 96,
            "num_heads": 4,
            "num_layers": 2,
            "num_decoder_layers": 3,
        }
    )
    model = small_model(
        kind,
        transformers.AutoModelForSeq2SeqLM,
        init_std=0.4,
        decoder_start_token_id=1,
        forced_eos_token_id=None,
        **sizes,
    )
    ids = prompt(2)
    padded = torch.ones_like(ids)
    padded[0, :3] = 0
    for options in ({"do_sample": True}, {"num_beams": 2}):
        options["attention_mask"] = padded
        expected = generate(model, "eager", ids, **options)
        with hf.RemoteCache(remote, model.config) as own:
            both = transformers.EncoderDecoderCache(
                own, transformers.DynamicCache()
            )
            actual = generate(model, "remote", ids, both, **options)
            assert own.sessions
        assert torch.equal(actual, expected)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3},
        {"prompt_lookup_num_tokens": 4},
        {"do_sample": True, "num_return_sequences": 2},
    ],
    ids=lambda options: next(iter(options), "greedy"),
)
@pytest.mark.parametrize("kind", ["mistral", "gemma2", "llama4_text"])
def test_windows_keep_what_they_cover(remote, none_left, kind, options):
    settings = {
        "mistral": {},
        "gemma2": {"attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 16},
        "llama4_text": {
            "attention_chunk_size": 32,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 96,
        },
    }[kind]
    model = small_model(
        kind, sliding_window=32, max_position_embeddings=2048, **settings
    )
    rows = 1 if "prompt_lookup_num_tokens" in options else 2
    ids = prompt(rows, 600)
    padded = torch.ones_like(ids)
    padded[0, :3] = 0
    options = {"attention_mask": padded, "max_new_tokens": 24, **options}
    expected = generate(model, "eager", ids, **options)
    with hf.RemoteCache(remote, model.config, rollback_tokens=8) as cache:
        actual = generate(model, "remote", ids, cache, **options)
        windows = cache.sessions[0].config.retain_window
        assert 32 in windows
        infos = remote.list_sessions()
        for info in infos:
            # 600 - (32 + 8) is in the third page.
            assert info.first_tokens == tuple(512 if w else 0 for w in windows)
    assert torch.equal(actual, expected)


def test_windows_keep_all_where_that_is_asked_for(remote, none_left):
    model = small_model("mistral", sliding_window=5)
    with hf.RemoteCache(remote, model.config, rollback_tokens=None) as cache:
        actual = generate(model, "remote", prompt(), cache)
        assert cache.sessions[0].config.retain_window == ()
    assert torch.equal(actual, generate(model, "eager", prompt()))


def test_an_encoder(remote):
    model = small_model("bert", transformers.AutoModel)
    mask = torch.ones(2, 9, dtype=torch.int64)
    for some in (mask, mask.tril(6)):
        states = []
        for implementation in ("eager", "remote"):
            model.set_attn_implementation(implementation)
            with torch.no_grad():
                found = model(prompt(2), attention_mask=some).last_hidden_state
            states.append(found[some.bool()])
        torch.testing.assert_close(*states, rtol=1e-4, atol=1e-4)


# What is refused.


def test_an_expired_session_is_told(llama, cache, remote):
    generate(llama, "remote", prompt(2), cache)
    remote.get_session(cache.sessions[1].id).delete()
    with pytest.raises(NotFound):
        generate(llama, "remote", prompt(2, 30), cache)


def test_another_batch(llama, cache):
    generate(llama, "remote", prompt(2), cache)
    with pytest.raises(ValueError, match="batch of 3, but the cache holds 2"):
        generate(llama, "remote", prompt(3, 30), cache)


def test_a_pass_that_fails_spoils_the_cache(llama, cache, remote, monkeypatch):
    expected = generate(llama, "remote", prompt(2), cache)
    steps = []

    def step(items, step=remote.step):
        steps.append(items)
        if len(steps) == 2:
            raise ZeroDivisionError
        return step(items)

    monkeypatch.setattr(remote, "step", step)
    with pytest.raises(ZeroDivisionError):
        generate(llama, "remote", prompt(2, 30), cache)
    for use in (
        lambda: generate(llama, "remote", prompt(2, 30), cache),
        lambda: cache.crop(-1),
        lambda: cache.reorder_cache(torch.tensor([1, 0])),
        lambda: copy.deepcopy(cache),
    ):
        with pytest.raises(RuntimeError, match="forward pass .* has failed"):
            use()
    cache.reset()
    assert torch.equal(generate(llama, "remote", prompt(2), cache), expected)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_another_attention(llama, cache, implementation):
    with pytest.raises(NotImplementedError, match="keys of layer 0"):
        generate(llama, implementation, prompt(), cache)


def test_gradients(llama, cache):
    llama.set_attn_implementation("remote")
    with pytest.raises(NotImplementedError, match="gradients"):
        llama(prompt())
    with pytest.raises(NotImplementedError, match="gradients"):
        llama(prompt(), cache=cache)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dropout": 0.1}, r"dropout: got 0\.1"),
        ({"output_attentions": True}, "output_attentions"),
        ({"block_indices": torch.zeros(1)}, "block_indices: the model's"),
        ({"cu_seq_lens_q": torch.zeros(1)}, "cu_seq_lens_q: the model's"),
        ({"s_aux": torch.zeros(1, 4, 5)}, "s_aux: got sinks of shape"),
        ({"sinks": torch.zeros(1, 4, 5)}, "sinks: got sinks of shape"),
        ({"s_aux": torch.zeros(4), "sinks": torch.zeros(4)}, "beside s_aux"),
    ],
)
def test_what_the_service_does_not_have(remote, llama, arguments, words):
    attention = transformers.AttentionInterface()["remote"]
    query = torch.zeros(1, 4, 3, 16)
    with pytest.raises(NotImplementedError, match=words):
        attention(llama, query, query, query, None, **arguments)
    unused = dict.fromkeys(arguments)
    output, weights = attention(llama, query, query, query, None, **unused)
    assert output.shape == (1, 3, 4, 16)
    assert weights is None


@pytest.mark.parametrize("per_head", [False, True])
def test_indices_and_sinks_of_rows(remote, llama, cache, per_head):
    attention = transformers.AttentionInterface()["remote"]
    torch.manual_seed(1)
    query, key, value = (torch.randn(2, heads, 6, 16) for heads in (4, 2, 2))
    lists = (2, 4, 6, 3) if per_head else (2, 6, 3)
    indices = torch.randint(-1, 6, lists)
    sinks = torch.randn(2, 4, 6)
    name = "sinks" if per_head else "s_aux"
    options = {"indices": indices, name: sinks, "is_causal": False}
    seen = (indices[..., None] == torch.arange(6)).any(-2)
    seen = seen if per_head else seen[:, None]
    scores = query @ key.repeat_interleave(2, 1).transpose(2, 3) / 4
    scores = scores.masked_fill(~seen, float("-inf"))
    joined = torch.cat([scores, sinks[..., None]], -1)
    weights = joined.softmax(-1)[..., :-1]
    wanted = (weights @ value.repeat_interleave(2, 1)).transpose(1, 2)
    output, _ = attention(llama, query, key, value, None, **options)
    torch.testing.assert_close(output, wanted)
    kept = cache.update(key, value, 0)
    output, _ = attention(llama, query, *kept, None, **options)
    torch.testing.assert_close(output, wanted)


def test_masks_of_other_lengths(remote, llama, cache):
    attention = transformers.AttentionInterface()["remote"]
    query = torch.zeros(1, 4, 3, 16)
    longer = torch.zeros(1, 4, 5, 16)
    with pytest.raises(NotImplementedError, match="attention_mask: got one"):
        attention(llama, query, longer, longer, torch.zeros(1, 1, 3, 4))
    with pytest.raises(NotImplementedError, match="attention_mask: got none"):
        attention(llama, query, longer, longer, None)
    key, value = cache.update(query[:, :2], query[:, :2], 0)
    with pytest.raises(NotImplementedError, match="attention_mask: got one"):
        attention(llama, query, key, value, torch.zeros(1, 1, 3, 4))


def test_masks_that_see_past_a_window(remote, none_left):
    model = small_model("mistral", sliding_window=2)
    attention = transformers.AttentionInterface()["remote"]
    query = torch.zeros(1, 4, 3, 16)
    for row, column in ((2, 0), (0, 1)):
        mask = torch.full((1, 1, 3, 3), torch.finfo(torch.float32).min)
        mask[0, 0] += torch.eye(3) * -mask[0, 0, 0, 0]
        with hf.RemoteCache(remote, model.config) as cache:
            key, value = cache.update(query[:, :2], query[:, :2], 0)
            attention(model, query, key, value, mask)
            mask[0, 0, row, column] = 0
            key, value = cache.update(query[:, :2], query[:, :2], 1)
            with pytest.raises(NotImplementedError, match="window of 2"):
                attention(model, query, key, value, mask)


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        ("deepseek_v4", "compressed_sparse_attention"),
        ("falcon_h1", "hybrid"),
        ("glm_moe_dsa", "indexed_attention"),
    ],
)
def test_layers_that_keep_something_else(remote, kind, layers):
    config = transformers.AutoConfig.for_model(kind)
    with pytest.raises(NotImplementedError, match=f"layers of type .*{layers}"):
        hf.RemoteCache(remote, config)
