import json

import pytest
from edgeprune_device import schema
from edgeprune_device.errors import InputError
from edgeprune_device.trust.manifest import Manifest

A = {"name": "model.fp32.onnx", "offset_bytes": 0, "size_bytes": 10, "sha256": "a" * 64}
B = {"name": "evaluation.zip", "offset_bytes": 10, "size_bytes": 5, "sha256": "b" * 64}


@pytest.fixture
def data(manifest):
    return {"schema_version": 1, **manifest, "payloads": [A, B]}


def test_round_trip_and_schema(data):
    jsonschema = pytest.importorskip("jsonschema")
    parsed = Manifest.from_json(data)
    again = json.loads(json.dumps(parsed.to_json()))
    jsonschema.validate(again, schema.load("manifest"))
    assert again == {**data, "counter": 0} and Manifest.from_json(again) == parsed
    assert parsed.imgsz == (64, 64) and parsed.size_bytes == 15


def test_a_manifest_without_a_task_is_of_detection(data):
    """Bundles of former releases always name detection; the field may be absent."""
    del data["task"]
    assert Manifest.from_json(data).task == "detect"
    with pytest.raises(InputError, match="task"):
        Manifest.from_json({**data, "task": "semantic"})


@pytest.mark.parametrize(
    "change, word",
    [
        ({"schema_version": 2}, "unknown schema_version .found 2, expected 1"),
        ({"payloads": [A, {**B, "offset_bytes": 9}]}, "expected 10"),
        ({"payloads": [A, {**B, "offset_bytes": 11}]}, "expected 10"),
        ({"payloads": [{**A, "size_bytes": -1}, B]}, "at least 0"),
        ({"payloads": [{**A, "size_bytes": 10**30}, B]}, "at most"),
        ({"payloads": [A, B, {**A, "offset_bytes": 15}]}, "duplicate name"),
        ({"payloads": [{**A, "name": "../evil"}, B]}, "name"),
        ({"payloads": [{**A, "sha256": "A" * 64}, B]}, "sha256"),
        ({"payloads": [A]}, "missing payload evaluation.zip"),
        ({"models": {"fp32": {"payload": None}}}, "nor a reason"),
        ({"models": {"fp8": {"payload": None, "reason": "x"}}}, "fp8"),
        ({"models": {"fp32": {"payload": "model.fp32.onnx", "map50": 1.5}}}, "at most 1"),
        ({"models": []}, "object"),
        ({"models": {"fp16": {"payload": "model.fp32.onnx", "fp32_nodes": ["a\nb"]}}}, "fp32_nodes"),
        ({"models": {"fp16": {"payload": "model.fp32.onnx", "fp32_nodes": "a"}}}, "fp32_nodes"),
        ({"classes": []}, "at least 1"),
        ({"classes": ["a\x1b[2J"]}, "classes"),
        ({"imgsz": [640]}, "at least 2"),
        ({"imgsz": [640.5, 640]}, "integer"),
        ({"imgsz": [True, 640]}, "boolean"),
        ({"name": "a/b"}, "name"),
        ({"name": "a\n"}, "name"),
        ({"task": "segment"}, "task"),
        ({"created": "yesterday"}, "created"),
        ({"letterbox": {"pad": 0, "stride": 32}}, "pad"),
        ({"evaluation": {"payload": None}}, "evaluation"),
        ({"nms": {"conf": 2, "iou": 0.7, "max_det": 300}}, "conf"),
        ({"surplus": 1}, "surplus"),
        ({"counter": -1}, "at least 0"),
        ({"counter": 1.0}, "integer"),
        ({"counter": True}, "boolean"),
        ({"counter": 2**53}, "at most"),
    ],
)
def test_malformed_manifest_is_refused(data, change, word):
    with pytest.raises(InputError, match=word) as caught:
        Manifest.from_json({**data, **change}, "a.epb: manifest")
    assert str(caught.value).startswith("a.epb: manifest") and "\n" not in str(caught.value)


@pytest.mark.parametrize("key", sorted(schema.load("manifest")["required"]))
def test_every_required_field_is_required(data, key):
    del data[key]
    with pytest.raises(InputError, match=key):
        Manifest.from_json(data)


def test_layout_is_stated_only_if_it_is_not_that_of_earlier_manifests(data):
    assert Manifest.from_json(data).layout == "float32-nchw" and "layout" not in Manifest.from_json(data).to_json()
    stated = Manifest.from_json({**data, "layout": "uint8-nhwc", "output": "best"})
    assert stated.to_json()["layout"] == "uint8-nhwc" and Manifest.from_json(stated.to_json()) == stated
    with pytest.raises(InputError, match="layout"):
        Manifest.from_json({**data, "layout": "uint8-nchw"})
