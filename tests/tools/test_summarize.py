"""How ./dev test adds up what its steps report."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "summarize.py"


def summarize(folder):
    """The last line and the exit code."""
    run = subprocess.run(
        [sys.executable, SCRIPT, folder],
        capture_output=True,
        check=False,
        text=True,
    )
    return run.stdout.splitlines()[-1], run.returncode


CASES = """<testsuite>
  <testcase name="a"/>
  <testcase name="b"><skipped message="why"/></testcase>
  {}
</testsuite>"""
FAILURE = '<testcase name="c"><failure message="no"/></testcase>'
ERROR = '<testcase name="c"><error message="no"/></testcase>'


@pytest.mark.parametrize(
    ("status", "report", "last_line", "exit_code"),
    [
        ("0", None, "1 passed, 0 failed", 0),
        ("1", None, "0 passed, 1 failed", 1),
        ("0", CASES.format(""), "1 passed, 0 failed, 1 skipped", 0),
        ("8", CASES.format(FAILURE), "1 passed, 1 failed, 1 skipped", 1),
        ("8", CASES.format(ERROR), "1 passed, 1 failed, 1 skipped", 1),
        # It reported no failure, yet it died: that is one.
        ("139", CASES.format(""), "1 passed, 1 failed, 1 skipped", 1),
        ("0", "<testsuite><testcase", "0 passed, 1 failed", 1),
        # Nothing ran: no success.
        ("0", "<testsuite/>", "0 passed, 0 failed", 1),
    ],
)
def test_one_step(tmp_path, status, report, last_line, exit_code):
    (tmp_path / "unit.status").write_text(status + "\n")
    if report is not None:
        (tmp_path / "unit.xml").write_text(report)

    assert summarize(tmp_path) == (last_line, exit_code)


def test_adds_steps(tmp_path):
    for step in ("format", "lint"):
        (tmp_path / f"{step}.status").write_text("0\n")
    (tmp_path / "unit.status").write_text("8\n")
    (tmp_path / "unit.xml").write_text(CASES.format(FAILURE))

    assert summarize(tmp_path) == ("3 passed, 1 failed, 1 skipped", 1)


def test_counts_the_cases_of_a_program(tmp_path):
    (tmp_path / "unit.status").write_text("8\n")
    (tmp_path / "unit.xml").write_text(
        """<testsuite>
          <testcase name="good_test"/>
          <testcase name="bad_test"><failure/></testcase>
          <testcase name="died_early_test"><failure/></testcase>
          <testcase name="died_at_exit_test"><failure/></testcase>
        </testsuite>"""
    )
    programs = tmp_path / "unit"
    programs.mkdir()
    (programs / "good_test.xml").write_text(CASES.format(""))
    (programs / "bad_test.xml").write_text(CASES.format(FAILURE))
    (programs / "died_at_exit_test.xml").write_text(CASES.format(""))

    # Passed: one each of good, bad and the last; failed: one each but good.
    assert summarize(tmp_path) == ("3 passed, 3 failed, 3 skipped", 1)
