"""Measures the server under more load than it can take: ./dev bench load [FLAG...]

For each kind of work and each way to run the server: the capacity (closed
loop, several calls open), then Poisson arrivals at multiples of it, then how
long it takes to recover when a large multiple falls to a small one.
"""

import argparse
import dataclasses
import os
import sys
import time

from benchmarks.load import report
from benchmarks.load.programs import (
    Bench,
    Server,
    cpu_name,
    unknown_flags,
    write_results,
)


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way to run the server: flags beside the defaults (if the server does not
    know one, the variant is skipped), and whether it and the load generator have
    a half of the cores each, or share all."""

    flags: tuple = ()
    apart: bool = False


# Admission cannot be turned off: without a limit of the queue, calls that cannot
# meet their deadline are still refused.
VARIANTS = {
    "admission": Variant(),
    "cores of its own": Variant(apart=True),
    "no queue limit": Variant(("--max-queue=1h", "--max-inflight-bytes=8GiB")),
}

COMPUTE_HEAVY = "S=2048,T=2048,H=1,D=64"
BYTE_HEAVY = "S=128,T=128,H=8,D=64"
# The singles come first: a mix's costs are those of its parts.
WORK = {
    "compute-heavy": f"--shape={COMPUTE_HEAVY}",
    "byte-heavy": f"--shape={BYTE_HEAVY}",
    "mix": f"--mix={BYTE_HEAVY}:9,{COMPUTE_HEAVY}:1",
}

DEADLINE = "--timeout=1s"
RECOVER_FROM, RECOVER_TO = 10, 0.8


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of each measurement."""

    warmup: float = 1
    measured: float = 4
    overload: float = 3
    recovery: float = 5
    factors: tuple = (0.5, 0.9, 1, 2, 4, 10)


QUICK = Times(0.3, 1, 1, 2, (0.9, 4))


def watched(server, times, *flags):
    """What `attention_client bench` measures, and the server's CPU time
    meanwhile. The client needs about 0.1 s before its warm-up begins."""
    client = Bench(
        server.address,
        f"--warmup={times.warmup}",
        f"--duration={times.measured}",
        *flags,
        cores=server.callers_cores,
    )
    time.sleep(0.1 + times.warmup)
    before = server.cpu_seconds()
    time.sleep(times.measured)
    cpu = max(server.cpu_seconds() - before, 0)
    return client.result(), cpu / times.measured


def good_work(found, costs):
    """CPU seconds per second that the good answers were worth."""
    return sum(
        kind["goodput"] * costs.get(kind["name"], 0) for kind in found["kinds"]
    )


def measure_capacity(server, times, work, costs):
    """Calls per second and what their answers were worth, as good_work() has
    it; learns what a call costs where there is one kind."""
    found, cpu = watched(
        server, times, work, "--clients=4", "--concurrency=2", "--timeout=10s"
    )
    if not found or not found["total"]["goodput"]:
        return None
    if len(found["kinds"]) == 1:
        costs[found["kinds"][0]["name"]] = cpu / found["total"]["goodput"]
    return found["total"]["goodput"], good_work(found, costs)


def point(server, times, work, factor, capacity, costs):
    """One load; None if nothing came of it."""
    server.reset_peak()
    rate = f"--rate={factor * capacity:.6g}"
    found, cpu = watched(server, times, work, rate, "--clients=8", DEADLINE)
    if not found:
        return None
    total, seconds = found["total"], found["seconds"]
    work_done = good_work(found, costs)
    return {
        "factor": factor,
        "offered": total["calls"] / seconds,
        "sent": (total["calls"] - total["unsent"]) / seconds,
        "goodput": total["goodput"],
        "good_work": work_done,
        "accepted": total["accepted"],
        "refused": total["refused"] / max(total["calls"], 1),
        "refusals": total["refusals"],
        "server_cpu": cpu,
        "wasted_cpu": max(0.0, 1 - work_done / cpu) if cpu else None,
        "peak_rss": server.peak_bytes(),
        "lag_p99_ms": found["lag"]["p99_ms"],
        "generator_is_the_limit": found["generator_is_the_limit"],
        "client_cpu": found["client_cpu_share"],
        "wrong": total["wrong"],
    }


def recovery(server, times, work, capacity, normal_p99):
    """Seconds from the fall of the load until all is normal; None: never."""
    steps = (
        f"{RECOVER_FROM * capacity:.6g}:{times.overload}s,"
        f"{RECOVER_TO * capacity:.6g}:{times.recovery}s"
    )
    client = Bench(
        server.address,
        work,
        f"--rate={steps}",
        "--warmup=0",
        "--clients=8",
        DEADLINE,
        cores=server.callers_cores,
    )
    found = client.result()
    if not found:
        return None
    return report.recovery_seconds(
        found["timeline"], found["interval_s"], times.overload, normal_p99
    )


def measure(server, times, work, costs):
    """Everything about one kind of work on one server."""
    found = measure_capacity(server, times, work, costs)
    if found is None:
        return {"reason": f"no answers; server: {server.ended or 'runs'}"}
    capacity, work_done = found
    print(f"  capacity {capacity:.4g} calls/s")
    entry = {"capacity": capacity, "capacity_work": work_done, "points": []}
    normal = None
    for factor in times.factors:
        found = point(server, times, work, factor, capacity, costs)
        if found is None:
            entry["reason"] = f"server: {server.ended or 'no answers'}"
            return entry
        entry["points"].append(found)
        print(f"  {report.summary(found)}")
        if factor == 0.9:
            normal = found["accepted"]["p99_ms"]
    if normal is not None:
        entry["recovery"] = recovery(server, times, work, capacity, normal)
        seconds = entry["recovery"]
        print(f"  recovered after {report.seconds_text(seconds)}")
    return entry


def measure_variant(name, variant, times, chosen):
    entry = {**dataclasses.asdict(variant), "work": {}}
    unknown = unknown_flags(variant.flags)
    if unknown:
        entry["reason"] = f"this server has no {', '.join(unknown)}"
        print(f"{name}: skipped, {entry['reason']}")
        return entry
    costs = {}
    for work, flag in WORK.items():
        if work not in chosen:
            continue
        print(f"{name}, {work}: {flag}")
        with Server(*variant.flags, apart=variant.apart) as server:
            entry["work"][work] = measure(server, times, flag, costs)
    return entry


def main():
    parser = argparse.ArgumentParser(
        prog="./dev bench load", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--quick", action="store_true", help="to try it")
    parser.add_argument(
        "--work",
        default=",".join(WORK),
        help="of these only",
        metavar="NAME,...",
    )
    parser.add_argument(
        "--variants",
        default=",".join(VARIANTS),
        help="these only",
        metavar="NAME,...",
    )
    parser.add_argument(
        "--docs", action="store_true", help="write table and plot into docs/"
    )
    flags = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)
    times = QUICK if flags.quick else Times()
    started = time.monotonic()
    run = {
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count()},
        "work": WORK,
        "times": dataclasses.asdict(times),
        "variants": {
            name: measure_variant(name, variant, times, flags.work.split(","))
            for name, variant in VARIANTS.items()
            if name in flags.variants.split(",")
        },
    }
    run["seconds"] = round(time.monotonic() - started)
    print(report.tables(run))
    write_results("load", run)
    if flags.docs:
        report.write(run)


if __name__ == "__main__":
    main()
