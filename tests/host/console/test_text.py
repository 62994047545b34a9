import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.console.text import NOT_MEASURED, about, clock, number


def test_missing_figure_is_not_a_zero():
    assert number(3_010_000, 2, 1e6) == "3.01" and number(0, 3) == "0.000"
    assert number(None) == NOT_MEASURED == "-"


@pytest.mark.parametrize("seconds, text", [(0, "0:00"), (7.9, "0:07"), (192, "3:12"), (3753, "1:02:33")])
def test_clock_formats_elapsed_time(seconds, text):
    assert clock(seconds) == text


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0, "5 s"), (23, "25 s"), (55, "55 s"), (58, "1 min"), (83, "1 min 20 s"), (200, "3 min"), (3500, "1 h"),
        (4700, "1 h 20 min"), (23000, "6 h 30 min"), (90000, "1 d 1 h"), (86400 * 3, "3 d"),
    ],
)  # fmt: skip
def test_about_rounds_an_estimate(seconds, text):
    assert about(seconds) == text


@given(st.floats(0, 1e6))
def test_about_is_close_and_has_at_most_two_parts(seconds):
    parts = re.findall(r"(\d+) (d|h|min|s)", about(seconds))
    total = sum(int(count) * {"d": 86400, "h": 3600, "min": 60, "s": 1}[unit] for count, unit in parts)
    assert 1 <= len(parts) <= 2 and abs(total - seconds) <= max(5, 0.1 * seconds)
