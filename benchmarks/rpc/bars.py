"""What the figures of a run are held to."""

import statistics

from benchmarks.load.bars import Bar
from benchmarks.rpc.ways import PEER

# How many times as fast as the best of the others the Python client is to be,
# one client, over TCP.
FASTER = {"tiny": 2.5, "128": 1.5, "1024": 1.5, "decode": 2.5, "prefill": 1.5}
# And how many times as many calls a second with eight.
MORE_CALLS = 2.0
# How long the C++ client may take, over the longer of transfer and kernel.
OVER_PARTS = 1.3
OVER_PARTS_CASES = ("decode", "prefill")
# How many times as fast a call through shared memory is to be as Triton's.
MEMORY_FASTER = {case: 1.0 for case in FASTER} | {"decode": 5.0}
# Ours, that of Triton, and where the tensors lie before the call.
MEMORY_PAIRS = [
    (
        "py-memory",
        "triton-memory-copied",
        "Python over shared memory, copied in",
    ),
    ("py-in-place", "triton-memory", "Python over shared memory, in place"),
    ("cpp-in-place", "triton-memory", "C++ over shared memory, in place"),
]


def round_times(entries, name):
    """p50 of each round, in ms; none if the way was not measured."""
    return entries.get(name, {}).get("one", {}).get("round_p50_ms", [])


def median_ratio(over, under):
    """Of the ratios within each round: what slows a whole round cancels out.
    None if there are none."""
    ratios = [a / b for a, b in zip(over, under, strict=False)]
    return statistics.median(ratios) if ratios else None


def best(run, entries, figure):
    """Of the others over a network protocol that whose `figure` is largest:
    name and figure, or (None, None)."""
    found = []
    for way in run["ways"]:
        if way["kind"] == PEER and way["network"]:
            value = figure(entries.get(way["name"], {}))
            if value is not None:
                found.append((value, way["name"]))
    value, name = max(found, default=(None, None))
    return name, value


def speed(entry):
    return 1 / entry["one"]["p50_ms"] if "one" in entry else None


def calls_per_second(entry):
    return entry["many"]["calls_per_s"] if "many" in entry else None


def over_parts(entries):
    """The C++ client's time over that of the longer of its parts, alone."""
    parts = [round_times(entries, name) for name in ("transfer", "kernel")]
    if not all(parts):
        return None
    longest = [max(times) for times in zip(*parts, strict=False)]
    return median_ratio(round_times(entries, "cpp-tcp"), longest)


def faster(entries, name, other):
    """How many times as fast as another way; None without both."""
    return median_ratio(
        round_times(entries, other or ""), round_times(entries, name)
    )


def bars(run):
    """For the cases that were measured."""
    found = []
    for case, entries in run["cases"].items():
        rival, _ = best(run, entries, speed)
        found.append(
            Bar(
                f"{case}: Python over TCP, as fast as {rival}",
                faster(entries, "py-tcp", rival),
                FASTER[case],
                "x",
                least=True,
            )
        )
    for case, entries in run["cases"].items():
        rival, rate = best(run, entries, calls_per_second)
        ours = calls_per_second(entries.get("py-tcp", {}))
        found.append(
            Bar(
                f"{case}: Python over TCP, 8 clients' calls/s, to {rival}",
                ours / rate if ours and rate else None,
                MORE_CALLS,
                "x",
                least=True,
            )
        )
    for case, entries in run["cases"].items():
        if case in OVER_PARTS_CASES:
            found.append(
                Bar(
                    f"{case}: C++ over TCP, to its longer part",
                    over_parts(entries),
                    OVER_PARTS,
                    "x",
                )
            )
    for ours, rival, title in MEMORY_PAIRS:
        for case, entries in run["cases"].items():
            value = faster(entries, ours, rival)
            name = f"{case}: {title}, as fast as Triton"
            found.append(Bar(name, value, MEMORY_FASTER[case], "x", least=True))
    return found
