"""Under torch.compile models do as they do without, and are refused the same."""

import pytest
import torch
import transformers
from torch._dynamo.testing import CompileCounter
from torch.library import opcheck

from attention_client import hf
from hf.small_models import prompt, small_model


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def llama(remote, none_left):
    return small_model("llama", num_hidden_layers=2)


def logits_of(model, implementation, ids, compiled=None, **options):
    model.set_attn_implementation(implementation)
    called = model if compiled is None else compiled
    with torch.no_grad():
        return called(ids, **{"use_cache": False, **options}).logits


def padded(ids):
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    return mask


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def compiled_to(graphs, model, **options):
    """Adds the model's graphs to a list."""
    return torch.compile(
        model,
        backend=lambda graph, _: graphs.append(graph) or graph.forward,
        **options,
    )


def operators_of(graph):
    calls = [str(node.target) for node in graph.graph.nodes]
    return calls.count("attention_client.attend")


def test_one_graph_with_an_operator_for_each_layer(llama):
    graphs = []
    compiled = compiled_to(graphs, llama, fullgraph=True)
    ids = prompt(2)
    actual = logits_of(llama, "remote", ids, compiled)
    assert_close(actual, logits_of(llama, "eager", ids))
    assert [operators_of(graph) for graph in graphs] == [2]


def test_inductor(remote):
    model = small_model("llama", num_hidden_layers=1)
    compiled = torch.compile(model, fullgraph=True)
    ids = prompt(2)
    actual = logits_of(model, "remote", ids, compiled)
    assert_close(actual, logits_of(model, "eager", ids))


def test_padding_windows_softcap_and_a_cache_of_this_process(remote):
    model = small_model(
        "gemma2",
        num_hidden_layers=2,  # One of each kind.
        sliding_window=5,
        attn_logit_softcapping=2.0,
        query_pre_attn_scalar=16,
    )
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    ids = prompt(2)
    for options in ({"attention_mask": padded(ids)}, {"use_cache": True}):
        seen = options.get("attention_mask", torch.ones_like(ids)).bool()
        assert_close(
            logits_of(model, "remote", ids, compiled, **options)[seen],
            logits_of(model, "eager", ids, **options)[seen],
        )


def test_sinks(remote):
    model = small_model(
        "gpt_oss",
        num_hidden_layers=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=5,
    )
    compiled = torch.compile(model, backend="aot_eager")
    ids = prompt(2)
    assert_close(
        logits_of(model, "remote", ids, compiled),
        logits_of(model, "eager", ids),
    )


@pytest.mark.parametrize("marked", [True, False])
def test_other_lengths_are_not_compiled_again(llama, marked):
    counter = CompileCounter()
    compiled = torch.compile(llama, fullgraph=True, backend=counter)
    for length in (9, 10, 11, 23):
        ids = prompt(2, length)
        if marked:
            torch._dynamo.mark_dynamic(ids, 1)
        actual = logits_of(llama, "remote", ids, compiled)
        assert_close(actual, logits_of(llama, "eager", ids))
    # The second length makes PyTorch take it for one that changes.
    assert counter.frame_count == (1 if marked else 2)


def test_a_cache_in_the_server_breaks_the_graph(remote, none_left):
    llama = small_model("llama", num_hidden_layers=1)
    ids = prompt(2, 12)
    graphs = []
    compiled = compiled_to(graphs, llama)
    with hf.RemoteCache(remote, llama.config) as cache:
        for part in (ids[:, :11], ids[:, 11:]):
            found = logits_of(
                llama, "remote", part, compiled, cache=cache, use_cache=True
            )
        assert cache.get_seq_length() == 12
    assert len(graphs) > 1
    assert not any(operators_of(graph) for graph in graphs)
    assert_close(found, logits_of(llama, "eager", ids)[:, 11:])
    whole = torch.compile(llama, fullgraph=True, backend="eager")
    with (
        hf.RemoteCache(remote, llama.config) as cache,
        pytest.raises(torch._dynamo.exc.Unsupported, match=r"RemoteLayer\.upd"),
    ):
        logits_of(llama, "remote", ids, whole, cache=cache, use_cache=True)


