"""How ./dev test adds up what its steps report."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "summarize.py"


def run(folder):
    return subprocess.run(
        [sys.executable, SCRIPT, folder],
        capture_output=True,
        check=False,
        text=True,
    )


def summarize(folder):
    """The last line and the exit code."""
    ended = run(folder)
    return ended.stdout.splitlines()[-1], ended.returncode


def failures(folder):
    lines = run(folder).stdout.splitlines()
    return [line for line in lines if line.startswith("FAILED")]


CASES = """<testsuite>
  <testcase name="a"/>
  <testcase name="b"><skipped message="why"/></testcase>
  {}
</testsuite>"""
FAILURE = '<testcase name="c"><failure message="no"/></testcase>'
ERROR = '<testcase name="c"><error message="no"/></testcase>'
# As ctest 3.25 writes it for a program that was not built.
NOT_STARTED = """<testcase name="c" classname="c" status="notrun">
  <skipped message="Unable to find executable"/>
  <system-out>Unable to find executable: build/c</system-out>
</testcase>"""


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
        ("8", CASES.format(NOT_STARTED), "1 passed, 1 failed, 1 skipped", 1),
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


def test_names_what_failed(tmp_path):
    for step in ("lint", "python", "unit"):
        (tmp_path / f"{step}.status").write_text("1\n")
    (tmp_path / "python.xml").write_text(
        """<testsuite>
          <testcase classname="tests.files.test_npy" name="test_it[1-2]">
            <failure message="assert 1 == 2\n  where"/>
          </testcase>
          <testcase classname="tests.files.test_npy" name="test_other"/>
        </testsuite>"""
    )
    (tmp_path / "unit.xml").write_text(
        f"""<testsuite>
          <testcase name="bad_test" classname="bad_test"><failure/></testcase>
          <testcase name="race_test" classname="race_test">
            <failure message=""/>
            <system-out>[ RUN      ] Race.One
WARNING: ThreadSanitizer: data race
SUMMARY: ThreadSanitizer: data race a.cc:3 in A()
[       OK ] Race.One (2 ms)</system-out>
          </testcase>
          <testcase name="died_test" classname="died_test">
            <failure message=""/>
            <system-out>[ RUN      ] Died.One
[       OK ] Died.One (2 ms)
[ RUN      ] Died.Two</system-out>
          </testcase>
          {NOT_STARTED}
        </testsuite>"""
    )
    programs = tmp_path / "unit"
    programs.mkdir()
    (programs / "bad_test.xml").write_text(
        """<testsuite>
          <testcase classname="Suite" name="Case"><failure message="no"/></testcase>
        </testsuite>"""
    )
    (programs / "race_test.xml").write_text(CASES.format(""))

    assert failures(tmp_path) == [
        "FAILED lint: exit status 1",
        "FAILED python tests.files.test_npy.test_it[1-2]: assert 1 == 2 where",
        "FAILED unit bad_test Suite.Case: no",
        "FAILED unit race_test: SUMMARY: ThreadSanitizer: data race a.cc:3 in A()",
        "FAILED unit died_test: ended in Died.Two",
        "FAILED unit c: Unable to find executable",
    ]


def test_what_it_names_is_short(tmp_path):
    (tmp_path / "unit.status").write_text("1\n")
    long = f'<testcase name="c"><failure message="{"x" * 1000}"/></testcase>'
    (tmp_path / "unit.xml").write_text(CASES.format(long * 100))

    lines = failures(tmp_path)

    assert max(map(len, lines)) == 200
    assert (len(lines), lines[-1]) == (41, "FAILED: 60 more")
    assert summarize(tmp_path) == ("1 passed, 100 failed, 1 skipped", 1)
