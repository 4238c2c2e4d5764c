"""A process that runs one peer when told to, as attention_bench --serve does.

    python -m benchmarks.peers.peer torch THREADS

Answers each line of standard input with a line of JSON:

    version              of the library
    open DIRECTORY       the case in DIRECTORY/case.json: for each way that the
                         library has to compute it, null or why it cannot; the
                         outputs go to DIRECTORY/LIBRARY_WAY.npz
    run WAY SECONDS      runs it once, then again and again for at least so
                         long; the mean seconds a run
"""

import importlib
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.peers import cases


class Peer:
    def __init__(self, name, threads):
        self.name = name
        self.library = importlib.import_module(f"benchmarks.peers.{name}_peer")
        self.threads = threads
        self.ways = {}

    def version(self):
        return self.library.version()

    def open(self, folder):
        # What a library lacks it tells by any kind of exception.
        folder = Path(folder)
        case = cases.Case(**json.loads((folder / "case.json").read_text()))
        sequences = cases.load(case, folder)
        self.ways = {}
        reasons = {}
        for way, make in self.library.WAYS.items():
            try:
                run, to_numpy = make(case, sequences, self.threads)
                outputs = to_numpy(run())
            except Exception as e:  # noqa: BLE001
                reasons[way] = (str(e).strip() or repr(e)).splitlines()[0]
                continue
            np.savez(folder / f"{self.name}_{way}.npz", *outputs)
            self.ways[way] = run
            reasons[way] = None
        return reasons

    def run(self, way, seconds):
        run = self.ways[way]
        run()
        runs = 0
        start = time.perf_counter()
        while True:
            run()
            runs += 1
            taken = time.perf_counter() - start
            if taken >= float(seconds):
                return {"seconds": taken / runs}


def main(name, threads):
    # What a library prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    peer = Peer(name, int(threads))
    for line in sys.stdin:
        verb, *arguments = line.split()
        answer = getattr(peer, verb)(*arguments)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
