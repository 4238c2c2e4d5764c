"""Measures calls of the Python client on loopback: ./dev bench python [FLAG...]

Against the built server, in turns: the C++ client, and the Python client with
its native and its pure core. Each in a process of its own; ratios are those of
one round.
"""

import argparse
import statistics
import sys

from benchmarks.load.programs import (
    BINARIES,
    Server,
    cpu_name,
    write_results,
)
from benchmarks.rpc.__main__ import Measuring

# Calls of each contender in a round.
CALLS = {"small": 300, "dense": 15, "decode": 5}
CONTENDERS = ("c++", "native", "pure")


def measure(rounds, cases):
    """The median time of a call in each round, in milliseconds, by case and
    contender."""
    found = {case: {name: [] for name in CONTENDERS} for case in cases}
    with (
        Server() as server,
        Measuring(
            [BINARIES / "rpc_bench", server.address, server.address]
        ) as cpp,
        Measuring(
            [
                sys.executable,
                "-m",
                "benchmarks.python.calls",
                server.address,
            ]
        ) as python,
    ):
        for number in range(rounds):
            turn = number % len(CONTENDERS)
            for case in cases:
                for name in CONTENDERS[turn:] + CONTENDERS[:turn]:
                    times = (
                        cpp.times(f"{case} client {CALLS[case]}")
                        if name == "c++"
                        else python.times(f"{case} {name} {CALLS[case]}")
                    )
                    found[case][name].append(statistics.median(times))
    return found


def main():
    parser = argparse.ArgumentParser(
        prog="./dev bench python",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cases", nargs="+", choices=CALLS, default=[*CALLS])
    arguments = parser.parse_args()
    found = measure(arguments.rounds, arguments.cases)
    print(f"{cpu_name()}: median of {arguments.rounds} rounds, each a median")
    for case, times in found.items():
        for name in CONTENDERS:
            ratios = [
                time / first
                for time, first in zip(times[name], times["c++"], strict=True)
            ]
            print(
                f"{case:8}{name:8}{statistics.median(times[name]):9.3f} "
                f"ms  {statistics.median(ratios):6.2f} of c++"
            )
    write_results("python", {"cpu": cpu_name(), "milliseconds": found})


if __name__ == "__main__":
    main()
