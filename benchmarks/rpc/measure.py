"""Rounds in which every way has its turn, so that noise hits all alike."""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.rpc import cases
from benchmarks.rpc.programs import Client, ProgramFailed, Server
from benchmarks.rpc.ways import services

MANY = 8  # Clients at once, each a process with a connection of its own.
ROTATION = 7  # How many ways a round begins later than the last one.


# Of the time that is left when all servers run.
SHARES = {
    "tiny": 0.10,
    "128": 0.12,
    "1024": 0.17,
    "decode": 0.26,
    "prefill": 0.35,
}


class Budget:
    """How long a run may take. Each case gets its share; what one leaves is
    for the next."""

    def __init__(self, seconds, names, clock=time.monotonic):
        self._clock = clock
        self._begin = clock()
        self._seconds = seconds
        self._names = names

    def until(self, name, part=1.0):
        """When the case, or the first `part` of it, has to be over."""
        shares = [SHARES[other] for other in self._names]
        place = self._names.index(name)
        passed = sum(shares[:place]) + part * shares[place]
        return self._begin + self._seconds * passed / sum(shares)

    def rounds(self, most, end, least=1):
        """Numbers of rounds: at least `least`, at most `most`, and none that
        would end after `end` if it lasted as long as the last one."""
        last = 0
        for number in range(most):
            begin = self._clock()
            if number >= least and begin + last > end:
                break
            yield number
            last = self._clock() - begin


class Contender:
    """A way with its clients, and what was measured of it in a case."""

    def __init__(self, way, address, server):
        self.way = way
        self.server = server
        self._command = [*way.command, address]
        self.clients = []
        self.begin_case()

    def begin_case(self):
        self.error, self.reason = None, ""
        self.single, self.several = Measured(), Measured()
        self._ready = 0

    def start(self, count):
        while len(self.clients) < count:
            self.clients.append(Client(self._command, self.way.env))

    def prepare(self, count, case, folder):
        """`count` clients, of which each has made a call."""
        self.start(count)
        late = self.clients[self._ready : count]
        for words in (("prepare", folder, *case.words), ("run", 1, 0)):
            together(late, *words)
        self._ready = count

    def turn(self, measured, count, calls, seconds):
        if self.server:
            self.server.reset_peak()
        measured.add(together(self.clients[:count], "run", calls, seconds))
        if self.server:
            measured.peak = max(measured.peak, self.server.peak_bytes())

    def check(self, expected, folder):
        path = folder / "answer"
        self.clients[0].ask("answer", path)
        self.error = expected.error(np.fromfile(path, np.float32))
        path.unlink()
        if not self.error <= cases.TOLERANCE:
            raise ProgramFailed(
                f"wrong answer: error {self.error:.1g}, "
                f"wanted at most {cases.TOLERANCE:.0g}"
            )

    def fail(self, error):
        """Nothing more is asked of it in this case."""
        self.reason = str(error)
        print(f"  {self.way.title}: {self.reason}", file=sys.stderr)
        self.end()

    def end(self):
        for client in self.clients:
            client.end()
        self.clients = []

    def found(self, case):
        entry = {"error": self.error}
        if self.reason:
            entry["reason"] = self.reason
        if self.single.calls:
            entry["one"] = self.single.summary(case)
        if self.several.calls:
            entry["many"] = self.several.summary(case)
        elif self.way.many and not self.reason:
            entry["reason"] = "no time was left for eight clients"
        return entry


def together(clients, *words):
    """What each answers; they work at the same time."""
    for client in clients:
        client.tell(*words)
    return [client.hear() for client in clients]


class Measured:
    """The turns of a way with one number of clients."""

    def __init__(self):
        self._times, self._medians, self._rates = [], [], []
        self._cpu = 0.0
        self.peak = 0

    @property
    def calls(self):
        return len(self._times)

    def add(self, runs):
        times = [ms for run in runs for ms in run["ms"]]
        begin = min(run["begin"] for run in runs)
        end = max(run["end"] for run in runs)
        self._times += times
        self._medians.append(statistics.median(times))
        self._rates.append(len(times) / (end - begin))
        self._cpu += sum(run["cpu"] for run in runs)

    def summary(self, case):
        p50 = statistics.median(self._medians)
        moved = case.request_bytes + case.answer_bytes
        return {
            "calls": self.calls,
            "p50_ms": p50,
            "p99_ms": percentile(self._times, 0.99),
            "round_p50_ms": self._medians,
            "gb_per_s": moved / p50 / 1e6,
            "calls_per_s": statistics.median(self._rates),
            "round_calls_per_s": self._rates,
            "client_cpu_ms": 1000 * self._cpu / self.calls,
            "server_peak_bytes": self.peak,
        }


