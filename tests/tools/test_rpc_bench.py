"""The parts of ./dev bench rpc that measure nothing."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.rpc import (
    bars,
    cases,
    client,
    measure,
    plot,
    programs,
    report,
    ways,
)

SMALL = cases.Case("small", "a small case", 4, 2, 5, 7, 8, causal=False)
CAUSAL = cases.Case("causal", "a causal case", 2, 1, 6, 6, 4, causal=True)


# Cases and answers.


def attention(query, key, value, causal):
    """One product at a time, in float32's numbers and double precision."""
    heads, queries, size = query.shape[1:]
    group = heads // key.shape[1]
    output = np.zeros(query.shape)
    for head in range(heads):
        for i in range(queries):
            seen = i + 1 if causal else key.shape[2]
            k = key[0, head // group, :seen].astype(float)
            scores = [sum(query[0, head, i] * row) / size**0.5 for row in k]
            weights = np.exp(scores) / np.exp(scores).sum()
            v = value[0, head // group, :seen]
            output[0, head, i] = sum(
                w * row for w, row in zip(weights, v, strict=True)
            )
    return output


@pytest.fixture(params=[SMALL, CAUSAL], ids=lambda case: case.name)
def written(request, tmp_path):
    case = request.param
    cases.write(case, tmp_path)
    tensors = cases.read(case, tmp_path)
    answer = attention(*tensors, case.causal).astype(np.float32)
    return case, cases.Expected(case, tmp_path), answer


def test_tensors_are_read_as_written(tmp_path):
    cases.write(SMALL, tmp_path)
    query, key, value = cases.read(SMALL, tmp_path)
    assert query.shape == (1, 4, 5, 8)
    assert key.shape == value.shape == (1, 2, 7, 8)
    assert query.tobytes() == (tmp_path / "query").read_bytes()
    assert not np.array_equal(key, value)
    sizes = [array.nbytes for array in (query, key, value)]
    assert SMALL.request_bytes == sum(sizes)
    assert SMALL.answer_bytes == sizes[0]


def test_a_right_answer_is_within_the_tolerance(written):
    _, expected, answer = written
    assert expected.error(answer.ravel()) < cases.TOLERANCE / 10


def test_an_error_in_a_compared_row_is_seen_at_once(written):
    _, expected, answer = written
    answer[0, -1, -1, 0] += 1e-3 * np.abs(answer).max()
    assert expected.error(answer) > cases.TOLERANCE


def test_an_error_in_another_row_is_seen_beside_the_first_answer(written):
    case, expected, answer = written
    assert case.queries // 2 != 1
    expected.error(answer.copy())
    answer[0, 0, 1, 0] += 1e-3 * np.abs(answer).max()
    assert expected.error(answer) > cases.TOLERANCE


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_no_number_is_an_error(written, wrong):
    _, expected, answer = written
    answer[0, 0, 0, 0] = wrong
    assert expected.error(answer) == float("inf")


def test_an_answer_of_another_size_is_an_error(written):
    _, expected, answer = written
    assert expected.error(answer.ravel()[1:]) == float("inf")


# Clients and servers.


class FakePeer:
    """Stands for a module with a Caller."""

    class Caller:
        def __init__(self, address):
            self.address = address

        def prepare(self, query, key, value, causal):
            return lambda: attention(query, key, value, causal)


@pytest.fixture
def session(monkeypatch, tmp_path):
    monkeypatch.setattr(client.importlib, "import_module", lambda _: FakePeer)
    cases.write(CAUSAL, tmp_path)
    found = client.Session("fake", "an address")
    found.prepare(str(tmp_path), *map(str, CAUSAL.words))
    return found


def test_a_run_ends_after_its_calls(session):
    found = session.run("3", "1000")
    assert len(found["ms"]) == 3
    assert sum(found["ms"]) == pytest.approx(
        1000 * (found["end"] - found["begin"])
    )


def test_a_run_has_a_call_however_short_it_is(session):
    assert len(session.run("5", "0")["ms"]) == 1


def test_an_answer_is_the_output(session, tmp_path):
    session.answer(str(tmp_path / "answer"))
    answer = np.fromfile(tmp_path / "answer", np.float32)
    assert cases.Expected(CAUSAL, tmp_path).error(answer) < cases.TOLERANCE


def run_python(program, code):
    return program([sys.executable, "-c", code])


def test_a_client_answers_in_json_or_with_an_error():
    code = 'print(\'{"a": 1}\', flush=True); print(\'{"error": "no"}\')'
    found = run_python(programs.Client, code)
    try:
        assert found.hear() == {"a": 1}
        with pytest.raises(programs.ProgramFailed, match="^no$"):
            found.hear()
    finally:
        found.end()


def test_a_program_that_dies_leaves_its_last_words():
    found = run_python(programs.Client, "import sys; sys.exit('out of luck')")
    try:
        with pytest.raises(programs.ProgramFailed, match="ended: out of luck"):
            found.hear()
    finally:
        found.end()


def test_a_program_that_never_answers_is_killed(monkeypatch):
    monkeypatch.setattr(programs, "PATIENCE", 0.01)
    found = run_python(programs.Client, "import time; time.sleep(1000)")
    try:
        with pytest.raises(programs.ProgramFailed, match="no answer in"):
            found.hear()
    finally:
        found.end()


def test_a_server_tells_its_addresses():
    code = "print('listening on a'); print('listening on unix:/b'); input()"
    found = programs.Server(["python3", "-uc", code], 2)
    try:
        assert found.addresses == ["a", "unix:/b"]
        found.reset_peak()
        assert found.peak_bytes() > 1 << 20
    finally:
        found.end()


def test_a_server_that_says_something_else_has_failed():
    found = programs.Server(["echo", "hello"], 1)
    try:
        with pytest.raises(programs.ProgramFailed, match="said 'hello'"):
            _ = found.addresses
    finally:
        found.end()


def test_all_that_a_program_started_ends_with_it():
    """What it started ignores SIGTERM and has a process of its own."""
    code = (
        "import subprocess;"
        "p = subprocess.Popen(['sh', '-c', "
        "'trap \"\" TERM; sleep 1000 & echo listening on $!; wait']);"
        "p.wait()"
    )
    found = programs.Server([sys.executable, "-uc", code], 1)
    sleeper = int(found.addresses[0])
    started = programs.start_time(sleeper)
    assert started is not None
    assert sleeper in dict(programs.descendants(found.process.pid))
    found.end()
    # Killed; whoever adopted it has to notice, too.
    until = time.monotonic() + 60
    while programs.start_time(sleeper) == started and not is_zombie(sleeper):
        assert time.monotonic() < until


def is_zombie(pid):
    return programs.stat_fields(pid)[:1] in ([], ["Z"])


def test_shared_memory_of_a_killed_client_is_removed():
    found = run_python(programs.Client, "input()")
    name = programs.region_name(found.process.pid, "key")
    region = programs.SHARED_MEMORY / name
    region.write_bytes(b"left")
    found.end()
    assert not region.exists()


# Rounds.


class Clock:
    """Every look at it takes a second."""

    def __init__(self):
        self.now = 0

    def __call__(self):
        self.now += 1
        return self.now


def test_rounds_end_before_their_time():
    clock = Clock()
    budget = measure.Budget(100, ["tiny"], clock)
    # A round takes a second, and so does looking whether there is another.
    assert len(list(budget.rounds(100, clock.now + 10))) == 5
    assert len(list(budget.rounds(3, clock.now + 100))) == 3


def test_rounds_without_time_are_as_many_as_there_must_be():
    clock = Clock()
    budget = measure.Budget(100, ["tiny"], clock)
    assert len(list(budget.rounds(3, clock.now - 100))) == 1
    assert len(list(budget.rounds(3, clock.now - 100, least=0))) == 0


def test_cases_share_the_time_of_a_run():
    budget = measure.Budget(100, ["decode", "prefill"], lambda: 7)
    assert budget.until("prefill") == pytest.approx(107)
    assert budget.until("decode") == pytest.approx(7 + 100 * 26 / 61)
    assert budget.until("decode", 0.5) == pytest.approx(7 + 50 * 26 / 61)


def test_every_case_has_a_share():
    assert set(measure.SHARES) == {case.name for case in cases.CASES}


@pytest.mark.parametrize(
    ("count", "share", "wanted"),
    [(100, 0.99, 99), (101, 0.99, 100), (1, 0.99, 1), (10, 0.5, 5)],
)
def test_percentiles_are_values_that_were_measured(count, share, wanted):
    assert measure.percentile(range(1, count + 1), share) == wanted


def run_of(times, begin, end):
    return {"ms": times, "begin": begin, "end": end, "cpu": 0.5}


def test_what_many_clients_measure_is_put_together():
    found = measure.Measured()
    found.add([run_of([1, 3], 10, 12), run_of([5], 11, 14)])
    found.add([run_of([9], 20, 21), run_of([9], 20, 21)])
    summary = found.summary(SMALL)
    assert summary["calls"] == 5
    assert summary["round_p50_ms"] == [3, 9]
    assert summary["p50_ms"] == 6
    assert summary["p99_ms"] == 9
    assert summary["round_calls_per_s"] == [0.75, 2]
    assert summary["client_cpu_ms"] == 400
    moved = SMALL.request_bytes + SMALL.answer_bytes
    assert summary["gb_per_s"] == pytest.approx(moved / 0.006 / 1e9)


class FakeContender:
    def __init__(self, name):
        self.name, self.reason, self.turns = name, "", 0

    def fail(self, error):
        self.reason = str(error)


def test_who_comes_first_changes_and_who_fails_is_left_out():
    contenders = [FakeContender(name) for name in "abc"]
    order = []

    def step(contender):
        order.append(contender.name)
        if contender.name == "b" and len(order) > 3:
            raise programs.ProgramFailed("enough")

    for number in range(3):
        measure.each(contenders, number, step)
    assert "".join(order[:6]) == "abcbca"
    assert sorted(order[6:]) == ["a", "c"]
    assert contenders[1].reason == "enough"


# Ways.


def test_ways_have_names_and_servers(tmp_path):
    found = ways.all_ways()
    assert len({way.name for way in found}) == len(found)
    services = ways.services(tmp_path)
    for way in found:
        assert (
            not way.service or way.transport in services[way.service].transports
        )


def test_ways_in_python_are_modules():
    folder = Path(ways.__file__).parent
    commands = [way.command for way in ways.all_ways() if not way.missing]
    commands += [s.command[:4] for s in ways.services("").values()]
    modules = [
        command[3] for command in commands if command[0] == sys.executable
    ]
    assert modules
    assert all((folder / f"{name}.py").is_file() for name in modules)


# Bars and the report.


def entry(round_p50, rate=None):
    def figures(p50):
        return {
            "calls": 10,
            "p50_ms": p50,
            "p99_ms": 2 * p50,
            "gb_per_s": 1.5,
            "client_cpu_ms": 0.25,
            "server_peak_bytes": 7 << 20,
        }

    one = figures(sorted(round_p50)[1]) | {"round_p50_ms": round_p50}
    found = {"error": 1e-7, "one": one}
    if rate:
        found["many"] = figures(40) | {"calls_per_s": rate}
    return found


def way(name, kind, network, missing=""):
    return {
        "name": name,
        "title": f"the {name}",
        "kind": kind,
        "network": network,
        "missing": missing,
    }


RUN = {
    "machine": {"cpu": "A CPU", "cores": 2, "load": 0.25},
    "versions": {"torch": "1"},
    "python_core": "pure",
    "times": {"rounds": 3, "many_rounds": 2},
    "seconds": 9,
    "ways": [
        way("py-tcp", ways.OURS, True),
        way("py-memory", ways.OURS, False, "no shared memory"),
        way("cpp-tcp", ways.OURS, True),
        way("flight", ways.PEER, True),
        way("grpcio", ways.PEER, True),
        way("triton-memory", ways.PEER, False),
        way("transfer", ways.PART, False),
        way("kernel", ways.PART, False),
    ],
    "cases": {
        "decode": {
            # The second round is slow as a whole.
            "py-tcp": entry([10, 40, 10], 30),
            "cpp-tcp": entry([9, 20, 9]),
            "flight": entry([30, 120, 31], 9),
            "grpcio": entry([60, 70, 60], 10),
            "triton-memory": entry([1, 1, 1], 1000),
            "transfer": entry([6, 20, 9]),
            "kernel": entry([7, 10, 8]),
        }
    },
}


def find(text):
    (found,) = [bar for bar in bars.bars(RUN) if text in bar.name]
    return found


def test_the_rival_is_the_fastest_over_a_network():
    bar = find("Python over TCP, as fast as")
    assert bar.name.endswith("flight")
    assert bar.value == 3
    assert bar.met


def test_the_rival_in_calls_per_second_is_another():
    bar = find("calls/s")
    assert bar.name.endswith("grpcio")
    assert bar.value == 3
    assert bar.met


def test_the_longer_part_is_that_of_the_round():
    # 9 / 7, 20 / 20, 9 / 9.
    bar = find("longer part")
    assert bar.value == 1
    assert bar.met


def test_a_bar_without_a_figure_is_missed():
    bar = find("copied in")
    assert bar.value is None
    assert not bar.met


def test_a_run_without_a_rival_has_bars_that_are_missed():
    run = RUN | {"ways": [], "cases": {"tiny": {}}}
    found = bars.bars(run)
    assert found
    assert not any(bar.met for bar in found)


def test_tables_have_every_way_that_was_measured():
    text = report.table(RUN, "decode")
    assert (
        "| the py-tcp | 10 | 20 | 1.5 | 0.25 | 7 | 30 | 40 | 80 | 0.25 | 7 |"
        in text
    )
    assert (
        "| the kernel | 8 | 16 | 1.5 | 0.25 | 7 | - | - | - | - | - |" in text
    )
    assert "py-memory" not in text
    assert text.index("this service") < text.index("the cpp-tcp")
    assert (
        text.index("the cpp-tcp") < text.index("others") < text.index("flight")
    )


def test_what_was_not_measured_is_told():
    run = json.loads(json.dumps(RUN))
    died = {"error": None, "reason": "it died"}
    run["cases"]["decode"] |= {"flight": died, "grpcio": died}
    text = report.tables(run)
    assert "- no shared memory: the py-memory\n" in text
    assert "- decode, it died: the flight; the grpcio\n" in text
    assert "the grpcio |" not in text


def test_tables_are_headed_by_bars():
    lines = report.bar_lines(RUN).splitlines()
    assert "| 3.00 x | at least 2.5 x |  |" in lines[2]
    assert lines[-1].endswith("| - | at least 5 x | **missed** |")


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (1.5, 12, [2, 5, 10]),
        (0.02, 0.09, [0.02, 0.05]),
        (0.9, 40, [1, 3, 10, 30]),
        (0.09, 200, [0.1, 1, 10, 100]),
    ],
)
def test_an_axis_has_few_and_round_numbers(low, high, wanted):
    assert plot.ticks(low, high) == pytest.approx(wanted)


def test_the_plot_marks_what_a_call_takes_at_least():
    assert plot.limit_ms(RUN["cases"]["decode"]) == 9
    assert plot.limit_ms({"kernel": entry([1, 1, 1])}) is None


def test_the_plot_shows_what_one_chooses_among():
    names = [way["name"] for way in plot.shown(RUN)]
    assert names == ["py-tcp", "flight", "grpcio", "triton-memory"]
