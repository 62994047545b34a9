import json
import time

import pytest
from edgeprune_device import schema
from edgeprune_device.benchmark import run
from edgeprune_device.benchmark.options import BenchmarkOptions
from edgeprune_device.errors import InputError
from edgeprune_device.vision import preprocess


def test_camera_counts_arrived_dropped_and_late_frames(bundle, monkeypatch):
    jsonschema = pytest.importorskip("jsonschema")
    from edgeprune_device.runtimes import null

    zeros = null.NullSession.infer
    monkeypatch.setattr(null.NullSession, "infer", lambda self, x: (time.sleep(0.025), zeros(self, x))[1])
    report = run.run_benchmark(bundle, BenchmarkOptions(runtime="null", fps=100, seconds=0.8, warmup_seconds=0.1))
    jsonschema.validate(json.loads(json.dumps(report.to_json())), schema.load("report"))
    camera = report.camera
    # A frame takes 25 ms and one arrives every 10 ms: each processed frame is late and costs one or two others.
    assert report.mode == "camera" and camera["fps"] == 100 and camera["deadline_ms"] == 10
    assert camera["processed"] == camera["age"]["samples"] == report.stages["infer"]["samples"]
    assert camera["dropped"] > camera["processed"] / 2 and camera["missed"] == camera["processed"]
    assert camera["arrived"] == camera["processed"] + camera["dropped"]
    assert camera["age"]["min_ms"] >= 25 and camera["age"]["p50_ms"] < 60
    slow = [text for text in report.warnings if "is slow" in text]
    assert len(slow) == 1 and slow[0].startswith("stage infer is slow: infer and post take ")


def test_slow_decoder_of_a_camera_is_named(bundle, monkeypatch):
    decode = preprocess.decode
    monkeypatch.setattr(preprocess, "decode", lambda *given: (time.sleep(0.02), decode(*given))[1])
    report = run.run_benchmark(bundle, BenchmarkOptions(runtime="null", fps=100, seconds=0.3, warmup_seconds=0.1))
    slow = [text for text in report.warnings if "is slow" in text]
    assert len(slow) == 1 and slow[0].startswith("stage decode is slow: decode and pre take ")
    assert report.camera["dropped"] > 0


def test_time_to_reserve_disk_space_is_not_charged_to_the_camera(bundle):
    class Slow:
        def reserve(self, size_bytes):
            assert size_bytes < 2 << 20  # the camera limits the number of frames, not the machine
            time.sleep(0.5)  # as long as five frames

    camera = run.run_benchmark(
        bundle, BenchmarkOptions(runtime="null", fps=10, seconds=0.5, warmup_seconds=0.1), spool=Slow()
    ).camera
    assert camera["dropped"] == 0 and camera["arrived"] == camera["processed"] and camera["age"]["max_ms"] < 100


def test_machine_that_keeps_up_drops_nothing(bundle):
    camera = run.run_benchmark(
        bundle, BenchmarkOptions(runtime="null", mode="camera", fps=10, seconds=0.5, warmup_seconds=0.1)
    ).camera
    assert camera["dropped"] == 0 and camera["missed"] == 0 and camera["arrived"] == camera["processed"]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"mode": "camera"}, "fps: missing; mode camera needs"),
        ({"mode": "single", "fps": 30}, "fps: applies only to mode camera .found mode single"),
        ({"source": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"fps": 1e-300}, "expected 0.1 to 1000"),
        ({"fps": 1e8}, "expected 0.1 to 1000"),
    ],
)
def test_modes_and_sources_that_do_not_fit_are_refused(bundle, change, words):
    with pytest.raises(InputError, match=words):
        run.run_benchmark(bundle, BenchmarkOptions(runtime="null", **change))
