"""The plot of docs/performance.md's part about load."""

# Colours that colour-blind people tell apart (Okabe and Ito), and shapes.
MARKS = [("#0072B2", "o"), ("#D55E00", "^"), ("#009E73", "s")]


def lines(run, work):
    """Each variant's name and what it measured of `work`."""
    for name, variant in run["variants"].items():
        entry = variant["work"].get(work, {})
        if entry.get("points"):
            yield name, entry


def style(axes, factors):
    axes.set_xscale("log")
    # The label of 0.9 would touch that of 1.
    labels = ["" if factor == 0.9 else f"{factor:g}" for factor in factors]
    axes.set_xticks(factors, labels)
    axes.minorticks_off()
    axes.axvline(1, color="0.7", linewidth=0.8, linestyle="--", zorder=0)
    axes.grid(axis="y", color="0.92", zorder=0)
    axes.spines[["top", "right"]].set_visible(False)


def panel(top, bottom, run, work, of_peak):
    for (name, entry), (colour, marker) in zip(
        lines(run, work), MARKS, strict=False
    ):
        loads = [point["factor"] for point in entry["points"]]
        look = {"color": colour, "marker": marker, "markersize": 4}
        shares = [100 * (of_peak(entry, p) or 0) for p in entry["points"]]
        top.plot(loads, shares, label=name, **look)
        p99 = [p["accepted"]["p99_ms"] or float("nan") for p in entry["points"]]
        bottom.plot(loads, p99, label=name, **look)
    factors = run["times"]["factors"]
    style(top, factors)
    style(bottom, factors)
    top.set_ylim(0, 105)
    bottom.set_yscale("log")
    top.set_title(work, loc="left")
    bottom.set_xlabel("load, multiples of capacity")


def write(run, of_peak, path):
    """`of_peak(entry, point)`: goodput as a share of the entry's best."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams |= {"font.size": 8, "svg.hashsalt": "attention"}
    from matplotlib import pyplot

    works = [work for work in run["work"] if any(lines(run, work))]
    figure, axes = pyplot.subplots(
        2,
        len(works),
        figsize=(10, 4.4),
        squeeze=False,
        layout="constrained",
    )
    for i, work in enumerate(works):
        panel(axes[0][i], axes[1][i], run, work, of_peak)
    axes[0][0].set_ylabel("goodput, % of its peak")
    axes[1][0].set_ylabel("p99 of accepted, ms")
    axes[0][0].legend(frameon=False, loc="lower left")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
