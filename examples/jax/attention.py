"""Attention on a server, as a function of JAX: under jit and vmap too.

attention_server &
python examples/jax/attention.py 127.0.0.1:50051
"""

import functools
import sys

import jax
import numpy as np

from attention_client import Client


def make_attention(client):
    """attention(query, key, value) -> output, which `client` computes.

    query (..., Hq, S, D), key (..., Hkv, T, D), value (..., Hkv, T, Dv), of one
    type; output (..., Hq, S, Dv) of the same. Hq is a multiple of Hkv. With
    causal=True the last query sees all keys. scale=None is 1 / sqrt(D).
    """

    def compute(query, key, value, *, causal, scale):
        query, key, value = map(np.asarray, (query, key, value))
        # vmap puts its axes in front of the others. Those that it does not map
        # have length 1 there.
        leading = np.broadcast_shapes(
            query.shape[:-3], key.shape[:-3], value.shape[:-3]
        )
        rows = [
            np.broadcast_to(x, leading + x.shape[-3:]).reshape(
                -1, *x.shape[-3:]
            )
            for x in (query, key, value)
        ]
        result = client.compute(
            *rows,
            layout="bhsd",
            causal="bottom_right" if causal else None,
            scale=scale,
        )
        shape = leading + query.shape[-3:-1] + value.shape[-1:]
        return np.asarray(result.output).reshape(shape)

    # nondiff_argnums: how to compute, rather than what of.
    @functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
    def call(query, key, value, causal, scale):
        shape = query.shape[:-1] + value.shape[-1:]
        return jax.pure_callback(
            functools.partial(compute, causal=causal, scale=scale),
            jax.ShapeDtypeStruct(shape, query.dtype),
            query,
            key,
            value,
            vmap_method="expand_dims",
        )

    @call.defjvp
    def refuse(causal, scale, primals, tangents):
        raise NotImplementedError(
            "gradients: none come back from the server: wrap query, key and "
            "value in jax.lax.stop_gradient, or use another attention"
        )

    def attention(query, key, value, *, causal=False, scale=None):
        return call(query, key, value, causal, scale)

    return attention


def main(target):
    with Client(target, timeout=10) as client:
        attention = make_attention(client)
        query, key, value = jax.random.normal(jax.random.key(0), (3, 2, 4, 8))
        print(jax.jit(attention)(query, key, value).shape)


if __name__ == "__main__":
    main(sys.argv[1])
