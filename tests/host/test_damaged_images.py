"""Damaged images in both splits: each verb leaves the same ones out, or refuses them, before anything long."""

import pytest
from edgeprune_device.errors import InputError
from PIL import Image

import edgeprune as ep
from edgeprune.console.progress import Reporter
from edgeprune.workflow import build
from edgeprune.workflow.job import Job

from .builds import request
from .small import dataset, save, short


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """(weights, data.yaml): one image of each split lacks its last two bytes, as after `head -c -2`."""
    folder = tmp_path_factory.mktemp("inputs")
    data = dataset(folder / "data", train=17, val=5)
    for split in ("train", "val"):
        picture = sorted((data.parent / "images" / split).iterdir())[1]
        jpeg = picture.with_suffix(".jpg")
        with Image.open(picture) as image:
            image.save(jpeg)
        picture.unlink()
        jpeg.write_bytes(jpeg.read_bytes()[:-2])
    return save(short(), folder / "best.pt"), data


VERBS = {
    "prune": lambda weights, data, **more: ep.prune(weights, ratio=0.1, data=data, criterion="l1", **more),
    "finetune": lambda weights, data, **more: ep.finetune(weights, data, epochs=1, batch=8, **more),
    "export": lambda weights, data, **more: ep.export(weights, data, precision=("fp32",), target="cpu", **more),
    "compare": lambda weights, data, **more: ep.compare(weights, data=data, rounds=1, pictures=1, **more),
    "analyze": lambda weights, data, **more: ep.analyze(weights, data, criterion="l1", **more),
}


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_leaves_them_out(damaged, verb, capsys):
    VERBS[verb](*damaged, imgsz=96)
    told = " ".join(capsys.readouterr().err.split())
    assert "train: 1 of 17 images is unusable: " in told and "val: 1 of 5 images is unusable: " in told
    assert "17 training images" not in told and "16 training images (0 without a label file)" in told


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_refuses_them_if_it_is_strict(damaged, verb):
    with pytest.raises(InputError, match=r"train: 1 image is unusable: .*001\.jpg"):
        VERBS[verb](*damaged, imgsz=96, strict=True)


def test_a_build_leaves_them_out_and_records_them(damaged, tmp_path):
    weights, data = damaged
    job = Job(request(weights.parent, weights=weights, data=data), tmp_path, Reporter(quiet=True))
    assert (len(job.data.train), len(job.data.val)) == (16, 4)
    left_out = [str(data.parent / "images" / split / "001.jpg") for split in ("train", "val")]
    assert job.data.damaged == {"train": left_out[:1], "val": left_out[1:]}
    with pytest.raises(InputError, match="1 image is unusable"):
        strict = request(weights.parent, weights=weights, data=data, strict=True)
        build.run_build(strict, tmp_path / "out", Reporter(quiet=True))
    assert not (tmp_path / "out").exists()
