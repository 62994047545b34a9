"""pack: the contents of a bundle."""

import onnx
import pytest
from edgeprune_device.errors import InputError
from edgeprune_device.vision import preprocess
from fakes import large

from edgeprune.data.dataset import Dataset
from edgeprune.exporting import nms
from edgeprune.exporting.to_onnx import to_onnx
from edgeprune.workflow import pack


def test_files_with_different_output_formats_are_not_packed(small, tmp_path):
    raw, files = to_onnx(small, (64, 64)), {}
    for name, model in (("fp32", raw), ("fp16", nms.add(raw))):
        files[name] = tmp_path / f"{name}.onnx"
        onnx.save(model, files[name])
    with pytest.raises(
        InputError,
        match=r"files with different output or input formats .fp32: raw from float32-nchw, fp16: end2end from",
    ):
        contents = pack.Contents(
            name="a", target="cpu", task="detect", names=list("abc"), imgsz=64, models={"fp32": {}, "fp16": {}},
            files=files, engines={}, plans={}, evaluation=b"", described={}, lineage={},
        )  # fmt: skip
        pack.pack(tmp_path / "a.epb", contents)
    assert not (tmp_path / "a.epb").exists()


def test_an_onnx_file_with_external_data_is_not_packed(small, tmp_path):
    onnx.save(to_onnx(small, (64, 64)), tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0, location="w")
    contents = pack.Contents(
        name="a", target="cpu", task="detect", names=list("abc"), imgsz=64, models={"fp32": {}},
        files={"fp32": tmp_path / "m.onnx"}, engines={}, plans={}, evaluation=b"", described={}, lineage={},
    )  # fmt: skip
    with pytest.raises(
        InputError, match=r"m\.onnx: the tensor .* is stored in another file \(w\); export the model as one"
    ):
        pack.pack(tmp_path / "a.epb", contents)
    assert not (tmp_path / "a.epb").exists()


def test_a_bundle_holds_no_image_above_the_devices_default_limit(tmp_path):
    """The build's own limit may be higher, but the device would refuse the bundle."""
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes(large.png(9000, 8000) if name == "b.png" else large.png(64, 48))
    paths = sorted(tmp_path.iterdir())
    with preprocess.limited(178):
        assert pack.evaluation_pictures(Dataset(tmp_path, ("a",), (), tuple(paths))) == [0, 2]
        with pytest.raises(InputError, match="no validation image of at most 50 megapixels"):
            pack.evaluation_pictures(Dataset(tmp_path, ("a",), (), tuple(paths[1:2])))
