"""figures: three digits and a unit, and changes in words."""

import pytest

from edgeprune.comparison.page import figures


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [(999, "bytes", "999 B"), (6_520_112, "bytes", "6.52 MB"), (8_700_000_000, "count", "8.70 G"),
     (0.4121, "ms", "0.412 ms"), (12.345, "ms", "12.3 ms"), (99.96, "ms", "100 ms"), (5248, "int", "5,248"),
     (float("nan"), "map", "not measured"), (True, "int", "not measured"), (None, "fps", "not measured")],
)  # fmt: skip
def test_figures_have_three_digits_and_a_unit(value, unit, words):
    assert figures.show(value, unit) == words


def test_change_states_its_direction_in_words():
    assert figures.share(200, 50, "smaller", "larger") == figures.FigureChange("75 % smaller", "better")
    assert figures.share(50, 60, "smaller", "larger") == figures.FigureChange("20 % larger", "worse")
    assert figures.share(1000, 1000.1, "fewer", "more").text == "unchanged"
    assert figures.share(0, 5, "less", "more") is None
    assert figures.accuracy(0.25, 0.2499).text == "±0.000"
    assert figures.times(0.5) == figures.FigureChange("0.50× as fast", "worse")