@pytest.mark.parametrize("queries", [1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_operator_is_as_its_fake_says(remote, queries, dtype):
    query = torch.randn(2, 4, queries, 16, dtype=dtype)
    key = torch.randn(2, 2, 5, 16, dtype=dtype)
    value = torch.randn(2, 2, 5, 8, dtype=dtype)
    mask = torch.zeros(1, 1, queries, 5, dtype=dtype)
    plain = (True, None, None, 0.0, "remote")
    for arguments in (
        (query, key, value, mask, [], "", "", *plain),
        (query, key, value, mask, [torch.randn(4)], "s_aux", "", *plain),
        (query.transpose(1, 2).contiguous().transpose(1, 2), key, value)
        + (mask, [], "", "sliding_window", *plain),
    ):
        opcheck(torch.ops.attention_client.attend.default, arguments)


@pytest.mark.parametrize("kept", [False, True])
def test_autocast(llama, remote, kept):
    """Close to eager attention; not more can be asked."""
    ids = prompt(2)
    exact = logits_of(llama, "eager", ids)
    compiled = torch.compile(llama, backend="aot_eager")
    errors = {}
    with torch.autocast("cpu", torch.bfloat16):
        for implementation in ("eager", "remote"):
            found = [logits_of(llama, implementation, ids)]
            if implementation == "remote" and kept:
                with hf.RemoteCache(remote, llama.config) as cache:
                    found = [logits_of(llama, "remote", ids, cache=cache)]
            elif implementation == "remote":
                found.append(logits_of(llama, "remote", ids, compiled))
            errors[implementation] = max(
                (each - exact).abs().max() for each in found
            )
    assert 0 < errors["remote"] <= 2 * errors["eager"]


@pytest.mark.parametrize("is_compiled", [False, True])
def test_autocast_of_several_types(remote, llama, is_compiled):
    """As they come where rotary embeddings are made in float32."""
    attention = transformers.AttentionInterface()["remote"]
    if is_compiled:
        attention = torch.compile(attention, fullgraph=True, backend="eager")
    query, key = torch.randn(2, 1, 4, 3, 16)
    value = key.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = attention(llama, query, key, value, None)
        expected = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True
        ).transpose(1, 2)
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
    double = query.double()
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = attention(llama, double, double, double, None)
    assert found.dtype == torch.float64


# What is refused.


# PyTorch's own, while it prepares to fail.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_gradients(remote):
    llama = small_model("llama", num_hidden_layers=1)
    llama.set_attn_implementation("remote")
    for whole in (True, False):
        compiled = torch.compile(llama, fullgraph=whole, backend="aot_eager")
        with pytest.raises(Exception, match="gradients: none come back"):
            compiled(prompt(), use_cache=False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dropout": 0.1}, r"dropout: got 0\.1"),
        ({"output_attentions": True}, "output_attentions"),
        ({"indices_of_another": torch.zeros(1)}, "indices_of_another: the"),
        ({"max_length_q": 3}, "max_length_q: the model's attention"),
        ({"max_length_q": False}, "max_length_q: the model's attention"),
    ],
)
def test_what_the_service_does_not_have(remote, llama, arguments, words):
    attention = transformers.AttentionInterface()["remote"]
    query = torch.zeros(1, 4, 3, 16)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def attended(**options):
        return attention(llama, query, query, query, None, **options)[0]

    with pytest.raises(NotImplementedError, match=words):
        attended(**arguments)
    # What says nothing of attention may be anything.
    harmless = {"position_ids": torch.zeros(1), "use_cache": True}
    unused = dict.fromkeys(arguments) | {"dropout": 0.0}
    assert attended(**unused, **harmless).shape == (1, 3, 4, 16)
