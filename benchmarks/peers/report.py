"""Makes docs/performance.md's table and plot of a run's JSON.

python -m benchmarks.peers.report build/bench/peers.json
"""

import dataclasses
import json
import re
import statistics
import sys
from pathlib import Path

from benchmarks.peers import plot

DOCS = Path(__file__).resolve().parents[2] / "docs"
PLOT = "performance.svg"

# A peer less exact than this, over the largest output, computes something
# else: four roundings to the type, and in FLOAT32 and FLOAT64 what sums of a
# few hundred products add.
ALLOWED_ERROR = {
    "FLOAT64": 1e-13,
    "FLOAT32": 1e-5,
    "FLOAT16": 4 * 2**-11,
    "BFLOAT16": 4 * 2**-8,
}


@dataclasses.dataclass(frozen=True)
class Row:
    """What is told of a case; rates in `unit`s a second."""

    name: str
    unit: str  # "GFLOP" or "GB"
    # Ours as a share of the machine's limit, each turn by the limit beside it.
    share: float
    ours: float  # Seconds, as all times.
    alone: float  # With one thread.
    error: float
    # Of each library the fastest exact way: name to (way, seconds, error).
    peers: dict
    # Faster than that, but not exact: (library, way, seconds, error).
    inexact: list
    work: float  # GFLOP or GB.

    def rate(self, seconds):
        return self.work / seconds

    def share_of(self, seconds):
        return self.share * self.ours / seconds

    @property
    def best(self):
        """(library, way, seconds, error), or None."""
        found = [(name, *peer) for name, peer in self.peers.items()]
        return min(found, key=lambda peer: peer[2], default=None)

    @property
    def ratio(self):
        """How many times as fast as the best peer; None without one."""
        return self.best[2] / self.ours if self.best else None


def row(entry, run):
    case, results = entry["case"], entry["results"]
    threads = str(run["machine"]["threads"])
    peers, inexact = {}, []
    for name, result in results.items():
        library, _, way = name.partition(" ")
        if library == "ours" or "reason" in result:
            continue
        seconds = statistics.median(result["seconds"])
        if not result["error"] <= ALLOWED_ERROR[case["type"]]:
            inexact.append((library, way, seconds, result["error"]))
        elif library not in peers or seconds < peers[library][1]:
            peers[library] = (way, seconds, result["error"])
    fastest = min((seconds for _, seconds, _ in peers.values()), default=None)
    work = entry["key_value_bytes"] if case["decode"] else entry["flops"]
    ours = results[f"ours {threads}"]["seconds"]
    turns = zip(ours, entry["limit"], strict=True)
    shares = (1e-9 * work / (seconds * limit) for seconds, limit in turns)
    return Row(
        name=case["name"],
        unit="GB" if case["decode"] else "GFLOP",
        share=statistics.median(shares),
        ours=statistics.median(ours),
        alone=statistics.median(results["ours 1"]["seconds"]),
        error=results[f"ours {threads}"]["error"],
        peers=peers,
        inexact=[p for p in inexact if fastest is None or p[2] < fastest],
        work=1e-9 * work,
    )


def title(run, library):
    """ "PyTorch 2.15.0" without the version."""
    return run["peers"][library].rpartition(" ")[0]


def milliseconds(seconds):
    return f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:.0f}"


def summary(row):
    """A line that tells how a case went."""
    text = (
        f"{row.name}: {milliseconds(row.ours)} ms, "
        f"{row.rate(row.ours):.1f} {row.unit}/s"
    )
    if row.best:
        library, way, _, _ = row.best
        text += f", {row.ratio:.2f} x {library} {way}"
    return text


