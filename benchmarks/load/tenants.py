"""Measures what a greedy tenant costs a modest one: ./dev bench tenants [FLAG...]

Two tenants of equal weight. The modest one sends a part of its half of the
server, alone and beside another that sends ten times its own half. The server
has a half of the cores and the clients have the other, as if on another machine:
else what is measured is also how much CPU time the greedy client takes from all.
The exit code is 1 if the greedy one costs the modest one more than a tenth of its
goodput.
"""

import argparse
import dataclasses
import hashlib
import secrets
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.load.bars import Bar, verdict
from benchmarks.load.programs import Bench, Server

# Large enough that the work is the limit, small enough that a deadline of a
# second leaves room for turns.
SHAPES = {
    "compute-heavy": "--shape=S=1024,T=1024,H=1,D=64",
    "byte-heavy": "--shape=S=128,T=128,H=8,D=64",
}
DEADLINE = "--timeout=1s"
# What refusing the greedy one's calls takes of the server's time is not there for
# either of them, but was when the capacity was measured.
MODEST_PART, GREEDY_PART = 0.6, 10
MOST_LOST = 10  # percent


class Tokens:
    """A file of tokens for the server, and one for each tenant's client."""

    def __init__(self, *tenants):
        self._folder = tempfile.TemporaryDirectory()
        self.path = Path(self._folder.name) / "tokens"
        self._files = {}
        lines = []
        for tenant in tenants:
            token = secrets.token_hex(32)
            self._files[tenant] = self.path.with_name(tenant)
            self._files[tenant].write_text(token + "\n")
            lines.append(
                f"{hashlib.sha256(token.encode()).hexdigest()} {tenant}\n"
            )
        self.path.write_text("".join(lines))

    def flag(self, tenant):
        """Of the client."""
        return f"--token-file={self._files[tenant]}"

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self._folder.cleanup()


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of each measurement."""

    warmup: float
    measured: float


def start(server, tokens, tenant, shape, times, *flags):
    return Bench(
        server.address,
        shape,
        tokens.flag(tenant),
        f"--warmup={times.warmup}",
        f"--duration={times.measured}",
        *flags,
        cores=server.callers_cores,
    )


def capacity(server, tokens, shape, times):
    """Calls per second that the server answers."""
    load = start(
        server, tokens, "modest", shape, times,
        "--clients=4", "--concurrency=2", "--timeout=10s",
    )  # fmt: skip
    return load.result()["total"]["goodput"]


def modest(server, tokens, shape, times, rate):
    """A client within its share, in the background."""
    return start(
        server, tokens, "modest", shape, times,
        f"--rate={rate:.6g}", "--clients=2", DEADLINE,
    )  # fmt: skip


def greedy(server, tokens, shape, times, rate):
    """One far above its share, which begins first and ends last."""
    longer = Times(times.warmup, times.measured + 2 * times.warmup + 1)
    return start(
        server, tokens, "greedy", shape, longer,
        f"--rate={rate:.6g}", "--clients=8", DEADLINE, "--seed=2",
    )  # fmt: skip


def round_of(server, tokens, shape, times):
    """What the modest one got alone and beside the other, as goodput."""
    share = capacity(server, tokens, shape, times) / 2
    rate = MODEST_PART * share
    alone = modest(server, tokens, shape, times, rate).result()["total"]
    other = greedy(server, tokens, shape, times, GREEDY_PART * share)
    time.sleep(times.warmup)
    beside = modest(server, tokens, shape, times, rate).result()["total"]
    theirs = other.result()["total"]
    print(
        f"  share {share:.4g} calls/s; modest: sent {rate:.4g}, alone "
        f"{alone['goodput']:.4g} (p99 {alone['accepted']['p99_ms']:.3g} ms), "
        f"beside {beside['goodput']:.4g} (p99 "
        f"{beside['accepted']['p99_ms'] or 0:.3g} ms); greedy: sent "
        f"{GREEDY_PART * share:.4g}, got {theirs['goodput']:.4g}"
    )
    return alone["goodput"], beside["goodput"]


def lost(shape, times, rounds, apart):
    """Percent of its goodput that the modest one loses; the median of several
    rounds, since machines' speed drifts."""
    with (
        Tokens("modest", "greedy") as tokens,
        Server(f"--tokens={tokens.path}", apart=apart) as server,
    ):
        found = [round_of(server, tokens, shape, times) for _ in range(rounds)]
    return statistics.median(
        100 * (1 - beside / alone) for alone, beside in found
    )


def main():
    parser = argparse.ArgumentParser(
        prog="./dev bench tenants", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--seconds", type=float, default=5, help="of each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--share-cores",
        action="store_true",
        help="server and clients run on all cores",
    )
    flags = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)
    started = time.monotonic()
    bars = []
    for name, shape in SHAPES.items():
        print(f"{name}: {shape}")
        bars.append(
            Bar(
                f"goodput that a modest tenant loses, {name}",
                lost(
                    shape,
                    Times(1, flags.seconds),
                    flags.rounds,
                    apart=not flags.share_cores,
                ),
                MOST_LOST,
                "%",
            )
        )
    return verdict("tenants", bars, time.monotonic() - started)


if __name__ == "__main__":
    sys.exit(main())
