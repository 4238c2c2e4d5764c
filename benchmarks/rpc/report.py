"""Makes docs/performance.md's part about calls, of a run's JSON.

python -m benchmarks.rpc.report build/bench/rpc.json
"""

import json
import sys
from pathlib import Path

from benchmarks.load.report import number
from benchmarks.peers.report import replace_section
from benchmarks.rpc import plot
from benchmarks.rpc.bars import bars
from benchmarks.rpc.cases import CASES
from benchmarks.rpc.ways import OURS, PART, PEER

DOCS = Path(__file__).resolve().parents[2] / "docs"
PLOT = "calls.svg"

GROUPS = {
    OURS: "this service",
    PEER: "others, PyTorch behind them",
    PART: "parts and limits",
}
HEAD = [
    "", "p50 ms", "p99 ms", "GB/s", "client CPU ms", "server MiB",
    "8 clients: calls/s", "p50 ms", "p99 ms", "client CPU ms", "server MiB",
]  # fmt: skip


def mebibytes(size):
    return str(size >> 20) if size else "-"


def figures(found):
    return [
        number(found["p50_ms"]),
        number(found["p99_ms"]),
        number(found["gb_per_s"]),
        number(found["client_cpu_ms"]),
        mebibytes(found["server_peak_bytes"]),
    ]


def row(way, entry):
    cells = [way["title"]]
    cells += figures(entry["one"]) if "one" in entry else ["-"] * 5
    if "many" in entry:
        p50, p99, _, cpu, peak = figures(entry["many"])
        cells += [number(entry["many"]["calls_per_s"]), p50, p99, cpu, peak]
    else:
        cells += ["-"] * 5
    return cells


def table(run, case):
    """Markdown of a case."""
    entries = run["cases"][case]
    lines = [HEAD, ["---"] + ["---:"] * (len(HEAD) - 1)]
    for kind, title in GROUPS.items():
        ways = [
            way
            for way in run["ways"]
            if way["kind"] == kind and entries.get(way["name"], {}).get("one")
        ]
        if ways:
            lines.append([f"**{title}**"] + [""] * (len(HEAD) - 1))
            lines += [row(way, entries[way["name"]]) for way in ways]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def reasons(run):
    """Lines about what was not measured."""
    titles = {}
    for way in run["ways"]:
        if way["missing"]:
            titles.setdefault(way["missing"], []).append(way["title"])
        for case, entries in run["cases"].items():
            reason = entries.get(way["name"], {}).get("reason")
            if reason:
                key = f"{case}, {reason}"
                titles.setdefault(key, []).append(way["title"])
    return "".join(f"- {why}: {'; '.join(w)}\n" for why, w in titles.items())


def bar_lines(run):
    lines = [["", "found", "wanted", ""], ["---", "---:", "---:", "---"]]
    for bar in bars(run):
        found = "-" if bar.value is None else f"{bar.value:.2f} {bar.unit}"
        side = "at least" if bar.least else "at most"
        wanted = f"{side} {bar.bound:g} {bar.unit}"
        verdict = "" if bar.met else "**missed**"
        lines.append([bar.name, found, wanted, verdict])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def head(run):
    machine, times = run["machine"], run["times"]
    versions = ", ".join(f"{k} {v}" for k, v in run["versions"].items())
    return (
        f"{machine['cpu']}, {machine['cores']} cores, which clients and "
        f"servers share; load average before the run {machine['load']:.1f}; "
        f"Python client: {run['python_core']} core; "
        f"{versions}; at most {times['rounds']} rounds with one client, "
        f"{times['many_rounds']} with eight; {run['seconds']} s.\n"
    )


def tables(run):
    titles = {case.name: case.title for case in CASES}
    parts = [head(run), bar_lines(run)]
    for case in run["cases"]:
        parts.append(f"**{case}**: {titles[case]}\n")
        parts.append(table(run, case))
    missing = reasons(run)
    if missing:
        parts.append(f"Not measured:\n\n{missing}")
    return "\n".join(parts)


def write(run):
    page = DOCS / "performance.md"
    picture = f"![p50 and calls per second of each way and case]({PLOT})\n"
    content = f"{picture}\n{tables(run)}"
    page.write_text(replace_section(page.read_text(), "calls", content))
    plot.write(run, DOCS / PLOT)


if __name__ == "__main__":
    write(json.loads(Path(sys.argv[1]).read_text()))
