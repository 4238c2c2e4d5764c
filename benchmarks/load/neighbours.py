"""Measures what one caller does to another: ./dev bench neighbours [FLAG...]

Small calls and health checks, alone and beside huge ones; what the huge ones
lose; and whether two equal huge calls end together. The exit code is 1 if a
bar was missed.
"""

import argparse
import concurrent.futures
import statistics
import sys
import threading
import time

import grpc

from benchmarks.load import messages
from benchmarks.load.bars import Bar, verdict
from benchmarks.load.programs import Bench, Server

HUGE = ["--shape=S=8192,T=8192,H=8,D=64", "--timeout=60s"]
# Terabytes of scores in 12 MB: each takes minutes.
ENDLESS = ["--shape=S=1048576,D=1", "--timeout=60s", "--no-check"]
SMALL_MIX = "S=16:1,S=64:1,S=128:1,S=512:1"

# Light enough that they cost the huge calls little; name to flags.
PROBES = {
    "S=T=16": ["--shape=S=16", "--rate=20", "--seed=1"],
    "health": ["--health", "--rate=20", "--seed=2"],
    "S=T=128 H8": ["--shape=S=128,T=128,H=8,D=64", "--rate=10", "--seed=3"],
}


class Figures:
    """What was measured of one probe; percentiles are those of calls answered,
    and without any, or where one failed, there is none."""

    def __init__(self, found):
        total = found["total"] if found else None
        self.failed = total["calls"] - total["ok"] if total else None
        self.accepted = total["accepted"] if total else {}
        self.goodput = total["goodput"] if total else 0

    def __getitem__(self, name):
        return self.accepted.get(name) if self.failed == 0 else None

    def __str__(self):
        if not self.accepted or self.accepted["p50_ms"] is None:
            return f"no answers ({self.failed} failed)"
        return (
            f"p50 {self.accepted['p50_ms']:.3g} ms, "
            f"p99 {self.accepted['p99_ms']:.3g} ms, {self.failed} failed"
        )


def probe_all(address, seconds):
    """Every probe at the same time."""
    clients = {
        name: Bench(
            address,
            *flags,
            "--warmup=200ms",
            f"--duration={seconds}",
            "--timeout=20s",
        )
        for name, flags in PROBES.items()
    }
    return {name: Figures(one.result()) for name, one in clients.items()}


def show(title, probes):
    for name, figures in probes.items():
        print(f"  {name}, {title}: {figures}")


def huge_rate(address, seconds):
    """A client of huge calls, one after the other."""
    return Bench(address, *HUGE, "--warmup=1s", f"--duration={seconds}")


def beside_huge(seconds):
    """Small calls beside one client of continuous huge calls."""
    with Server() as server:
        alone = probe_all(server.address, seconds / 2)
        show("alone", alone)
        # Before and after, since a machine's speed drifts.
        huge_alone = [Figures(huge_rate(server.address, seconds / 3).result())]
        # The huge calls begin before the probes and end after them.
        huge = huge_rate(server.address, seconds)
        time.sleep(1.5)
        beside = probe_all(server.address, seconds - 1)
        show("beside huge calls", beside)
        huge_beside = Figures(huge.result()).goodput
        huge_alone.append(
            Figures(huge_rate(server.address, seconds / 3).result())
        )
    rates = [figures.goodput for figures in huge_alone]
    print(
        f"  huge calls per second, alone: {rates[0]:.3g} and {rates[1]:.3g}, "
        f"beside small ones: {huge_beside:.3g}"
    )
    small = alone["S=T=128 H8"]["p50_ms"]
    lost = None
    if all(rates):
        lost = 100 * (1 - huge_beside / statistics.mean(rates))
    return [
        Bar(
            "S=T=16 beside huge calls, p99",
            beside["S=T=16"]["p99_ms"],
            20,
            "ms",
        ),
        Bar(
            "health beside huge calls, p99",
            beside["health"]["p99_ms"],
            20,
            "ms",
        ),
        Bar(
            "S=T=128 H8 beside huge calls, p50",
            beside["S=T=128 H8"]["p50_ms"],
            (small or 0) + 10,
            "ms (alone + 10)",
        ),
        Bar(
            "S=T=128 H8 beside huge calls, p99",
            beside["S=T=128 H8"]["p99_ms"],
            50,
            "ms",
        ),
        Bar("speed that huge calls lose to small ones", lost, 10, "%"),
    ]


def beside_endless(seconds):
    """Small calls beside four that would take minutes."""
    with Server() as server:
        endless = Bench(
            server.address,
            *ENDLESS,
            "--clients=4",
            "--warmup=0",
            f"--duration={seconds + 30}",
        )
        time.sleep(2)  # Until they have arrived, and all threads work on them.
        found = Bench(
            server.address,
            f"--mix={SMALL_MIX}",
            "--rate=20",
            "--warmup=0",
            f"--duration={seconds}",
            "--timeout=5s",
            "--no-check",
        ).result()
        endless.end()
    figures = Figures(found)
    print(f"  S=T=16 to 512, beside four endless calls: {figures}")
    name = "S=T=16 to 512 beside four endless calls, longest"
    return [Bar(name, figures["max_ms"], 500, "ms")]


def one_huge(address, start):
    """When a huge call ended, on a connection of its own; it begins when the
    barrier `start` lets it."""
    shape = [1, 8, 8192, 64]
    tensor = messages.tensor(shape)
    message = messages.request(tensor, tensor, tensor, layout="bhsd")
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_receive_message_length", -1),
    ]
    with grpc.insecure_channel(address, options=options) as channel:
        grpc.channel_ready_future(channel).result(timeout=10)
        start.wait(timeout=60)
        channel.unary_unary(messages.METHOD)(message, timeout=60)
        return time.monotonic()


def two_ends(address, pool):
    """Seconds that each of two calls took from when both began; the shorter
    first."""
    start = threading.Barrier(3)
    calls = [pool.submit(one_huge, address, start) for _ in range(2)]
    start.wait(timeout=60)
    began = time.monotonic()
    return sorted(call.result() - began for call in calls)


def equal_ends(rounds):
    """How far apart two equal huge calls end that began at the same time."""
    name, worst = "two equal huge calls, ends apart", 0.0
    with Server() as server, concurrent.futures.ThreadPoolExecutor(2) as pool:
        for _ in range(rounds):
            try:
                first, last = two_ends(server.address, pool)
            except grpc.RpcError as error:
                print(f"  two equal huge calls: {error.code().name}")
                return [Bar(name, None, 10, "%")]
            print(f"  two equal huge calls: {first:.2f} and {last:.2f} s")
            worst = max(worst, 100 * (last - first) / last)
    return [Bar(name, worst, 10, "%")]


def main():
    parser = argparse.ArgumentParser(
        prog="./dev bench neighbours", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--seconds", type=float, default=24, help="of the longest measurement"
    )
    flags = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)
    started = time.monotonic()
    bars = [
        *beside_huge(flags.seconds),
        *beside_endless(flags.seconds / 2),
        *equal_ends(rounds=3),
    ]
    return verdict("neighbours", bars, time.monotonic() - started)


if __name__ == "__main__":
    sys.exit(main())
