"""checks: invalid builds are refused before anything is written."""

import pytest
from edgeprune_device.errors import InputError

from edgeprune.console.progress import Reporter
from edgeprune.data import samples
from edgeprune.data.dataset import load
from edgeprune.workflow import build

from ..builds import request
from ..small import dataset


def test_missing_boxes_for_int8_are_reported_before_training(inputs, tmp_path):
    given = dataset(tmp_path / "data", train=16)
    _, select = samples.split(load(given).train, 96)
    for picture in select:
        (given.parent / "labels" / "train" / f"{picture.stem}.txt").write_text("")
    asked = request(inputs, data=given)
    with pytest.raises(InputError, match="no labelled box in the 4 training images that select the INT8 calibration"):
        build.run_build(asked, tmp_path / "out", Reporter(quiet=True))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 3}, "steps"),
        ({"target": "jetson-orni"}, "jetson-orin"),
        ({"criterion": "energie"}, "energy"),
        ({"precision": ("fp16",)}, "fp32"),
        ({"precision": ("fp32", "int4")}, "int4"),
        ({"imgsz": 100}, "multiple of 32"),
        ({"epochs": 0}, "epochs"),
        ({"max_drop": -1}, "max_drop"),
    ],
)
def test_invalid_options_write_nothing(inputs, tmp_path, change, message):
    out = tmp_path / "out"
    with pytest.raises(InputError, match=message):
        build.run_build(request(inputs, **change), out, Reporter(quiet=True))
    assert not out.exists()