def table(rows, run):
    """Markdown of rows of one unit."""
    threads = run["machine"]["threads"]
    head = [
        "case",
        "ms",
        f"{rows[0].unit}/s",
        "of limit",
        f"{threads} threads / 1",
        "error",
        "best peer",
        f"its {rows[0].unit}/s",
        "its error",
        "ours / best",
    ]
    lines = [head, ["---"] + ["---:"] * 5 + ["---"] + ["---:"] * 3]
    for r in rows:
        cells = [
            f"`{r.name}`",
            milliseconds(r.ours),
            f"{r.rate(r.ours):.1f}",
            f"{100 * r.share:.0f} %",
            f"{r.alone / r.ours:.2f}",
            f"{r.error:.0e}",
        ]
        if r.best:
            library, way, seconds, error = r.best
            cells += [
                f"{title(run, library)} {way}",
                f"{r.rate(seconds):.1f}",
                f"{error:.0e}",
                f"**{r.ratio:.2f}**" if r.ratio < 1 else f"{r.ratio:.2f}",
            ]
        else:
            cells += ["-"] * 4
        lines.append(cells)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def machine(run):
    m = run["machine"]
    peers = ", ".join(run["peers"].values())
    text = (
        f"{m['cpu']}, {m['cores']} cores, "
        f"SIMD target {m['simd_target']} (Highway's name), "
        f"{m['compiler']}; {peers}; {m['threads']} threads, "
        f"medians of {run['rounds']} rounds.\n\n"
        "| limits, measured in the same run | 1 thread "
        f"| {m['threads']} threads |\n|---|---:|---:|\n"
    )
    names = {
        "float": "FLOAT32 multiply-adds, GFLOP/s",
        "double": "FLOAT64 multiply-adds, GFLOP/s",
        "bfloat16": "BFLOAT16 products, GFLOP/s",
        "read": "reading memory, GB/s",
    }
    limits = [run["limits"][str(count)] for count in (1, m["threads"])]
    for key, name in names.items():
        cells = [spread(one[key]) for one in limits]
        text += f"| {name} | {' | '.join(cells)} |\n"
    return text


def spread(rates):
    """Median, least and most."""
    if not max(rates):
        return "-"
    median = statistics.median(rates)
    return f"{median:.0f} ({min(rates):.0f} to {max(rates):.0f})"


def findings(rows, run):
    """How often ours is fastest, and which faster peers are not counted."""
    compared = [r for r in rows if r.best]
    faster = [r for r in compared if r.ratio >= 1]
    text = (
        f"Faster than every peer in {len(faster)} of the {len(compared)} "
        "cases that a peer computes as well.\n"
    )
    inexact = [
        f"- `{r.name}`: {title(run, library)} {way}, "
        f"{r.rate(seconds):.1f} {r.unit}/s, error {error:.0e}\n"
        for r in rows
        for library, way, seconds, error in r.inexact
    ]
    if inexact:
        text += (
            "\nFaster than the best peer but not counted, being less exact "
            "than the type allows:\n\n" + "".join(inexact)
        )
    return text


def losses(rows):
    """Where a peer is faster, and where much of the machine lies idle."""

    def listed(of_row, chosen):
        named = (f"`{r.name}` {of_row(r)}" for r in chosen)
        return ", ".join(named) or "none"

    slower = sorted(
        (r for r in rows if r.best and r.ratio < 1), key=lambda r: r.ratio
    )
    idle = sorted((r for r in rows if r.share < 0.5), key=lambda r: r.share)
    return (
        "- Slower than a peer (ours / best): "
        f"{listed(lambda r: f'{r.ratio:.2f}', slower)}.\n"
        "- Below half of the limit: "
        f"{listed(lambda r: f'{100 * r.share:.0f} %', idle)}.\n"
    )


def replace_section(text, name, content):
    """Puts `content` between the comments "name" and "/name" of `text`."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    replaced, count = pattern.subn(lambda _: f"{begin}\n{content}\n{end}", text)
    if count != 1:
        raise ValueError(f"{count} sections {name!r}, wanted 1")
    return replaced


def write(run):
    rows = [row(entry, run) for entry in run["cases"]]
    compute = [r for r in rows if r.unit == "GFLOP"]
    decode = [r for r in rows if r.unit == "GB"]
    tables = [table(group, run) for group in (compute, decode) if group]
    page = DOCS / "performance.md"
    text = page.read_text()
    text = replace_section(text, "machine", machine(run))
    text = replace_section(text, "findings", findings(rows, run))
    picture = f"![Speed of each case as a share of the limit]({PLOT})\n"
    text = replace_section(text, "tables", "\n".join([picture, *tables]))
    text = replace_section(text, "losses", losses(rows))
    page.write_text(text)
    labels = {library: title(run, library) for library in run["peers"]}
    plot.write(compute, decode, {"ours": "this kernel", **labels}, DOCS / PLOT)


if __name__ == "__main__":
    write(json.loads(Path(sys.argv[1]).read_text()))
