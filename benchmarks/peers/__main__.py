"""Measures the kernel and its peers in turn: ./dev bench peers [FLAG...]

Every implementation is a process of its own, stopped while another runs. Of
each case, each takes a turn a round, in an order that rotates; reported is the
median of the rounds.
"""

import argparse
import dataclasses
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.peers import cases, report
from benchmarks.peers.worker import Worker

REPOSITORY = Path(__file__).resolve().parents[2]
BENCH = REPOSITORY / "build/release/bin/attention_bench"
RESULTS = REPOSITORY / "build/bench/peers.json"
LIBRARIES = ("torch", "onnxruntime", "openvino")


def cpu_name():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return "unknown"


class Peers:
    """The libraries' processes; one that dies is started anew."""

    def __init__(self, threads):
        self.threads = str(threads)
        self.workers = {library: self.start(library) for library in LIBRARIES}

    def start(self, library):
        module = "benchmarks.peers.peer"
        return Worker(
            *(sys.executable, "-m", module, library, self.threads),
            cwd=REPOSITORY,
            env={
                **os.environ,
                "TORCHINDUCTOR_CACHE_DIR": str(REPOSITORY / "build/inductor"),
                "TORCHINDUCTOR_COMPILE_THREADS": "1",
            },
        )

    def ask(self, library, *words):
        try:
            return self.workers[library].ask(*words)
        except RuntimeError:
            self.workers[library].end()
            self.workers[library] = self.start(library)
            raise

    def end(self):
        for worker in self.workers.values():
            worker.end()


def open_case(case, ours, peers, threads, folder):
    """What is known before measuring: sizes, and errors or reasons."""
    (folder / "case.json").write_text(json.dumps(dataclasses.asdict(case)))
    sizes = ours.ask("open", case.name, folder)
    sequences = cases.load(case, folder)
    error = cases.error(case, sequences, cases.load_output(case, folder))
    results = {
        f"ours {count}": {"error": error, "seconds": []}
        for count in sorted({1, threads})
    }
    for library in LIBRARIES:
        try:
            reasons = peers.ask(library, "open", folder)
        except RuntimeError as e:
            results[library] = {"reason": str(e)}
            continue
        for way, reason in reasons.items():
            entry = results[f"{library} {way}"] = {}
            if reason:
                entry["reason"] = reason
                continue
            outputs = np.load(folder / f"{library}_{way}.npz")
            outputs = [outputs[name] for name in outputs.files]
            entry["error"] = cases.error(case, sequences, outputs)
            entry["seconds"] = []
    return {"case": dataclasses.asdict(case), **sizes, "results": results}


def take_turns(case, entry, ours, peers, flags):
    """The machine's limit is measured just before each of our own turns."""
    rounds, seconds, entry["limit"] = flags.rounds, flags.seconds, []
    turns = [name for name, r in entry["results"].items() if "reason" not in r]
    for number in range(rounds):
        first = number % len(turns)
        for name in turns[first:] + turns[:first]:
            result = entry["results"][name]
            if "reason" in result:
                continue
            library, way = name.split()
            try:
                if library == "ours":
                    if int(way) == flags.threads:
                        limit = ours.ask("limit", case.limit, way)
                        entry["limit"].append(limit["rate"])
                    answer = ours.ask("run", way, seconds)
                else:
                    answer = peers.ask(library, "run", way, seconds)
                result["seconds"].append(answer["seconds"])
            except RuntimeError as e:
                if library == "ours":
                    raise
                for other in turns:  # The new process has no case open.
                    if other.split()[0] == library:
                        entry["results"][other] = {"reason": str(e)}


def describe(flags, listed, peers):
    """A run before its first case."""
    return {
        "machine": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "threads": flags.threads,
            "simd_target": listed["simd_target"],
            "compiler": listed["compiler"],
        },
        "peers": {
            library: peers.ask(library, "version") for library in LIBRARIES
        },
        "rounds": flags.rounds,
        "limits": {},
        "cases": [],
    }


def measure_limits(ours, threads, known):
    """Before each case, since a machine's speed drifts."""
    for count in sorted({1, threads}):
        limits = known.setdefault(str(count), {})
        for name in ("float", "double", "bfloat16", "read"):
            rate = ours.ask("limit", name, count)["rate"]
            limits.setdefault(name, []).append(rate)


def measure(flags, ours, peers):
    started = time.monotonic()
    listed = ours.ask("list")
    run = describe(flags, listed, peers)
    chosen = [
        case
        for case in cases.parse(listed["cases"])
        if re.search(flags.cases, case.name)
    ]
    for number, case in enumerate(chosen):
        measure_limits(ours, flags.threads, run["limits"])
        with tempfile.TemporaryDirectory() as folder:
            entry = open_case(case, ours, peers, flags.threads, Path(folder))
        take_turns(case, entry, ours, peers, flags)
        run["cases"].append(entry)
        passed = time.monotonic() - started
        line = report.summary(report.row(entry, run))
        print(f"{passed:4.0f} s  {number + 1}/{len(chosen)}  {line}")
    run["seconds"] = round(time.monotonic() - started)
    return run


def main():
    parser = argparse.ArgumentParser(
        prog="./dev bench peers", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--cases", default="", metavar="REGEX")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--seconds",
        type=float,
        default=0.1,
        help="of one implementation's turn, at least (default: 0.1)",
    )
    parser.add_argument(
        "--docs",
        action="store_true",
        help="write table and plot into docs/ as well",
    )
    flags = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)
    ours, peers = Worker(BENCH, "--serve"), Peers(flags.threads)
    try:
        run = measure(flags, ours, peers)
    finally:
        ours.end()
        peers.end()
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(run, indent=1) + "\n")
    print(f"{RESULTS.relative_to(REPOSITORY)}, {run['seconds']} s")
    if flags.docs:
        report.write(run)


if __name__ == "__main__":
    main()
