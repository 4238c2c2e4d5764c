"""Medians and ratios of interleaved rounds."""

import statistics

# Most that a ratio or a time (ms) may be: (case, contender, against or None).
BARS = {
    ("decode", "client", None): 45,
    ("decode", "client", "flight"): 0.35,
    ("decode", "client_shared", None): 12,
    ("decode", "client_allocated", "compute"): 1.5,
    ("small", "client", "echo"): 1.15,
}


def median_ms(rounds, case, contender):
    """Of the medians of all rounds."""
    return statistics.median(
        statistics.median(found[case][contender]) for found in rounds
    )


def median_ratio(rounds, case, contender, against):
    """Of the ratios within each round: what slows a whole round cancels out."""
    return statistics.median(
        statistics.median(found[case][contender])
        / statistics.median(found[case][against])
        for found in rounds
    )


def summarize(rounds):
    """For each case and contender p50 and the ratio of the client to it."""
    summary = {}
    for case, contenders in rounds[0].items():
        summary[case] = {
            contender: {
                "p50_ms": median_ms(rounds, case, contender),
                "client_ratio": median_ratio(rounds, case, "client", contender),
            }
            for contender in contenders
        }
    return summary


def table(summary):
    """The summary as a table in Markdown."""
    lines = [
        "| case | | p50, ms | client / this |",
        "|---|---|---:|---:|",
    ]
    for case, contenders in summary.items():
        for contender, found in contenders.items():
            lines.append(
                f"| {case} | {contender} | {found['p50_ms']:.4g} "
                f"| {found['client_ratio']:.2f} |"
            )
    return "\n".join(lines)


def check_bars(rounds):
    """Each bar with its figure, where the run has both."""
    found = []
    for (case, contender, against), most in BARS.items():
        have = rounds[0].get(case, {})
        if contender not in have or against not in (None, *have):
            continue
        if against is None:
            name, value = (
                f"{case}: {contender}, ms",
                median_ms(rounds, case, contender),
            )
        else:
            name, value = (
                f"{case}: {contender} / {against}",
                median_ratio(rounds, case, contender, against),
            )
        found.append(
            {"name": name, "value": value, "most": most, "met": value <= most}
        )
    return found
