import re

import pytest
from edgeprune_device.benchmark.verdict import Evidence, Verdict, judge

QUIET = {
    "runtime": "trt",
    "samples": 1000,
    "settled": True,
    "interrupted": False,
    "failure": None,
    "other_load": {"before": 0.01, "during": 0.04},
    "beforehand": [],
    "drift": {"window_s": 60.0, "first_ms": 10.0, "last_ms": 10.2, "change": 0.02},
    "throttling": {"events": {"oc1": 0, "oc2": None}, "states": {"cpu": 0}},
    "camera": None,
}


def test_quiet_run_is_clean():
    assert judge(Evidence(**QUIET)).to_json() == {"state": "clean", "reasons": []}
    spike = {**QUIET, "throttling": {"events": {"oc3": 4}, "states": {}}}  # the report only warns of it
    assert judge(Evidence(**spike)).state == "clean"
    nothing = {**QUIET, "drift": None, "throttling": None, "other_load": {"before": None, "during": None}}
    assert judge(Evidence(**nothing)).state == "clean"


@pytest.mark.parametrize(
    "change, state, words",
    [
        ({"runtime": "null"}, "invalid", "runs no model.*; to measure the model, choose another runtime"),
        ({"samples": 63}, "invalid", "only 63 frames"),
        ({"other_load": {"before": 0.3, "during": None}}, "degraded", "30% before the run"),
        ({"other_load": {"before": 0.3, "during": 0.7}}, "invalid", "30% before the run, 70% during the run"),
        ({"settled": False}, "degraded", "did not settle"),
        ({"interrupted": True}, "degraded", "interrupted.*; measure again until the end"),
        (
            {"interrupted": True, "failure": "the camera is gone"},
            "degraded",
            "the run failed before its end: the camera is gone",
        ),
        ({"beforehand": ["the governor is powersave"]}, "degraded", "powersave"),
        (
            {"drift": {"window_s": 60.0, "first_ms": 10.0, "last_ms": 12.0, "change": 0.2}},
            "degraded",
            r"\+20\.0%.*; measure again once",
        ),
        ({"drift": {"window_s": 60.0, "first_ms": 10.0, "last_ms": 8.0, "change": -0.2}}, "degraded", "-20"),
        (
            {"throttling": {"events": {"oc1": 3, "oc3": 1}, "states": {}}},
            "degraded",
            r"under-voltage \(oc1\) 3 times; use a stronger",
        ),
        (
            {"throttling": {"events": {"gpu": 2}, "states": {"gpu": 1}}},
            "degraded",
            "by heat: gpu 2 times; improve the cooling$",
        ),
        ({"throttling": {"events": {}, "states": {"gpu": 1}}}, "degraded", "by heat: gpu; improve the cooling$"),
        ({"camera": {"arrived": 100, "late": 30}}, "degraded", "30 of 100"),
    ],
)
def test_each_reason_alone_decides_the_state(change, state, words):
    verdict = judge(Evidence(**{**QUIET, **change}))
    assert verdict.state == state and len(verdict.reasons) == 1
    assert re.search(words, verdict.reasons[0])


def test_worst_reason_decides():
    verdict = Verdict()
    verdict.add("invalid", "a")
    verdict.add("degraded", "b")
    assert verdict.state == "invalid" and verdict.reasons == ["a", "b"]
