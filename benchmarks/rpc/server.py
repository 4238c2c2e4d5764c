"""A server program: python -m benchmarks.rpc.server PEER ATTENTION

PEER is a module of this folder whose serve(attend, listening) serves until the
process is killed; ATTENTION is "torch_attention", or "nothing": the answer
is zeros.
"""

import importlib
import os
import sys

import numpy as np


def nothing(query, key, value, causal):
    return np.zeros_like(query)


def main(peer, attention):
    # What a library prints must not come before the address.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def listening(address):
        print(f"listening on {address}", file=out, flush=True)

    if attention == "nothing":
        attend = nothing
    else:
        module = importlib.import_module(f"benchmarks.rpc.{attention}")
        attend = module.attend
    importlib.import_module(f"benchmarks.rpc.{peer}").serve(attend, listening)


if __name__ == "__main__":
    main(*sys.argv[1:])
