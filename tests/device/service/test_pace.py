from array import array
from types import SimpleNamespace

import pytest
from edgeprune_device.service import pace, protocol

CAMERA = SimpleNamespace(live=True, fps=25.0)  # a frame every 40 ms


@pytest.fixture
def cells():
    return memoryview(array("q", [0] * protocol._CELLS))


def ms(*times):
    return [int(time * 1e6) for time in times]


def run(cells, source, frames):
    notes = []
    made = pace.Pace(cells, source, lambda note: notes.append(note))
    for frame in frames:
        made.add(frame)
    return notes


def test_times_are_typical_of_the_latest_frames_without_the_first(cells):
    assert pace.read(cells) is None
    run(cells, CAMERA, [ms(900, 900, 900, 900, 3600), *[ms(5, 2, 20, 1, 30)] * 20])
    assert pace.read(cells) == {
        "stages_ms": {"decode": 5, "pre": 2, "infer": 20, "post": 1}, "age_ms": 30, "slow_stage": None,
    }  # fmt: skip
    run(cells, CAMERA, [ms(5, 2, 40, 1, 60)] * 200)
    assert pace.read(cells)["stages_ms"]["infer"] == pytest.approx(40, abs=0.1)
    assert pace.read(cells)["age_ms"] == pytest.approx(60, abs=0.1)


def test_slow_stage_is_named_in_the_status_and_once_in_a_note(cells):
    notes = run(cells, CAMERA, [ms(50, 2, 20, 1, 90)] * 500)
    assert pace.read(cells)["slow_stage"] == "decode"
    assert notes == ["stage decode is slow (50.0 ms; the camera gives a frame every 40.0 ms), so frames are dropped"]


def test_slow_stage_is_gone_when_the_stage_is_fast_again_or_the_source_is_reopened(cells):
    slow, fast = [ms(5, 2, 60, 1, 90)] * 128, [ms(5, 2, 20, 1, 30)] * 128
    run(cells, CAMERA, [*slow, *fast])
    assert pace.read(cells)["slow_stage"] is None
    run(cells, CAMERA, slow)
    assert pace.read(cells)["slow_stage"] == "infer"
    run(cells, CAMERA, [])
    assert pace.read(cells)["slow_stage"] is None


@pytest.mark.parametrize("source", [SimpleNamespace(live=False, fps=25.0), SimpleNamespace(live=True, fps=None)])
def test_no_stage_is_slow_for_a_source_that_waits_or_has_no_known_rate(cells, source):
    assert run(cells, source, [ms(50, 2, 20, 1, 90)] * 500) == [] and pace.read(cells)["slow_stage"] is None
