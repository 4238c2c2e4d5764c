"""Measures decode steps over sessions: ./dev bench sessions [FLAG...]

A server keeps the keys and values of one session or of eight. A client appends
a token to each and attends to it, all in one message of Step; in turns with it
the kernel computes the same in the client's own process, from tensors in its
memory. Beside them, what it takes to send keys and values with every query.
GQA, 32 query heads over 8 of keys and values, head size 128. The exit code is 1
if a bar was missed. Nothing else should run on the machine.

With --peers also what it takes to fetch keys and values from another process and
to compute with PyTorch (peers.py).
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

from benchmarks.load.bars import Bar, verdict
from benchmarks.load.programs import BINARIES, REPOSITORY, Server

PEERS = REPOSITORY / "build/sessions-venv/bin/python"
CLIENT = BINARIES / "sessions_client"
LENGTHS = [2048, 8192, 32768]
TYPES = {
    "f32": [],
    "bf16": ["--type=bf16"],
    "int8": ["--stored=int8"],
    "fp8": ["--stored=fp8"],
}
# Of the kernel's speed in process, from so many tokens on.
LEAST_OF_KERNEL = 0.9
LONG = 8192
MOST_BESIDE_KERNEL_US = 200
# Tokens per second, in relation to FLOAT32, at the longest.
FASTER = {"bf16": 1.7, "int8": 2.4, "fp8": 2.0}


def measure(*flags):
    """What sessions_client says, with a server of its own."""
    with Server("--max-session-bytes=8GiB") as server:
        result = subprocess.run(
            [CLIENT, f"--target={server.address}", *flags],
            check=False,
            capture_output=True,
            text=True,
        )
        if result.returncode != 0:
            raise RuntimeError(f"{result.stderr}{server.log()}")
    return json.loads(result.stdout)


def medians(result):
    """The median of each kind of time, in ms."""
    ms = {
        name: 1e3 * statistics.median(result[f"{name}_seconds"])
        for name in ["kernel", "step", "stateless"]
    }
    ms["append"] = 1e3 * statistics.median(result["append_seconds"])
    return ms


def compare(lengths, steps):
    """A table of FLOAT32 steps over one session beside peers.py."""
    peers = json.loads(
        subprocess.run(
            [PEERS, "-m", "benchmarks.sessions.peers", *map(str, lengths)],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
    )
    print("\n| T | step ms | PyTorch alone ms | Mooncake ms | LMCache ms |")
    print("|---|---|---|---|---|")
    for length in lengths:
        row = [steps["f32", length, 1]]
        row += [
            peers[name][str(length)]
            for name in ["torch", "mooncake", "lmcache"]
        ]
        print(f"| {length} | " + " | ".join(f"{ms:.2f}" for ms in row) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument(
        "--types", nargs="+", choices=TYPES, default=list(TYPES)
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--peers", action="store_true")
    arguments = parser.parse_args()
    begin = time.monotonic()
    steps = {}
    bars = []
    print(
        "| stored | T | sessions | kernel ms | step ms | beside it us |"
        " of the kernel | K and V each time ms | append GB/s |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for length in arguments.lengths:
        for name in arguments.types:
            for sessions in [1, 8]:
                result = measure(
                    f"--tokens={length}",
                    f"--sessions={sessions}",
                    f"--rounds={arguments.rounds}",
                    "--steps=5",
                    *TYPES[name],
                )
                ms = medians(result)
                steps[name, length, sessions] = ms["step"]
                ratio = ms["kernel"] / ms["step"]
                append = result["bytes"] / ms["append"] / 1e6
                print(
                    f"| {name} | {length} | {sessions} |"
                    f" {ms['kernel']:.3f} | {ms['step']:.3f} |"
                    f" {1e3 * (ms['step'] - ms['kernel']):.0f} |"
                    f" {ratio:.2f} | {ms['stateless']:.1f} | {append:.2f} |",
                    flush=True,
                )
                # The kernel in process has the numbers that are sent.
                if name in ("int8", "fp8"):
                    continue
                if name == "f32" and length >= LONG:
                    bars.append(
                        Bar(
                            f"f32, T={length}, {sessions} sessions, of the kernel",
                            ratio,
                            LEAST_OF_KERNEL,
                            "x",
                            least=True,
                        )
                    )
                if sessions == 1:
                    bars.append(
                        Bar(
                            f"{name}, T={length}, beside the kernel",
                            1e3 * (ms["step"] - ms["kernel"]),
                            MOST_BESIDE_KERNEL_US,
                            "us",
                        )
                    )
                    bars.append(
                        Bar(
                            f"{name}, T={length}, append of the stateless upload",
                            ms["stateless"] / ms["append"],
                            0.9,
                            "x",
                            least=True,
                        )
                    )
    if arguments.peers and "f32" in arguments.types:
        compare(arguments.lengths, steps)
    longest = max(arguments.lengths)
    if "f32" in arguments.types:
        for name in set(FASTER) & set(arguments.types):
            bars.append(
                Bar(
                    f"{name}, T={longest}, tokens per second of f32",
                    steps["f32", longest, 1] / steps[name, longest, 1],
                    FASTER[name],
                    "x",
                    least=True,
                )
            )
    return verdict("sessions", bars, time.monotonic() - begin)


if __name__ == "__main__":
    sys.exit(main())
