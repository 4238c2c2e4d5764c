"""The plot of docs/performance.md."""

LABEL_WIDTH = 0.27  # Of a panel's.
ROW_HEIGHT = 0.19  # Inches.

# Colours that colour-blind people tell apart (Okabe and Ito), and shapes.
MARKS = {
    "ours": ("black", "o"),
    "torch": ("#D55E00", "^"),
    "onnxruntime": ("#009E73", "s"),
    "openvino": ("#0072B2", "D"),
}


def short(name):
    """What tells a case from the others of its panel."""
    kind, of_type, batch, _, queries, keys, size = name.split("/")
    if kind == "decode":
        return f"{of_type} {keys}" + (f" {batch}" if batch != "B1" else "")
    words = [kind, of_type, size]
    if kind == "small":
        words.insert(2, queries)
    return " ".join(words)


def points(row):
    """Percent of the limit: name to value, ours and each library's best."""
    seconds = {"ours": row.ours}
    seconds |= {name: peer[1] for name, peer in row.peers.items()}
    return {n: 100 * row.share_of(s) for n, s in seconds.items()}


def spread(values, gap, most):
    """Ascending `values` moved so that they are `gap` apart, none over `most`."""
    placed = []
    for value in values:
        placed.append(max(value, placed[-1] + gap) if placed else value)
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], most)
        most = placed[i] - gap
    return placed


def panel(axes, rows, labels):
    right = 105.0
    for y, row in enumerate(rows):
        found = points(row)
        axes.plot(
            [min(found.values()), max(found.values())],
            [y, y],
            color="0.8",
            linewidth=1,
            zorder=1,
        )
        for name, x in found.items():
            colour, marker = MARKS[name]
            size = 34 if name == "ours" else 22
            right = max(right, 1.05 * x)
            axes.scatter(x, y, s=size, c=colour, marker=marker, zorder=2)
    found = sorted(points(rows[0]).items(), key=lambda point: point[1])
    gap = LABEL_WIDTH * right
    places = spread([x for _, x in found], gap, right - gap / 2)
    for (name, x), place in zip(found, places, strict=True):
        axes.annotate(
            labels[name],
            xy=(x, 0),
            xytext=(place, -1.6),
            color=MARKS[name][0],
            ha="center",
            arrowprops={
                "arrowstyle": "-",
                "color": MARKS[name][0],
                "linewidth": 0.7,
            },
        )
    axes.axvline(100, color="0.5", linewidth=0.8, linestyle="--", zorder=0)
    axes.set_yticks(range(len(rows)), [short(row.name) for row in rows])
    axes.set_xlim(0, right)
    axes.set_ylim(len(rows) - 0.3, -2.4)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="0.92", zorder=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def write(compute, decode, labels, path):
    """`labels`: name to what people call it, for "ours" as well."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams |= {"font.size": 8, "svg.hashsalt": "attention"}
    from matplotlib import pyplot

    counts = [len(compute) + 2, len(decode) + 2]
    height = ROW_HEIGHT * max(counts) + 0.9
    figure = pyplot.figure(figsize=(10, height))
    bottom = 0.55 / height
    for i, (rows, limit) in enumerate(
        [(compute, "multiply-add peak"), (decode, "memory bandwidth")]
    ):
        if not rows:
            continue
        share = ROW_HEIGHT * counts[i] / height
        top = bottom + ROW_HEIGHT * max(counts) / height
        axes = figure.add_axes((0.15 + 0.49 * i, top - share, 0.34, share))
        panel(axes, rows, labels)
        axes.set_title(
            "Decoding: type, keys" if i else "Many queries: case, type, sizes",
            loc="left",
        )
        axes.set_xlabel(f"speed, % of the machine's {limit}")
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    pyplot.close(figure)
