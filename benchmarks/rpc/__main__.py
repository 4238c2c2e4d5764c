"""Measures calls, and what one would pick instead: ./dev bench rpc [FLAG...]

Each way to call has its clients and its server, all processes of their own on
loopback. Of each case every way takes a turn a round, first with one client,
then with eight; ways.py lists them, report.py what is told of them.
"""

import argparse
import dataclasses
import os
import re
import sys
import time
from pathlib import Path

from benchmarks.load.programs import cpu_name, write_results
from benchmarks.rpc import report
from benchmarks.rpc.bars import bars
from benchmarks.rpc.cases import CASES
from benchmarks.rpc.measure import measure
from benchmarks.rpc.ways import all_ways, python_core

PACKAGES = [
    "torch",
    "pyarrow",
    "grpcio",
    "fastapi",
    "uvicorn",
    "nvidia-pytriton",
    "tritonclient",
]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run does at most. A turn ends after so many calls or seconds,
    whichever comes first, but not without a call."""

    total_seconds: float = 840
    rounds: int = 5
    calls: int = 500
    seconds: float = 0.4
    many_rounds: int = 2
    many_calls: int = 2000  # Of each client.
    many_seconds: float = 1.5


QUICK = Plan(160, 2, 100, 0.15, 1, 500, 0.4)


def versions():
    """Of PACKAGES, as the lists of what is installed have them."""
    lists = Path(__file__).parent.glob("requirements*.txt")
    text = "".join(path.read_text() for path in lists)
    pinned = dict(re.findall(r"(?m)^([\w.-]+)==([\w.]+)", text))
    return {package: pinned[package] for package in PACKAGES}


def parse_flags():
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(
        prog="./dev bench rpc",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cases", nargs="+", choices=names, default=names)
    parser.add_argument(
        "--ways",
        nargs="+",
        choices=[way.name for way in all_ways()],
        metavar="WAY",
        help="only these; a wrong one is told all names",
    )
    parser.add_argument(
        "--quick", action="store_true", help="3 minutes instead of 15"
    )
    parser.add_argument(
        "--docs", action="store_true", help="write tables and plot into docs/"
    )
    return parser.parse_args()


def main():
    flags = parse_flags()
    plan = QUICK if flags.quick else Plan()
    ways = [
        way
        for way in all_ways()
        if flags.ways is None or way.name in flags.ways
    ]
    chosen = [case for case in CASES if case.name in flags.cases]
    started = time.monotonic()
    run = {
        "machine": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
        },
        "versions": versions(),
        "python_core": python_core(),
        "times": dataclasses.asdict(plan),
        **measure(chosen, ways, plan),
    }
    run["seconds"] = round(time.monotonic() - started)
    found = bars(run)
    run["bars"] = [dataclasses.asdict(bar) | {"met": bar.met} for bar in found]
    print(report.tables(run))
    print("\n".join(map(str, found)))
    write_results("rpc", run)
    if flags.docs:
        report.write(run)
    sys.exit(0 if all(bar.met for bar in found) else 1)


if __name__ == "__main__":
    main()
