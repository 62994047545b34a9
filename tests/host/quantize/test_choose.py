"""choose: the calibration method with the best mAP."""

import pytest
from edgeprune_device.errors import InputError

from edgeprune import quantize
from edgeprune.quantize import choose


def test_choose_takes_the_best_and_reports_all():
    made = []
    scores = {"mse": 0.5, "max": 0.4, "percentile": 0.6, "entropy": float("nan")}
    choice = choose(lambda m: made.append(m) or m, scores.__getitem__)
    assert (choice.method, choice.model) == ("percentile", "percentile")
    assert made == list(quantize.METHODS) == list(choice.scores)
    assert choice.to_json()["scores"]["max"] == 0.4
    close = {"mse": 0.5, "max": 0.504, "percentile": 0.503, "entropy": 0.2}
    assert choose(lambda m: m, close.__getitem__).method == "mse"  # a difference within NOISE does not decide
    lost = {"mse": float("nan"), "max": 0.4, "percentile": 0.41, "entropy": 0.2}
    assert choose(lambda m: m, lost.__getitem__).method == "percentile"
    with pytest.raises(InputError, match="no score is a number"):
        choose(lambda m: m, lambda m: float("nan"))
