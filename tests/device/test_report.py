import json

import pytest
from edgeprune_device import bench, schema
from edgeprune_device.accuracy import Accuracy, ClassAccuracy
from edgeprune_device.environment import Environment
from edgeprune_device.errors import InputError
from edgeprune_device.report import BenchReport


def stage(ms, samples=2):
    ns = [int(ms * 1e6)] * samples
    return {**bench.summary(ns), "samples_ns": ns}


@pytest.fixture
def report():
    per_class = (ClassAccuracy(0, "person", 5, 0.75, 0.5, 5, 0.5), ClassAccuracy(1, "car", 0, None, None, 0, None))
    return BenchReport(
        created="2026-11-22T23:40:00Z",
        edgeprune_version="0.1.0",
        bundle={
            "name": "tiny",
            "sha256": "a" * 64,
            "target": "cpu",
            "key_fingerprint": "SHA256:x",
            "trusted": True,
        },
        precision="fp32",
        model={"payload": "model.fp32.onnx", "sha256": "b" * 64, "size_bytes": 1_500_000},
        runtime={"name": "ort", "description": "onnxruntime 1", "threads": None},
        environment=Environment.read(),
        settings={"seconds": 1.0},
        warmup={"frames": 9, "seconds": 0.5, "settled": True},
        load_ms=12.0,
        first_inference_ms=20.0,
        stages={"infer": stage(10), "end_to_end": stage(12.5)},
        fps_end_to_end=80.0,
        fps_inference=100.0,
        accuracy=Accuracy(0.75, 0.5, None, 3, 5, 0, per_class),
        host_accuracy={"map50": 0.75, "map50_95": 0.52, "small_map50_95": None},
        map50_95_delta=-0.02,
        peak_rss_bytes=123_000_000,
        warnings=("busy",),
    )


def test_round_trip_and_schema(report):
    jsonschema = pytest.importorskip("jsonschema")
    data = json.loads(json.dumps(report.to_json()))
    jsonschema.validate(data, schema.load("report"))
    assert BenchReport.from_json(data) == report


def test_table_reads_well(report):
    text = report.table()
    assert "80.0 end to end, 100.0 inference only" in text and "warning: busy" in text
    rows = {line.split("  ")[0]: line.split() for line in text.splitlines() if line}
    assert rows["mAP50-95"][1:] == ["0.5000", "0.5200", "-0.0200"]
    assert rows["small mAP50-95"][2:] == ["not", "measured"] * 3
    assert rows["end to end"][3:6] == ["12.50", "-", "-"]  # two samples make no p90
    assert "car" not in rows and max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    "change, word",
    [
        ({"schema_version": 2}, "not known here"),
        ({"stages": {}}, "end_to_end"),
        ({"fps_end_to_end": -1}, "at least 0"),
        ({"precision": "fp8"}, "fp8"),
        ({"accuracy": {}}, "missing"),
        ({"warnings": ["a\x1b[2J"]}, "warnings"),
    ],
)
def test_malformed(report, change, word):
    with pytest.raises(InputError, match=word):
        BenchReport.from_json({**report.to_json(), **change}, "r.json")


@pytest.mark.parametrize("key", schema.load("report")["required"])
def test_every_required_field_is_required(report, key):
    data = report.to_json()
    del data[key]
    with pytest.raises(InputError, match=key):
        BenchReport.from_json(data)
