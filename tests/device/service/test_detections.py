import json
import math
import time

import numpy as np
import pytest
from edgeprune_device import clock, schema, strict_json
from edgeprune_device.service import detections
from hypothesis import given
from hypothesis import strategies as st

TIMES = (1_310_000, 2_070_000, 11_450_000, 380_000, 17_420_000)  # decode, pre, infer, post, age; ns
BOX = [411.24, 97.5, 502.8, 160.06, 0.87141, 1]


def spoken(lines, boxes, name="a.jpg", at_ns=None, shape=(720, 1280, 3)):
    at_ns = time.monotonic_ns() if at_ns is None else at_ns
    line = lines(17, name, at_ns, shape, TIMES, np.array(boxes, np.float32).reshape(-1, 6))
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    return schema.check("detections", strict_json.loads(line, "line"), "line")


@pytest.fixture
def lines():
    return detections.Lines("9f86d081884c7d65", ["person", "car"])


def test_line_matches_the_documented_example(lines):
    line = spoken(lines, [BOX])
    assert line["frame"] == 17 and line["source"] == "a.jpg" and (line["width"], line["height"]) == (1280, 720)
    assert line["ms"] == {"decode": 1.31, "pre": 2.07, "infer": 11.45, "post": 0.38} and line["age_ms"] == 17.42
    assert line["detections"] == [{"class": 1, "name": "car", "score": 0.8714, "box": [411.2, 97.5, 502.8, 160.1]}]


def test_nan_and_unknown_classes_are_left_out(lines):
    wrong = [[math.nan, 0, 1, 1, 0.5, 0], [0, 0, math.inf, 1, 0.5, 0], [0, 0, 1, 1, math.inf, 0]]
    wrong += [[0, 0, 1, 1, 0.5, 2], [0, 0, 1, 1, 0.5, -1]]
    assert [d["name"] for d in spoken(lines, [*wrong, BOX])["detections"]] == ["car"]


@given(st.text(max_size=20), st.lists(st.text(max_size=9), min_size=2, max_size=3))
def test_any_file_and_class_name_gives_valid_json(name, classes):
    try:
        name.encode()
    except UnicodeEncodeError:
        name = "?"
    classes = [text.encode("utf-8", "replace").decode() for text in classes]
    line = spoken(detections.Lines("9f86d081884c7d65", classes), [BOX], name)
    assert line["source"] == name and line["detections"][0]["name"] == classes[1]


def test_file_name_with_invalid_unicode_is_replaced(lines):
    assert spoken(lines, [], "b\udcff.jpg")["source"] == "b?.jpg"


def test_times_are_those_of_the_frame_and_null_if_the_clock_is_not_set(lines, monkeypatch):
    now_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    at = time.monotonic_ns() - 2 * 10**9
    assert spoken(lines, [], at_ns=at)["boot_s"] == pytest.approx(now_s - 2, abs=0.2)
    for state, known in ((False, False), (None, False), (True, True)):
        monkeypatch.setattr(clock, "synchronized", lambda state=state: state)
        stamp = spoken(detections.Lines("9f86d081884c7d65", ["a"]), [], at_ns=at)["time"]
        assert (stamp is not None) == known
    shown = time.time() - 2
    assert stamp[:16] in (time.strftime("%Y-%m-%dT%H:%M", time.gmtime(shown + d)) for d in (-1, 0, 1))


def test_seconds_of_the_wall_clock_advance(monkeypatch):
    monkeypatch.setattr(clock, "synchronized", lambda: True)
    stamps = detections._Clock()
    begin = time.monotonic_ns()
    texts = [json.loads(stamps.at(begin + i * 250_000_000)[0]) for i in range(12)]
    assert texts == sorted(set(texts)) and len({text[-5:-1] for text in texts}) <= 8