def percentile(values, share):
    """The least value that has at least `share` of all at or below it."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


class Contest:
    """All servers, and the ways to call them."""

    def __init__(self, ways, folder):
        self._servers = {}
        self._failures = {}
        self.contenders = []
        self.missing = {way.name: way.missing for way in ways if way.missing}
        here = [way for way in ways if not way.missing]
        try:
            self._start(here, services(folder))
            for way in here:
                self._add(way, services(folder))
        except BaseException:
            self.end()
            raise

    def _start(self, ways, known):
        """The servers that are wanted, all at the same time."""
        for name in dict.fromkeys(way.service for way in ways if way.service):
            service = known[name]
            self._servers[name] = Server(
                service.command, len(service.transports), service.env
            )
        for name, server in self._servers.items():
            try:
                _ = server.addresses
            except ProgramFailed as e:
                self._failures[name] = str(e)

    def _add(self, way, known):
        if way.service in self._failures:
            self.missing[way.name] = f"its server {self._failures[way.service]}"
            return
        server, address = None, "-"
        if way.service:
            place = known[way.service].transports.index(way.transport)
            server = self._servers[way.service]
            address = server.addresses[place]
        contender = Contender(way, address, server)
        contender.start(1)
        self.contenders.append(contender)

    def end(self):
        for contender in self.contenders:
            contender.end()
        for server in self._servers.values():
            server.end()


def each(contenders, number, step):
    """`step` for each that has not failed; who comes first in one round comes
    later in another."""
    running = [c for c in contenders if not c.reason]
    turn = ROTATION * number % max(1, len(running))
    for contender in running[turn:] + running[:turn]:
        try:
            step(contender)
        except ProgramFailed as e:
            contender.fail(e)


def measure_case(case, contest, budget, plan):
    contenders = contest.contenders
    for contender in contenders:
        contender.begin_case()
    several = [c for c in contenders if c.way.many]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases.write(case, folder)
        expected = cases.Expected(case, folder)

        def prepare(contender):
            contender.prepare(1, case, folder)
            if contender.way.answers:
                contender.check(expected, folder)

        def one(contender):
            # Caches hold what the last way left in them.
            together(contender.clients[:1], "run", 1, 0)
            contender.turn(contender.single, 1, plan.calls, plan.seconds)

        def many(contender):
            contender.prepare(MANY, case, folder)
            contender.turn(
                contender.several, MANY, plan.many_calls, plan.many_seconds
            )

        each(contenders, 0, prepare)
        for number in budget.rounds(plan.rounds, budget.until(case.name, 0.5)):
            each(contenders, number, one)
        for number in budget.rounds(
            plan.many_rounds, budget.until(case.name), least=0
        ):
            each(several, number, many)
    return {c.way.name: c.found(case) for c in contenders}


def measure(chosen, ways, plan):
    """{"ways": ..., "cases": ...}, as report.py takes it."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.monotonic()
        contest = Contest(ways, Path(folder))
        try:
            names = [case.name for case in chosen]
            left = plan.total_seconds - (time.monotonic() - begin)
            budget = Budget(left, names)
            found = {}
            for case in chosen:
                found[case.name] = measure_case(case, contest, budget, plan)
                passed = time.monotonic() - begin
                print(f"{passed:4.0f} s  {case.name}", file=sys.stderr)
        finally:
            contest.end()
    return {
        "ways": [
            {
                "name": way.name,
                "title": way.title,
                "kind": way.kind,
                "network": way.network,
                "missing": contest.missing.get(way.name, ""),
            }
            for way in ways
        ],
        "cases": found,
    }
