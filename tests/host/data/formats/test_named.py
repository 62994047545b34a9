"""named: data sets of Ultralytics' own, looked for and never fetched."""

import pytest
from edgeprune_device.errors import InputError

from edgeprune.data import dataset


def test_a_name_of_ultralytics_own(data, tmp_path, monkeypatch):
    """Its pictures are looked for in the user's datasets_dir; where they are not, nothing is fetched."""
    import yaml
    from ultralytics import utils

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(utils, "DATASETS_DIR", tmp_path / "sets")
    for name in ("coco8.yaml", "coco8"):
        with pytest.raises(
            InputError, match=r"neither a folder.*its download: is not run here: python -c .*'coco8.yaml'"
        ):
            dataset.load(name)
    (tmp_path / "sets").mkdir()
    (data.parent).rename(tmp_path / "sets/coco8")
    assert len(dataset.load("coco8.yaml").train) == 8 and len(dataset.load("coco8").names) == 80
    assert yaml.safe_load((utils.ROOT / "cfg/datasets/coco8.yaml").read_text())["path"] == "coco8"
    with pytest.raises(InputError, match="no such file here, and no data set of that name"):
        dataset.load("coco9.yaml")
    with pytest.raises(InputError, match=r"elsewhere/coco8.yaml: no such file"):
        dataset.load("elsewhere/coco8.yaml")
