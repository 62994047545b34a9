"""choose: the calibration method that measures best."""

import pytest
from edgeprune_device.errors import InputError

from edgeprune import quantize
from edgeprune.quantize import choose


def test_choose_takes_the_best_and_reports_all():
    made = []
    scores = {"mse": 0.5, "max": 0.4, "percentile": 0.6, "entropy": float("nan")}
    found = choose(lambda m: made.append(m) or m, scores.__getitem__)
    assert (found.method, found.model) == ("percentile", "percentile")
    assert made == list(quantize.METHODS) == list(found.scores)
    assert found.to_json()["scores"]["max"] == 0.4
    close = {"mse": 0.5, "max": 0.504, "percentile": 0.503, "entropy": 0.2}
    assert choose(lambda m: m, close.__getitem__).method == "mse"  # what differs by noise does not decide
    lost = {"mse": float("nan"), "max": 0.4, "percentile": 0.41, "entropy": 0.2}
    assert choose(lambda m: m, lost.__getitem__).method == "percentile"
    with pytest.raises(InputError, match="no calibration method"):
        choose(lambda m: m, lambda m: float("nan"))
