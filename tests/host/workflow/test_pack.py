"""pack: what goes into a bundle."""

import onnx
import pytest
from edgeprune_device.errors import InputError

from edgeprune.exporting import nms
from edgeprune.exporting.to_onnx import to_onnx
from edgeprune.workflow import pack


def test_files_that_answer_in_different_ways_are_no_bundle(small, tmp_path):
    raw, files = to_onnx(small, (64, 64)), {}
    for name, model in (("fp32", raw), ("fp16", nms.add(raw))):
        files[name] = tmp_path / f"{name}.onnx"
        onnx.save(model, files[name])
    with pytest.raises(InputError, match="mean different things"):
        pack.pack(
            tmp_path / "a.epb", name="a", target="cpu", names=list("abc"), imgsz=64, models={"fp32": {}, "fp16": {}},
            files=files, engines={}, plans={}, evaluation=b"", described={}, lineage={},
        )  # fmt: skip
    assert not (tmp_path / "a.epb").exists()
