import pytest
from edgeprune_device.engine import Engine, Request
from edgeprune_device.errors import InputError


def test_invalid_request_is_refused():
    for change in ({"precision": "fp8"}, {"library": "tensorflow"}, {"workspace_bytes": 10**6 - 1}):
        with pytest.raises(InputError):
            Request(b"", **{"precision": "fp32", **change})
    assert Request(b"", "fp32", workspace_bytes=10**6).workspace_bytes == 10**6  # --workspace 1
    assert Request(b"", "fp16").name == "the fp16 model"


def test_metadata_without_adoption_is_still_read():
    data = Engine("TensorRT 10.3.0", "0" * 64, "fp16", (), 0, 1.0, 2.0, 3, "1" * 64).to_json()
    assert data.pop("adopted_from") is None
    assert Engine.from_json(data).adopted_from is None
