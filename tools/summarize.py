#!/usr/bin/env python3
"""Counts the tests of all steps of ./dev test, and fails unless all passed.

Reads a folder that holds, for each step:
- STEP.status, its exit status;
- STEP.xml, if it ran tests: JUnit, as ctest and pytest write it;
- STEP/NAME.xml, if the test NAME is a GoogleTest program: its own cases, which
  count in its stead.
A step without tests counts as one. A step or a program that ended badly without
naming a case that failed (it did not build, it died) counts as one that failed.
"""

import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree


def outcome(case):
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed"
    if case.find("skipped") is not None:
        return "skipped"
    return "passed"


def read(report):
    return list(ElementTree.parse(report).iter("testcase"))


def count_test(case, program_report):
    if not program_report.exists():
        return Counter([outcome(case)])
    counts = Counter(outcome(part) for part in read(program_report))
    if outcome(case) == "failed" and counts["failed"] == 0:
        counts["failed"] += 1
    return counts


def count_step(status_file):
    ended_well = status_file.read_text().strip() == "0"
    report = status_file.with_suffix(".xml")
    programs = status_file.with_suffix("")
    counts = Counter()
    if report.exists():
        try:
            for case in read(report):
                program_report = programs / f"{case.get('name')}.xml"
                counts.update(count_test(case, program_report))
        except ElementTree.ParseError:
            ended_well = False
    elif ended_well:
        counts["passed"] += 1
    if not ended_well and counts["failed"] == 0:
        counts["failed"] += 1
    return counts


def line(counts):
    text = f"{counts['passed']} passed, {counts['failed']} failed"
    if counts["skipped"]:
        text += f", {counts['skipped']} skipped"
    return text


def main(folder):
    total = Counter()
    print("\n=== results ===")
    for status_file in sorted(
        Path(folder).glob("*.status"), key=lambda file: file.stat().st_mtime_ns
    ):
        counts = count_step(status_file)
        total.update(counts)
        print(f"{status_file.stem + ':':10}{line(counts)}")
    print(line(total))
    return 0 if total["failed"] == 0 and total["passed"] > 0 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
