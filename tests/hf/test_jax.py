"""examples/jax: attention as a function of JAX."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.jax.attention import make_attention

EXAMPLE = Path(__file__).parents[2] / "examples/jax/attention.py"


@pytest.fixture(scope="module")
def attention(client):
    return make_attention(client)


def random(*shape, dtype=jnp.float32, seed=0):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def reference(query, key, value, *, causal=False, scale=None):
    """In double precision."""
    q, k, v = (np.asarray(x, np.float64) for x in (query, key, value))
    k, v = (np.repeat(x, q.shape[-3] // k.shape[-3], axis=-3) for x in (k, v))
    scores = q @ np.swapaxes(k, -1, -2) * (scale or q.shape[-1] ** -0.5)
    if causal:
        scores = np.where(np.tri(*scores.shape[-2:]), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    output = weights / weights.sum(-1, keepdims=True) @ v
    return output.astype(query.dtype)


def assert_close(actual, expected, tolerance=1e-5):
    assert actual.dtype == expected.dtype
    np.testing.assert_allclose(
        np.asarray(actual, np.float32),
        np.asarray(expected, np.float32),
        rtol=tolerance,
        atol=tolerance,
    )


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(jnp.float32, 1e-5), (jnp.bfloat16, 3e-2), (jnp.float16, 3e-3)],
)
@pytest.mark.parametrize("causal", [False, True])
def test_under_jit(attention, dtype, tolerance, causal):
    query = random(2, 4, 5, 8, dtype=dtype)
    key = random(2, 2, 5, 8, dtype=dtype, seed=1)
    value = random(2, 2, 5, 8, dtype=dtype, seed=2)
    jitted = jax.jit(attention, static_argnames=("causal", "scale"))
    for options in ({"causal": causal}, {"causal": causal, "scale": 0.5}):
        assert_close(
            jitted(query, key, value, **options),
            reference(query, key, value, **options),
            tolerance,
        )


def test_under_vmap(attention, client, monkeypatch):
    query, key, value = (random(3, 2, 4, 5, 8, seed=i) for i in range(3))
    expected = np.stack(
        [reference(*row) for row in zip(query, key, value, strict=True)]
    )
    calls = []
    compute = type(client).compute
    monkeypatch.setattr(
        type(client),
        "compute",
        lambda *args, **others: calls.append(1) or compute(*args, **others),
    )
    mapped = jax.jit(jax.vmap(attention))
    assert_close(mapped(query, key, value), expected)
    assert len(calls) == 1
    # Keys that all share, and another axis.
    shared = jax.vmap(attention, in_axes=(1, None, None), out_axes=1)
    swapped = jnp.swapaxes(query, 0, 1)
    assert_close(
        shared(swapped, key[0], value[0]),
        np.stack([reference(q, key[0], value[0]) for q in query], axis=1),
    )
    twice = jax.vmap(jax.vmap(attention, in_axes=(0, None, None)))
    assert_close(
        twice(query, key[:, 0], value[:, 0]),
        np.stack(
            [
                np.stack([reference(q, k, v) for q in row])
                for row, k, v in zip(query, key[:, 0], value[:, 0], strict=True)
            ]
        ),
    )


def test_gradients_are_refused(attention):
    query = random(2, 3, 4)
    for differentiated in (jax.grad, lambda f: jax.jit(jax.grad(f))):
        with pytest.raises(NotImplementedError, match="gradients: none come"):
            differentiated(lambda q: attention(q, query, query).sum())(query)
    constant = attention(query, query, query)

    def stopped(q):
        return (q * attention(*[jax.lax.stop_gradient(q)] * 3)).sum()

    assert_close(jax.grad(stopped)(query), constant)


def test_the_program(server_address):
    done = subprocess.run(
        [sys.executable, EXAMPLE, server_address],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "(2, 4, 8)\n"
