"""dataset: the scenes as a data set, written completely or not at all."""

import cv2
import numpy as np
import pytest
from edgeprune_device.errors import InputError

from edgeprune.demo import NAMES, dataset, render, write_dataset


def test_seed_ranges_do_not_overlap():
    firsts = sorted([dataset.WEIGHTS_SEED, dataset.TUNE_SEED, dataset.VAL_SEED, dataset.CHECK_SEED])
    assert (np.diff(firsts) >= dataset.RANGE).all()


def test_dataset_opens_in_ultralytics_and_can_be_moved(tmp_path):
    from ultralytics.data import YOLODataset
    from ultralytics.data.utils import check_det_dataset

    first = write_dataset(tmp_path / "a", 4, 3)
    assert "path" not in first.read_text()
    moved = (tmp_path / "a").rename(tmp_path / "b") / "data.yaml"
    info = check_det_dataset(str(moved))
    assert tuple(info["names"].values()) == NAMES
    total = 0
    for split, count in (("train", 4), ("val", 3)):
        opened = YOLODataset(img_path=info[split], data=info, imgsz=320, augment=False)
        assert len(opened) == count
        total += sum(len(label["cls"]) for label in opened.labels)
    assert total == sum(dataset.boxes(moved).values())


def test_images_and_labels_match_their_seed(tmp_path):
    data = write_dataset(tmp_path / "set", 1, 1, first_train_seed=5)
    picture, boxes = render(5)
    stored = cv2.imread(str(data.parent / "images/train/scene-00000005.jpg"))[..., ::-1]
    assert np.abs(stored.astype(int) - picture).mean() < 6
    rows = np.loadtxt(data.parent / "labels/train/scene-00000005.txt", ndmin=2)
    np.testing.assert_allclose(rows, boxes, atol=1e-6)


def test_number_of_processes_does_not_change_the_files(tmp_path):
    files = [write_dataset(tmp_path / str(n), 3, 1, processes=n).parent for n in (1, 2)]
    names = [sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file()) for root in files]
    assert names[0] == names[1] and len(names[0]) == 10
    assert all((files[0] / name).read_bytes() == (files[1] / name).read_bytes() for name in names[0])


def test_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    real, calls = dataset._write_scene, []

    def third_fails(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(dataset, "_write_scene", third_fails)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "set", 2, 2)
    assert list(tmp_path.iterdir()) == []
    write_dataset(tmp_path / "set", 2, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_complete_dataset_is_reused_and_a_different_one_replaced(tmp_path, monkeypatch):
    data = write_dataset(tmp_path / "set", 1, 1)
    before = data.stat().st_ino
    with monkeypatch.context() as patch:
        patch.setattr(dataset, "render", None)
        assert write_dataset(tmp_path / "set", 1, 1) == data
    assert data.stat().st_ino == before
    write_dataset(tmp_path / "set", 2, 1)
    assert len(list((tmp_path / "set/images/train").iterdir())) == 2


def test_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(InputError, match="holds other files"):
        write_dataset(tmp_path, 1, 1)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_overlapping_seeds_are_refused(tmp_path):
    with pytest.raises(InputError, match="overlap"):
        write_dataset(tmp_path / "set", 10, 10, first_train_seed=100, first_val_seed=105)
    assert list(tmp_path.iterdir()) == []
