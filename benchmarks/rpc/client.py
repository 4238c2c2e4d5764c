"""A client program: python -m benchmarks.rpc.client PEER ADDRESS

PEER is a module of this folder whose Caller(address).prepare(query, key, value,
causal) gives a function that makes a call and returns the output; its close(),
where it has one, frees what outlives the process. programs.py tells which
lines the program answers.
"""

import importlib
import json
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.rpc import cases


def cpu_seconds():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class Session:
    def __init__(self, peer, address):
        module = importlib.import_module(f"benchmarks.rpc.{peer}")
        self._caller = module.Caller(address)
        self._call = None

    def prepare(self, folder, *words):
        *sizes, causal = map(int, words)
        case = cases.Case("", "", *sizes, bool(causal))
        self._call = self._caller.prepare(
            *cases.read(case, Path(folder)), case.causal
        )
        return {}

    def answer(self, path):
        np.asarray(self._call(), np.float32).tofile(path)
        return {}

    def close(self):
        if hasattr(self._caller, "close"):
            self._caller.close()

    def run(self, calls, seconds):
        times = []
        cpu = cpu_seconds()
        begin = before = time.monotonic()
        last = begin + float(seconds)
        while True:
            self._call()
            after = time.monotonic()
            times.append(1000 * (after - before))
            before = after
            if len(times) == int(calls) or after >= last:
                break
        return {
            "ms": times,
            "begin": begin,
            "end": after,
            "cpu": cpu_seconds() - cpu,
        }


def main(peer, address):
    # What a library prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    session = Session(peer, address)
    for line in sys.stdin:
        verb, *arguments = line.split()
        try:
            answer = getattr(session, verb)(*arguments)
        except Exception as e:  # noqa: BLE001
            # What a library lacks it tells by any kind of exception.
            text = (str(e).strip() or repr(e)).splitlines()[0]
            answer = {"error": f"{type(e).__name__}: {text}"}
        print(json.dumps(answer), file=answers, flush=True)
    session.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
