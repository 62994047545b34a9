"""timing: what is said of the times that were taken."""

import numpy as np
import pytest

from edgeprune.measuring.timing import Timing


def test_stages_become_medians_and_rates():
    stages = {"decode": [1.0, 1.0, 2.0], "pre": [1.0, 2.0, 1.0], "infer": [4.0, 5.0, 9.0], "post": [1.0, 1.0, 1.0]}
    said = Timing({k: np.array(v) for k, v in stages.items()}, 1.23456, 2, "ort").to_json()
    assert said["stages_ms"] == {"decode": 1.0, "pre": 1.0, "infer": 5.0, "post": 1.0}
    latency = said["latency_ms"]
    assert latency["p50"] == 5.0 and latency["p90"] == pytest.approx(8.2) and latency["samples"] == stages["infer"]
    assert (latency["speedup"], latency["rounds"], latency["threads"], latency["runtime"]) == (1.235, 3, 2, "ort")
    assert said["fps_inference_only"] == 200.0
    assert said["fps_end_to_end"] == 111.1  # 1000 / 9: the median of whole pictures, not the sum of medians


def test_what_was_not_timed_is_null():
    said = Timing({"infer": np.array([2.0, 4.0])}, 1.0, 1, "ort").to_json()
    assert said["stages_ms"] is None and said["fps_end_to_end"] is None
    assert said["fps_inference_only"] == 333.3
