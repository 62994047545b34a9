"""named: Ultralytics' own data sets, which are found locally and never downloaded."""

import pytest
from edgeprune_device.errors import InputError

from edgeprune.data import dataset


def test_an_ultralytics_name_is_found_in_its_datasets_dir(data, tmp_path, monkeypatch):
    """The images are expected in the user's datasets_dir; if they are missing, nothing is downloaded."""
    import yaml
    from ultralytics import utils

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(utils, "DATASETS_DIR", tmp_path / "sets")
    for name in ("coco8.yaml", "coco8"):
        with pytest.raises(
            InputError,
            match=r"no such folder of images.*edgeprune does not run the download: script; .*python -c .*'coco8.yaml'",
        ):
            dataset.load(name)
    (tmp_path / "sets").mkdir()
    (data.parent).rename(tmp_path / "sets/coco8")
    assert len(dataset.load("coco8.yaml").train) == 8 and len(dataset.load("coco8").names) == 80
    assert yaml.safe_load((utils.ROOT / "cfg/datasets/coco8.yaml").read_text())["path"] == "coco8"
    with pytest.raises(InputError, match="no such file here, and no Ultralytics data set of that name"):
        dataset.load("coco9.yaml")
    with pytest.raises(InputError, match=r"elsewhere/coco8.yaml: no such file"):
        dataset.load("elsewhere/coco8.yaml")
