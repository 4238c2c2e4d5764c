"""The parts of ./dev bench peers that measure nothing."""

import dataclasses

import numpy as np
import pytest

from benchmarks.peers import cases, plot, report

CASE = cases.Case(
    name="dense/f32/B1/H4_2/S3/T3/d2",
    type="FLOAT32",
    math="REPRODUCIBLE",
    batch=1,
    query_heads=4,
    kv_heads=2,
    query_length=3,
    key_length=3,
    head_size=2,
    value_head_size=2,
    causal="NONE",
    window_left=-1,
    mask="NONE",
    ragged=[],
    decode=False,
    limit="float",
)
ROWS = np.arange(3)


def changed(**fields):
    return dataclasses.replace(CASE, **fields)


def sequence(mask=None):
    """Keys that are all alike, so that outputs are means of values."""
    value = np.zeros((1, 2, 3, 2), np.float32)
    value[0, :, :, 0] = [[1, 2, 6], [10, 20, 60]]
    return cases.Sequence(
        query=np.ones((1, 4, 3, 2), np.float32),
        key=np.ones((1, 2, 3, 2), np.float32),
        value=value,
        mask=mask,
    )


def first_column(case, head, mask=None):
    output = cases.reference(case, sequence(mask), head, ROWS)
    return output[:, 0].tolist()


def test_parses_the_list():
    assert cases.parse([dataclasses.asdict(CASE)]) == [CASE]


def test_refuses_a_field_it_would_ignore():
    with pytest.raises(TypeError, match="softcap"):
        cases.parse([dataclasses.asdict(CASE) | {"softcap": 1}])


def test_refuses_a_causal_that_no_peer_has():
    with pytest.raises(ValueError, match="bottom right"):
        _ = changed(causal="BOTTOM_RIGHT").is_causal


def test_widens_bfloat16():
    bits = np.array([0x3F80, 0xC020], np.uint16)
    assert cases.widen(bits, "BFLOAT16").tolist() == [1.0, -2.5]


@pytest.mark.parametrize(
    ("fields", "head", "mask", "wanted"),
    [
        ({}, 0, None, [3, 3, 3]),
        ({}, 1, None, [3, 3, 3]),
        ({}, 2, None, [30, 30, 30]),
        ({"causal": "TOP_LEFT"}, 0, None, [1, 1.5, 3]),
        ({"causal": "TOP_LEFT", "window_left": 1}, 0, None, [1, 1.5, 4]),
        ({"window_left": 0}, 0, None, [3, 4, 6]),
        ({}, 0, [[1, 0, 0], [0, 1, 1], [1, 1, 1]], [1, 4, 3]),
    ],
)
def test_reference(fields, head, mask, wanted):
    if mask is not None:
        mask = np.array(mask, bool)
    assert first_column(changed(**fields), head, mask) == pytest.approx(wanted)


def test_reference_adds_a_mask():
    mask = np.log([[1, 1, 2]] * 3).astype(np.float32)
    assert first_column(CASE, 0, mask) == pytest.approx([15 / 4] * 3)


def test_reference_scales_scores():
    one = sequence()
    one.key[0, 0, 2] = 1 + np.log(2) / np.sqrt(2)
    output = cases.reference(CASE, one, 0, ROWS)
    assert output[:, 0] == pytest.approx([15 / 4] * 3)


@pytest.mark.parametrize("fields", [{}, {"causal": "TOP_LEFT"}])
def test_window_mask_is_what_the_reference_sees(fields):
    case = changed(window_left=1, **fields)
    masked = first_column(CASE, 0, cases.window_mask(case))
    assert masked == pytest.approx(first_column(case, 0))


def test_error_is_relative_to_the_largest_output():
    output = np.zeros((1, 4, 3, 2))
    output[0, :2, :, 0] = 3
    output[0, 2:, :, 0] = 30
    assert cases.error(CASE, [sequence()], [output]) == pytest.approx(0)
    output[0, 3, 1, 1] = -0.3
    assert cases.error(CASE, [sequence()], [output]) == pytest.approx(0.01)
    output[0, 3, 1, 1] = np.nan
    assert cases.error(CASE, [sequence()], [output]) > 1e300


def test_error_refuses_another_shape():
    with pytest.raises(ValueError, match="shape"):
        cases.error(CASE, [sequence()], [np.zeros((1, 3, 4, 2))])


def test_loads_what_the_benchmark_wrote(tmp_path):
    case = changed(ragged=[1, 2], query_heads=2)
    packed = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    for name in ("query", "key", "value", "output"):
        packed.tofile(tmp_path / f"{name}.bin")

    first, second = cases.load(case, tmp_path)
    assert first.query.tolist() == [[[[0, 1]], [[2, 3]]]]
    assert second.value.tolist() == [[[[4, 5], [8, 9]], [[6, 7], [10, 11]]]]
    outputs = cases.load_output(case, tmp_path)
    assert outputs[1].tolist() == second.value.tolist()


