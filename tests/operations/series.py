"""Reads Prometheus' text format, and what queries ask it for."""

import re
from typing import NamedTuple

_LABEL = re.compile(r'(\w+)(=~|!~|!=|=)"((?:[^"\\]|\\.)*)"')
# A metric's name with what selects its series. Functions, labels to group by
# and keywords look alike, but do not begin so.
_SELECTOR = re.compile(r"\b((?:attention|process)_\w+|up)\b(?:\s*\{([^}]*)\})?")


class Selector(NamedTuple):
    """A metric and what its labels must be."""

    name: str
    # Triples of label, operator and value.
    matchers: tuple

    def selects(self, name, labels):
        if name != self.name:
            return False
        test = {
            "=": lambda have, want: have == want,
            "!=": lambda have, want: have != want,
            "=~": lambda have, want: re.fullmatch(want, have),
            "!~": lambda have, want: not re.fullmatch(want, have),
        }
        return all(
            test[operator](labels.get(label, ""), value)
            for label, operator, value in self.matchers
        )


def selectors(query):
    """What a PromQL query reads."""
    return [
        Selector(name, tuple(_LABEL.findall(matchers)))
        for name, matchers in _SELECTOR.findall(query)
    ]


def series(text):
    """Pairs of name and labels in a scrape."""
    found = []
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        name, labels = re.match(r"(\w+)(?:\{(.*)\})? \S+$", line).groups()
        found.append((name, {k: v for k, _, v in _LABEL.findall(labels or "")}))
    return found


def families(text):
    """Names and types of the metrics in a scrape."""
    return dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))
