"""timing: the figures that are computed from recorded times."""

import numpy as np
import pytest

from edgeprune.measuring.timing import Timing


def test_timing_reports_medians_and_rates():
    stages = {"decode": [1.0, 1.0, 2.0], "pre": [1.0, 2.0, 1.0], "infer": [4.0, 5.0, 9.0], "post": [1.0, 1.0, 1.0]}
    figures = Timing({k: np.array(v) for k, v in stages.items()}, 1.23456, 2, "ort").to_json()
    assert figures["stages_ms"] == {"decode": 1.0, "pre": 1.0, "infer": 5.0, "post": 1.0}
    latency = figures["latency_ms"]
    assert latency["p50"] == 5.0 and latency["p90"] == pytest.approx(8.2) and latency["samples"] == stages["infer"]
    assert (latency["speedup"], latency["rounds"], latency["threads"], latency["runtime"]) == (1.235, 3, 2, "ort")
    assert figures["fps_inference_only"] == 200.0
    assert figures["fps_end_to_end"] == 111.1  # 1000 / 9: the median of whole images, not the sum of medians


def test_untimed_figures_are_null():
    figures = Timing({"infer": np.array([2.0, 4.0])}, 1.0, 1, "ort").to_json()
    assert figures["stages_ms"] is None and figures["fps_end_to_end"] is None
    assert figures["fps_inference_only"] == 333.3
