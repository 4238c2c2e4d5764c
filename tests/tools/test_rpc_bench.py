"""The parts of ./dev bench rpc that measure nothing."""

from benchmarks.rpc import summary


def rounds():
    """The second is slower as a whole."""
    return [
        {"decode": {"client": [10, 40, 11], "flight": [20, 22, 24]}},
        {"decode": {"client": [44, 40, 48], "flight": [80, 88, 96]}},
        {"decode": {"client": [12, 12, 12], "flight": [20, 20, 20]}},
    ]


def test_times_are_medians_of_medians():
    assert summary.median_ms(rounds(), "decode", "client") == 12


def test_ratios_are_those_within_a_round():
    assert summary.median_ratio(rounds(), "decode", "client", "flight") == 0.5


def test_bars_are_checked_where_both_were_measured():
    assert summary.check_bars(rounds()) == [
        {"name": "decode: client, ms", "value": 12, "most": 45, "met": True},
        {
            "name": "decode: client / flight",
            "value": 0.5,
            "most": 0.35,
            "met": False,
        },
    ]
    assert len(summary.check_bars([{"decode": {"client": [50]}}])) == 1


def test_the_table_has_every_contender():
    text = summary.table(summary.summarize(rounds()))
    assert "| decode | client | 12 | 1.00 |" in text
    assert "| decode | flight | 22 | 0.50 |" in text
