"""Answers lines "CASE CORE CALLS" with the milliseconds of each call.

Arguments: the server's address.
"""

import os
import sys
import time

import numpy as np

from attention_client import Client

# Query heads, key/value heads, queries, keys and head size.
SHAPES = {
    "small": (1, 1, 16, 16, 64),
    "dense": (8, 8, 1024, 1024, 64),
    "decode": (32, 8, 1, 8192, 128),
}


def tensors(case):
    heads, kv_heads, queries, keys, size = SHAPES[case]
    random = np.random.default_rng(1)

    def normal(*shape):
        return random.standard_normal(shape, np.float32)

    keys_shape = (1, kv_heads, keys, size)
    return (
        normal(1, heads, queries, size),
        normal(*keys_shape),
        normal(*keys_shape),
    )


def main():
    clients = {}
    for core in ("native", "pure"):
        os.environ["ATTENTION_CLIENT_CORE"] = core
        clients[core] = Client(sys.argv[1])
    cases = {case: tensors(case) for case in SHAPES}
    for line in sys.stdin:
        case, core, calls = line.split()
        times = []
        for _ in range(int(calls)):
            begin = time.perf_counter()
            clients[core].compute(*cases[case])
            times.append((time.perf_counter() - begin) * 1e3)
        print(*times, flush=True)


if __name__ == "__main__":
    main()
