"""Figures that are held to a bar."""

import dataclasses
import os

from benchmarks.load.programs import cpu_name, write_results


@dataclasses.dataclass
class Bar:
    """One figure and the most, or the least, it may be; None: there is no
    figure."""

    name: str
    value: float | None
    bound: float
    unit: str
    least: bool = False

    @property
    def met(self):
        if self.value is None:
            return False
        if self.least:
            return self.value >= self.bound
        return self.value <= self.bound

    def __str__(self):
        value = "-" if self.value is None else f"{self.value:.4g}"
        verdict = "ok" if self.met else "MISSED"
        wanted = "at least" if self.least else "of"
        return (
            f"{self.name:52} {value:>8} {wanted} {self.bound:.4g} "
            f"{self.unit}: {verdict}"
        )


def verdict(name, bars, seconds):
    """Prints the bars, writes them to build/bench/NAME.json, and returns the
    exit code: 1 if one was missed."""
    print("\n".join(map(str, bars)))
    write_results(
        name,
        {
            "machine": {"cpu": cpu_name(), "cores": os.cpu_count()},
            "seconds": round(seconds),
            "bars": [
                dataclasses.asdict(bar) | {"met": bar.met} for bar in bars
            ],
        },
    )
    return 0 if all(bar.met for bar in bars) else 1
