"""Makes docs/performance.md's part about load, of a run's JSON.

python -m benchmarks.load.report build/bench/load.json
"""

import json
import sys
from pathlib import Path

from benchmarks.load import plot
from benchmarks.peers.report import replace_section

DOCS = Path(__file__).resolve().parents[2] / "docs"
PLOT = "load.svg"

# Normal again: this share of the calls that were due is good, and p99 is at
# most this much above that of 0.9 x capacity, for half a second on end.
NORMAL_GOOD, NORMAL_P99, NORMAL_SECONDS = 0.95, 2.0, 0.5

HEAD = [
    "load", "offered/s", "sent/s", "good/s", "of peak", "p50 ms", "p99 ms",
    "p99.9 ms", "refused", "refuse p99 ms", "CPU wasted", "peak MiB",
    "lag p99 ms", "client CPU",
]  # fmt: skip


def number(value, digits=3):
    """Plain, with three digits or all before the point; "-" for None."""
    if value is None:
        return "-"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:.0f}"
    return f"{value:.{digits}g}"


def percent(share):
    return "-" if share is None else f"{100 * share:.0f} %"


def seconds_text(seconds):
    return "never" if seconds is None else f"{seconds:.1f} s"


def recovery_seconds(timeline, interval, fall, normal_p99):
    """Seconds from `fall` to the first of NORMAL_SECONDS that are normal."""

    def normal(slots):
        calls = sum(slot["calls"] for slot in slots)
        good = sum(slot["good"] for slot in slots)
        p99 = max((slot["p99_ms"] or 0 for slot in slots), default=0)
        return (
            calls > 0
            and good >= NORMAL_GOOD * calls
            and p99 <= NORMAL_P99 * normal_p99
        )

    first = round(fall / interval)
    length = round(NORMAL_SECONDS / interval)
    for start in range(first, len(timeline) - length + 1):
        if normal(timeline[start : start + length]):
            return (start - first) * interval
    return None


def summary(point):
    text = (
        f"{point['factor']:>4} x: {number(point['goodput'])} good/s of "
        f"{number(point['offered'])}, p99 {number(point['accepted']['p99_ms'])}"
        f" ms, refused {percent(point['refused'])}, "
        f"{point['peak_rss'] >> 20} MiB"
    )
    if point["generator_is_the_limit"]:
        text += ", the load generator is the limit"
    if point["wrong"]:
        text += f", WRONG ANSWERS: {point['wrong']}"
    return text


def peak_work(entry):
    """The best of all loads and of the capacity's measurement, in CPU seconds
    of good answers per second."""
    works = [point["good_work"] for point in entry["points"]]
    return max([*works, entry["capacity_work"]])


def of_peak(entry, point):
    peak = peak_work(entry)
    return point["good_work"] / peak if peak else None


def row(entry, point):
    late = " (late)" if point["generator_is_the_limit"] else ""
    accepted = point["accepted"]
    return [
        f"{point['factor']:g} x",
        number(point["offered"]),
        number(point["sent"]),
        number(point["goodput"]),
        percent(of_peak(entry, point)),
        number(accepted["p50_ms"]),
        number(accepted["p99_ms"]),
        number(accepted["p99.9_ms"]),
        percent(point["refused"]),
        number(point["refusals"]["p99_ms"]),
        percent(point["wasted_cpu"]),
        str(point["peak_rss"] >> 20),
        number(point["lag_p99_ms"]) + late,
        percent(point["client_cpu"]),
    ]


def table(entry):
    lines = [HEAD, ["---:"] * len(HEAD)]
    lines += [row(entry, point) for point in entry["points"]]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def tables(run):
    """Markdown of all that was measured."""
    machine = run["machine"]
    head = (
        f"{machine['cpu']}, {machine['cores']} cores; "
        f"{run['times']['measured']:g} s per load, calls with a deadline of "
        "1 s.\n"
    )
    parts = [head]
    for work, flag in run["work"].items():
        for name, variant in run["variants"].items():
            entry = variant["work"].get(work)
            if not entry:
                continue
            title = f"**{work}** (`{flag.partition('=')[2]}`), {name}"
            if variant["flags"]:
                title += f" (`{' '.join(variant['flags'])}`)"
            if variant.get("apart"):
                title += (
                    " (half of the cores; the load generator has the others)"
                )
            if "capacity" in entry:
                title += f": capacity {number(entry['capacity'])} calls/s"
            if "recovery" in entry:
                title += (
                    "; normal again "
                    f"{seconds_text(entry['recovery'])} after 10 x falls to 0.8 x"
                )
            if "reason" in entry:
                title += f"; ended early: {entry['reason']}"
            parts.append(title + ".\n")
            if entry.get("points"):
                parts.append(table(entry))
    for name, variant in run["variants"].items():
        if "reason" in variant:
            parts.append(f"Not measured: {name} ({variant['reason']}).\n")
    return "\n".join(parts)


def write(run):
    page = DOCS / "performance.md"
    picture = f"![Goodput and p99 at multiples of capacity]({PLOT})\n"
    content = f"{picture}\n{tables(run)}"
    page.write_text(replace_section(page.read_text(), "load", content))
    plot.write(run, of_peak, DOCS / PLOT)


if __name__ == "__main__":
    write(json.loads(Path(sys.argv[1]).read_text()))
