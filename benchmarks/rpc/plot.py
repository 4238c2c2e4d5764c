"""The plot of docs/performance.md's part about calls."""

from benchmarks.rpc.ways import OURS, PART

# Colours that colour-blind people tell apart (Okabe and Ito), and shapes.
MARKS = {True: ("#0072B2", "o"), False: ("#D55E00", "^")}
LIMIT = "0.55"
MARGIN = 1.25  # Between the outermost points and the frame, as a factor.
MOST_TICKS = 4


def shown(run):
    """Ways with a figure for many clients: those that one chooses among."""
    return [
        way
        for way in run["ways"]
        if way["kind"] != PART
        and any("many" in e.get(way["name"], {}) for e in run["cases"].values())
    ]


def limit_ms(entries):
    """The longer of moving the bytes and computing; None without both."""
    times = [
        entries[name]["one"]["p50_ms"]
        for name in ("transfer", "kernel")
        if "one" in entries.get(name, {})
    ]
    return max(times) if len(times) == 2 else None


def ticks(low, high):
    """Round numbers of a logarithmic axis, few enough for their labels."""
    for digits in ((1, 2, 5), (1, 3), (1,)):
        found = [
            digit * 10.0**power
            for power in range(-4, 7)
            for digit in digits
            if low <= digit * 10.0**power <= high
        ]
        if len(found) <= MOST_TICKS:
            break
    return found


def panel(axes, ways, entries, clients, figure, limit=None):
    values = [limit] if limit else []
    for y, way in enumerate(ways):
        found = entries.get(way["name"], {}).get(clients)
        if found:
            values.append(found[figure])
            colour, marker = MARKS[way["kind"] == OURS]
            axes.scatter(values[-1], y, s=24, c=colour, marker=marker, zorder=2)
    if limit:
        axes.axvline(limit, color=LIMIT, linewidth=0.9, linestyle="--")
    axes.set_xscale("log")
    if values:
        low, high = min(values) / MARGIN, max(values) * MARGIN
        axes.set_xlim(low, high)
        places = ticks(low, high)
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.minorticks_off()
    axes.set_yticks(range(len(ways)), [way["title"] for way in ways])
    axes.set_ylim(len(ways) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="both", color="0.92", zorder=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def write(run, path):
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams |= {"font.size": 8, "svg.hashsalt": "attention"}
    from matplotlib import pyplot

    ways = shown(run)
    figure, axes = pyplot.subplots(
        2,
        len(run["cases"]),
        figsize=(11, 0.9 + 0.36 * len(ways)),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for i, (case, entries) in enumerate(run["cases"].items()):
        top, bottom = axes[0][i], axes[1][i]
        panel(top, ways, entries, "one", "p50_ms", limit_ms(entries))
        panel(bottom, ways, entries, "many", "calls_per_s")
        top.set_title(case, loc="left")
        top.set_xlabel("p50, ms")
        bottom.set_xlabel("8 clients: calls/s")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
