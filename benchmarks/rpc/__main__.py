"""Measures calls of the C++ client on loopback: ./dev bench rpc [FLAG...]

The client against the built server, and in the same rounds, one after the other:

- client_shared: the same with shared memory, through which tensors are copied
- client_allocated: with tensors in memory of AllocateShared(), which are not
- transfer: the same bytes there and back over gRPC, nothing computed
- echo: the request's bytes there and back
- compute: the kernel in the client's process
- generated: a client of protobuf's generated classes against the same server
- flight: Arrow Flight moves the same bytes, nothing computed
"""

import argparse
import os
import subprocess
import sys
import tempfile

from benchmarks.load.programs import (
    BINARIES,
    Server,
    cpu_name,
    write_results,
)
from benchmarks.rpc import summary

RPC_BENCH = BINARIES / "rpc_bench"
FLIGHT = [sys.executable, "-m", "benchmarks.rpc.flight"]

# Calls of each contender in a round.
CALLS = {"small": 500, "decode": 7, "prefill": 2}
# Bytes of query, key, value and output.
BYTES = {
    "small": (4096, 4096, 4096, 4096),
    "decode": (16 << 10, 32 << 20, 32 << 20, 16 << 10),
    "prefill": (32 << 20, 8 << 20, 8 << 20, 32 << 20),
}
CONTENDERS = [
    "client",
    "client_into_memory",
    "client_async",
    "client_shared",
    "client_allocated",
    "transfer",
    "echo",
    "compute",
    "generated",
    "flight",
]


class Listening:
    """A program that serves on a port and tells it; a context manager."""

    def __init__(self, command):
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True
        )
        line = self._process.stdout.readline()
        if not line.startswith("listening on "):
            raise RuntimeError(f"{command} said {line!r}")
        self.address = line.removeprefix("listening on ").strip()

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self._process.kill()
        self._process.communicate()


class Measuring:
    """A program that answers a line with the times of calls."""

    def __init__(self, command):
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def times(self, line):
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"no times for {line!r}")
        return [float(word) for word in answer.split()]

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self._process.communicate()


def measure(arguments):
    with (
        tempfile.TemporaryDirectory() as folder,
        Server(f"--shared-memory=unix:{folder}/memory") as server,
        Listening([RPC_BENCH, "--serve-bare"]) as bare,
        Listening([*FLIGHT, "serve"]) as flight_server,
        Measuring([RPC_BENCH, server.address, bare.address]) as calls,
        Measuring([*FLIGHT, "measure", flight_server.address]) as flight,
    ):
        rounds = []
        for number in range(arguments.rounds):
            found = {case: {} for case in arguments.cases}
            for case in arguments.cases:
                # Whoever comes first in one round comes last in another.
                order = arguments.contenders[:]
                turn = number % len(order)
                for contender in order[turn:] + order[:turn]:
                    if contender == "flight":
                        words = [*BYTES[case], CALLS[case]]
                        times = flight.times(" ".join(map(str, words)))
                    else:
                        times = calls.times(f"{case} {contender} {CALLS[case]}")
                    found[case][contender] = times
                found[case] = {
                    contender: found[case][contender] for contender in order
                }
            rounds.append(found)
            print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
        return rounds


def main():
    parser = argparse.ArgumentParser(
        prog="./dev bench rpc",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cases", nargs="+", choices=CALLS, default=[*CALLS])
    parser.add_argument(
        "--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS
    )
    arguments = parser.parse_args()
    # All ratios are the client's.
    arguments.contenders = list(
        dict.fromkeys(["client", *arguments.contenders])
    )
    rounds = measure(arguments)
    found = summary.summarize(rounds)
    bars = summary.check_bars(rounds)
    print(summary.table(found))
    for bar in bars:
        verdict = "ok" if bar["met"] else "MISSED"
        print(f"{bar['name']}: {bar['value']:.3g} of {bar['most']}: {verdict}")
    write_results(
        "rpc",
        {
            "machine": {"cpu": cpu_name(), "cores": os.cpu_count()},
            "rounds": arguments.rounds,
            "summary": found,
            "bars": bars,
        },
    )


if __name__ == "__main__":
    main()
