import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.console.text import NOT_MEASURED, about, aligned, clock, number, table


def test_a_table_is_aligned_and_has_no_trailing_blanks():
    assert aligned(["a", "1", "22"], [3, 4, 2]) == "a       1  22"
    assert table([("model", "ms"), ("a", "1.5"), ("longer name", "")]) == [
        "model         ms", "a            1.5", "longer name",
    ]  # fmt: skip


def test_a_figure_that_was_not_measured_is_not_a_zero():
    assert number(3_010_000, 2, 1e6) == "3.01" and number(0, 3) == "0.000"
    assert number(None) == NOT_MEASURED == "-"


@pytest.mark.parametrize("seconds, text", [(0, "0:00"), (7.9, "0:07"), (192, "3:12"), (3753, "1:02:33")])
def test_how_long_it_took(seconds, text):
    assert clock(seconds) == text


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0, "5 s"), (23, "25 s"), (55, "55 s"), (58, "1 min"), (83, "1 min 20 s"), (200, "3 min"), (3500, "1 h"),
        (4700, "1 h 20 min"), (23000, "6 h 30 min"), (90000, "1 d 1 h"), (86400 * 3, "3 d"),
    ],
)  # fmt: skip
def test_how_long_it_may_take(seconds, text):
    assert about(seconds) == text


@given(st.floats(0, 1e6))
def test_an_estimate_is_near_and_has_two_parts_at_most(seconds):
    parts = re.findall(r"(\d+) (d|h|min|s)", about(seconds))
    said = sum(int(count) * {"d": 86400, "h": 3600, "min": 60, "s": 1}[unit] for count, unit in parts)
    assert 1 <= len(parts) <= 2 and abs(said - seconds) <= max(5, 0.1 * seconds)
