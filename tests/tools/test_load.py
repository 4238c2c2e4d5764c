"""The parts of ./dev bench load, memory, neighbours and tenants that measure nothing."""

import hashlib
import pathlib
import struct

import pytest

from attention_client import attention_pb2
from benchmarks.load import (
    hostile,
    memory,
    messages,
    neighbours,
    report,
    tenants,
)


def slot(calls=10, good=10, p99=5.0):
    return {"calls": calls, "good": good, "p99_ms": p99}


BAD, LATE, NONE = slot(good=5), slot(p99=20.0), slot(0, 0, None)


@pytest.mark.parametrize(
    ("after", "wanted"),
    [
        ([slot()] * 10, 0.0),
        ([BAD] * 3 + [slot()] * 7, 0.3),
        ([LATE] * 2 + [slot()] * 8, 0.2),
        ([slot()] * 4 + [BAD] + [slot()] * 5, 0.5),
        ([slot()] * 4 + [BAD] + [slot()] * 4, None),
        ([BAD] * 10, None),
        ([NONE] * 10, None),
    ],
)
def test_recovery_is_until_half_a_second_is_normal(after, wanted):
    found = report.recovery_seconds([BAD] * 10 + after, 0.1, 1.0, 5.0)
    assert found == (None if wanted is None else pytest.approx(wanted))


def point(factor, good_work):
    times = {"p50_ms": 1.234, "p99_ms": 20.0, "p99.9_ms": None}
    return {
        "factor": factor,
        "offered": 1000.4,
        "sent": 1000.4,
        "goodput": 500.0,
        "good_work": good_work,
        "accepted": times,
        "refused": 0.5,
        "refusals": {"p99_ms": 3.0},
        "wasted_cpu": 0.25,
        "peak_rss": 100 << 20,
        "lag_p99_ms": 80.0,
        "generator_is_the_limit": factor > 1,
        "client_cpu": 0.3,
        "wrong": 0,
    }


ENTRY = {
    "capacity": 1000.0,
    "capacity_work": 1.0,
    "points": [point(0.9, 2.0), point(10, 0.5)],
    "recovery": None,
}
RUN = {
    "machine": {"cpu": "A CPU", "cores": 2},
    "times": {"measured": 4, "factors": [0.9, 10]},
    "work": {"small": "--shape=S=16"},
    "variants": {
        "on": {"flags": [], "work": {"small": ENTRY}},
        "off": {
            "flags": ["--x=1"],
            "work": {},
            "reason": "this server has no --x",
        },
    },
}


def test_table_compares_with_the_peak():
    lines = report.table(ENTRY).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith(
        "| 0.9 x | 1000 | 1000 | 500 | 100 % | 1.23 | 20 "
    )
    assert lines[3].startswith("| 10 x | 1000 | 1000 | 500 | 25 % | ")
    assert "| 50 % | 3 | 25 % | 100 | 80 (late) | 30 % |" in lines[3]


def test_tables_tell_what_was_left_out():
    text = report.tables(RUN)
    assert "capacity 1000 calls/s; normal again never after" in text
    assert "Not measured: off (this server has no --x)." in text


def test_requests_are_those_of_the_proto():
    request = attention_pb2.ComputeAttentionRequest.FromString(
        messages.request(
            messages.tensor([3, 1, 2]),
            messages.tensor([0, 1, 1 << 40], b"abcd"),
            messages.tensor([300, 1, 2]),
            layout="ragged",
            heads=(1, 200),
            query_starts=[0, 3],
            key_starts=[0, 300],
        )
    )
    assert list(request.query.shape) == [3, 1, 2]
    assert len(request.query.data) == 24
    assert list(request.key.shape) == [0, 1, 1 << 40]
    assert request.key.data == b"abcd"
    assert request.value.data_type == attention_pb2.DATA_TYPE_FLOAT32
    assert request.options.layout == attention_pb2.LAYOUT_RAGGED
    assert request.options.kv_heads == 200
    assert list(request.key_starts) == [0, 300]


def test_uploads_send_what_they_promise():
    upload = hostile.Upload(100, 60, head=b"head")
    sent = b""
    while upload.left:
        sent += upload.next_bytes(7)
    assert sent == b"\0" + struct.pack(">I", 100) + b"head" + bytes(56)
    assert not upload.ends
    assert hostile.Upload(4, 4, head=b"head").ends


def test_frames():
    data = hostile.frame(hostile.DATA, 1, 5, b"abc")
    assert data == b"\0\0\3\0\1\0\0\0\5abc"
    assert hostile.literal("te", "x") == b"\0\2te\1x"


def case(**fields):
    entry = {
        "name": "a case",
        "outcome": "",
        "died": None,
        "peak": 10,
        "peak_bar": 10,
        "idle": 10,
        "idle_bar": 10,
        "honest": {"calls": 5, "failed": 0, "p50_ms": 1.0, "p99_ms": 2.0},
    }
    return entry | fields


@pytest.mark.parametrize(
    ("fields", "missed"),
    [
        ({}, []),
        ({"peak": 11}, ["peak"]),
        ({"idle": 11}, ["idle"]),
        ({"died": "SIGABRT", "idle": None}, ["DIED (SIGABRT)"]),
        ({"honest": None}, ["no honest call served"]),
        (
            {
                "honest": {
                    "calls": 5,
                    "failed": 2,
                    "p50_ms": None,
                    "p99_ms": None,
                }
            },
            ["2 honest calls failed"],
        ),
    ],
)
def test_bars_of_memory(fields, missed):
    assert memory.misses(case(**fields)) == missed
    assert "a case" in memory.line(case(**fields))


def test_limits_are_the_bars():
    limits = memory.Limits(message=8, inflight=100, pooled=32)
    assert limits.peak_bar == (64 + 110) << 20
    assert limits.idle_bar == 160 << 20
    assert "--max-inflight-bytes=100MiB" in limits.flags


def test_a_failed_probe_has_no_figure():
    def found(ok):
        times = {"p50_ms": 1.0, "p99_ms": 2.0}
        total = {"calls": 9, "ok": ok, "accepted": times, "goodput": 3.0}
        return {"total": total}

    assert neighbours.Figures(found(9))["p99_ms"] == 2.0
    assert neighbours.Figures(found(8))["p99_ms"] is None
    assert neighbours.Figures(None)["p99_ms"] is None
    assert not neighbours.Bar("x", None, 10, "ms").met
    assert neighbours.Bar("x", 10, 10, "ms").met
    assert not neighbours.Bar("x", 11, 10, "ms").met


def test_a_bar_may_be_a_least():
    assert neighbours.Bar("x", 10, 10, "x", least=True).met
    assert not neighbours.Bar("x", 9, 10, "x", least=True).met
    assert not neighbours.Bar("x", None, 10, "x", least=True).met
    assert "9 at least 10 x: MISSED" in str(
        neighbours.Bar("x", 9, 10, "x", least=True)
    )


def test_tokens_of_tenants():
    with tenants.Tokens("a", "b") as tokens:
        lines = dict(
            line.split()[::-1] for line in tokens.path.read_text().splitlines()
        )
        for tenant in "ab":
            flag, _, file = tokens.flag(tenant).partition("=")
            assert flag == "--token-file"
            token = pathlib.Path(file).read_text().strip()
            digest = hashlib.sha256(token.encode()).hexdigest()
            assert lines[tenant] == digest
    assert not tokens.path.exists()