LIMITS = {
    "float": [100.0, 200.0, 201.0],
    "double": [100.0],
    "bfloat16": [0, 0, 0],
    "read": [20.0],
}
RUN = {
    "machine": {
        "cpu": "A CPU",
        "cores": 2,
        "threads": 2,
        "simd_target": "AVX2",
        "compiler": "GCC 12",
    },
    "peers": {"torch": "PyTorch 2.0", "openvino": "OpenVINO 1.0"},
    "rounds": 3,
    "limits": {"1": LIMITS, "2": LIMITS},
}


def result(error, *seconds):
    return {"error": error, "seconds": list(seconds)}


def entry(**fields):
    return {
        "case": dataclasses.asdict(changed(**fields)),
        "flops": 1e9,
        "key_value_bytes": 1e8,
        "limit": [100.0, 200.0, 2000.0],
        "results": {
            "ours 1": result(1e-7, 0.019, 0.02, 0.03),
            "ours 2": result(1e-7, 0.01, 0.009, 0.5),
            "torch sdpa": result(2e-7, 0.02, 0.02, 0.02),
            "torch flex": {"reason": "for windows only"},
            "openvino sdpa": result(1e-2, 0.001, 0.001, 0.001),
            "openvino sdpa_f32": result(1e-6, 0.008, 0.005, 0.009),
        },
    }


def test_row_counts_exact_peers_alone():
    row = report.row(entry(), RUN)
    assert row.rate(row.ours) == pytest.approx(100)
    # Each turn by its own limit: 1, 1 / 1.8 and 0.001 of it.
    assert row.share == pytest.approx(1 / 1.8)
    assert row.share_of(2 * row.ours) == pytest.approx(0.5 / 1.8)
    assert row.best == ("openvino", "sdpa_f32", 0.008, 1e-6)
    assert row.ratio == pytest.approx(0.8)
    assert row.peers["torch"] == ("sdpa", 0.02, 2e-7)
    assert row.inexact == [("openvino", "sdpa", 0.001, 1e-2)]


def test_row_without_peers():
    alone = entry()
    for name, one in alone["results"].items():
        if not name.startswith("ours"):
            one["error"] = float("nan")
    row = report.row(alone, RUN)
    assert row.best is None
    assert row.ratio is None
    assert "| - | - | - | - |" in report.table([row], RUN)
    assert "in 0 of the 0 cases" in report.findings([row], RUN)
    assert "(ours / best): none." in report.losses([row])


def test_table_findings_and_losses():
    row = report.row(entry(decode=True) | {"limit": 3 * [20.0]}, RUN)
    assert report.table([row], RUN).splitlines()[-1] == (
        f"| `{CASE.name}` | 10 | 10.0 | 50 % | 2.00 | 1e-07 "
        "| OpenVINO sdpa_f32 | 12.5 | 1e-06 | **0.80** |"
    )
    findings = report.findings([row], RUN)
    assert "in 0 of the 1 cases" in findings
    assert "OpenVINO sdpa, 100.0 GB/s, error 1e-02" in findings
    losses = report.losses([row, report.row(entry(type="FLOAT64"), RUN)])
    assert f"(ours / best): `{CASE.name}` 0.80." in losses
    assert "Below half of the limit: none." in losses


def test_losses_name_what_is_below_half_of_the_limit():
    row = report.row(entry() | {"limit": 3 * [400.0]}, RUN)
    assert f"limit: `{CASE.name}` 25 %." in report.losses([row])


def test_machine():
    text = report.machine(RUN | {"limits": {"1": LIMITS, "2": LIMITS}})
    assert "A CPU, 2 cores, SIMD target AVX2 (Highway's name), GCC 12" in text
    cell = "200 (100 to 201)"
    assert f"| FLOAT32 multiply-adds, GFLOP/s | {cell} | {cell} |" in text
    assert "| BFLOAT16 products, GFLOP/s | - | - |" in text


def test_replaces_a_section():
    page = "a\n<!-- b -->\nold\n<!-- /b -->\nc\n"
    wanted = "a\n<!-- b -->\n\nnew \\1\n<!-- /b -->\nc\n"
    assert report.replace_section(page, "b", "new \\1") == wanted
    with pytest.raises(ValueError, match="0 sections 'd'"):
        report.replace_section(page, "d", "new")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("dense/bf16_fast/B1/H8_8/S9/T9/d64", "dense bf16_fast d64"),
        ("small/f32/B1/H1_1/S16/T16/d64", "small f32 S16 d64"),
        ("decode/f16/B1/H32_8/S1/T2048/d128", "f16 T2048"),
        ("decode/f16/B8/H32_8/S1/T2048/d128", "f16 T2048 B8"),
    ],
)
def test_short_names(name, wanted):
    assert plot.short(name) == wanted


def test_spreads_labels():
    assert plot.spread([0, 1, 50], 10, 100) == [0, 10, 50]
    assert plot.spread([50, 95, 99], 10, 100) == [50, 90, 100]


def test_aligned_copies_begin_at_a_cache_line():
    for offset in range(3):
        array = np.arange(24.0)[offset : offset + 12].reshape(3, 4).T
        copy = cases.aligned(array)
        assert copy.ctypes.data % 64 == 0
        assert copy.flags.c_contiguous
        np.testing.assert_array_equal(copy, array)
