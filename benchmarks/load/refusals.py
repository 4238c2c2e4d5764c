"""Measures what refusing calls takes of a server: ./dev bench refusals [FLAG...]

The server's CPU time per refused call, where ten times as many calls come as it
can answer, and that of a server that refuses all calls and does nothing else.
Server and load generator have a half of the cores each. The time that this takes
is not there for answers, however good admission is.
"""

import argparse
import sys
import time

from benchmarks.load.programs import (
    BINARIES,
    Bench,
    Server,
    cpu_name,
    write_results,
)

SHAPE = "--shape=S=128,T=128,H=8,D=64"
FACTOR = 10


def capacity(server, seconds):
    """Answers per second."""
    load = Bench(
        server.address, SHAPE, "--warmup=1", f"--duration={seconds}",
        "--clients=4", "--concurrency=2", "--timeout=10s",
        cores=server.callers_cores,
    )  # fmt: skip
    return load.result()["total"]["goodput"]


def overload(server, rate, seconds):
    """What came of calls at this rate, and the server's CPU time meanwhile."""
    load = Bench(
        server.address, SHAPE, "--warmup=1", f"--duration={seconds}",
        f"--rate={rate:.6g}", "--clients=8", "--timeout=1s",
        cores=server.callers_cores,
    )  # fmt: skip
    time.sleep(1.1)
    before = server.cpu_seconds()
    time.sleep(seconds)
    cpu = server.cpu_seconds() - before
    return load.result()["total"], cpu


def main():
    parser = argparse.ArgumentParser(
        prog="./dev bench refusals", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--seconds", type=float, default=4, help="of each")
    seconds = parser.parse_args().seconds
    with Server(apart=True) as server:
        most = capacity(server, seconds)
        found, cpu = overload(server, FACTOR * most, seconds)
        # What the answers took, at capacity all of the server's time.
        answers = found["goodput"] / most * seconds
        ours = (cpu - answers) / found["refused"]
        with Server(
            program=[BINARIES / "refusing_server", server.address], apart=True
        ) as bare:
            found, cpu = overload(bare, FACTOR * most, seconds)
            least = cpu / found["refused"]
    print(
        f"capacity {most:.4g} calls/s; a refusal at {FACTOR} x takes "
        f"{1e6 * ours:.3g} us of the server's time, of gRPC alone "
        f"{1e6 * least:.3g} us"
    )
    print("of the peak at most, if a refusal took no more than of gRPC alone:")
    for factor in (2, 4, 10):
        left = max(0.0, 1 - (factor - 1) * most * least)
        print(f"  {factor:>2} x: {100 * left:.0f} %")
    write_results(
        "refusals",
        {
            "machine": cpu_name(),
            "capacity": most,
            "refusal_us": 1e6 * ours,
            "grpc_alone_us": 1e6 * least,
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
