#!/usr/bin/env python3
"""Counts the tests of all steps of ./dev test, and fails unless all passed.

Reads a folder that holds, for each step:
- STEP.status, its exit status;
- STEP.xml, if it ran tests: JUnit, as ctest and pytest write it;
- STEP/NAME.xml, if the test NAME is a GoogleTest program: its own cases, which
  count in its stead.
A step without tests counts as one. A step or a program that ended badly without
naming a case that failed (it did not build, it died) counts as one that failed.
So does a test that ctest could not start.

Prints a line for each step, one for each failure with the beginning of its
message, and the sum.
"""

import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

LONGEST_LINE = 200
MOST_FAILURES = 40


@dataclass
class Outcomes:
    """How many passed and were skipped, and what failed: (name, message)."""

    counts: Counter = field(default_factory=Counter)
    failures: list = field(default_factory=list)

    def add(self, outcome, name, message):
        self.counts[outcome] += 1
        if outcome == "failed":
            self.failures.append((name, message))

    def update(self, other):
        self.counts.update(other.counts)
        self.failures += other.failures


def could_not_start(case):
    """ctest reports a missing program as skipped, with these words."""
    skipped = case.find("skipped")
    return skipped is not None and skipped.get("message", "").startswith(
        "Unable to"
    )


def outcome(case):
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed"
    if could_not_start(case):
        return "failed"
    if case.find("skipped") is not None:
        return "skipped"
    return "passed"


def name(case):
    """Of ctest's cases, the class is the name again."""
    suite = case.get("classname")
    if suite in (None, "", case.get("name")):
        return case.get("name")
    return f"{suite}.{case.get('name')}"


def message(case):
    """What a case says of its failure. Empty if it says nothing."""
    for tag in ("failure", "error", "skipped"):
        found = case.find(tag)
        if found is not None:
            return found.get("message") or found.text or ""
    return ""


def last_words(case):
    """Of a test that failed without a case that did: what a sanitizer summed up,
    else the case that it died in, else its message."""
    output = case.findtext("system-out") or ""
    summaries = re.findall(r"^SUMMARY: .*", output, re.MULTILINE)
    if summaries:
        return summaries[0]
    started = re.findall(r"^\[ RUN      \] (\S+)", output, re.MULTILINE)
    ended = re.findall(
        r"^\[ .*(?:OK|FAILED|SKIPPED) \] (\S+)", output, re.MULTILINE
    )
    if started and started[-1] not in ended:
        return f"ended in {started[-1]}"
    return message(case)


def read(report):
    return list(ElementTree.parse(report).iter("testcase"))


def read_test(case, program_report):
    outcomes = Outcomes()
    if not program_report.exists():
        outcomes.add(outcome(case), name(case), last_words(case))
        return outcomes
    program = case.get("name")
    for part in read(program_report):
        outcomes.add(outcome(part), f"{program} {name(part)}", message(part))
    if outcome(case) == "failed" and not outcomes.failures:
        outcomes.add("failed", program, last_words(case))
    return outcomes


def read_step(status_file):
    status = status_file.read_text().strip()
    report = status_file.with_suffix(".xml")
    programs = status_file.with_suffix("")
    outcomes = Outcomes()
    why = f"exit status {status}" if status != "0" else ""
    if report.exists():
        try:
            for case in read(report):
                program_report = programs / f"{case.get('name')}.xml"
                outcomes.update(read_test(case, program_report))
        except ElementTree.ParseError as error:
            why = f"{report.name}: {error}"
    elif not why:
        outcomes.add("passed", "", "")
    if why and not outcomes.failures:
        outcomes.add("failed", "", why)
    return outcomes


def line(counts):
    text = f"{counts['passed']} passed, {counts['failed']} failed"
    if counts["skipped"]:
        text += f", {counts['skipped']} skipped"
    return text


def failure_line(step, name, message):
    text = " ".join(f"FAILED {step} {name}".split())
    if message:
        text += ": " + " ".join(message.split())
    return (
        text if len(text) <= LONGEST_LINE else text[: LONGEST_LINE - 3] + "..."
    )


def main(folder):
    total = Outcomes()
    failed = []
    print("\n=== results ===")
    for status_file in sorted(
        Path(folder).glob("*.status"), key=lambda file: file.stat().st_mtime_ns
    ):
        step = status_file.stem
        outcomes = read_step(status_file)
        total.update(outcomes)
        failed += [
            failure_line(step, *failure) for failure in outcomes.failures
        ]
        print(f"{step + ':':10}{line(outcomes.counts)}")
    for text in failed[:MOST_FAILURES]:
        print(text)
    if len(failed) > MOST_FAILURES:
        print(f"FAILED: {len(failed) - MOST_FAILURES} more")
    print(line(total.counts))
    return (
        0 if total.counts["failed"] == 0 and total.counts["passed"] > 0 else 1
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
