"""labels: the file of an image, and the rows in it, as Ultralytics reads them."""

import numpy as np
import pytest
from edgeprune_device.errors import InputError

from edgeprune.data import dataset, labels, memory

from ... import fuzz


def test_polygons_become_boxes(data):
    label = next((data.parent / "labels/val").iterdir())
    label.write_text("1 0.1 0.2 0.5 0.2 0.5 0.6 0.1 0.6\n")
    loaded = dataset.load(data)
    picture = next(p for p in loaded.val if p.stem == label.stem)
    np.testing.assert_allclose(loaded.labels(picture), [[1, 0.3, 0.4, 0.4, 0.4]])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("7 0.5 0.5 0.1 0.1", r"\.txt:2: class out of range \(found 7, expected 0 to 2\)"),
        ("-1 0.5 0.5 0.1 0.1", r"\.txt:2: class out of range \(found -1"),
        ("1.5 0.5 0.5 0.1 0.1", r"\.txt:2: class out of range \(found 1.5"),
        ("0 nan 0.5 0.1 0.1", r"\.txt:2: coordinate not finite"),
        ("0 0.5 inf 0.1 0.1", r"\.txt:2: coordinate not finite"),
        ("0 50 50 10 10", r"\.txt:2: coordinates out of range"),
        ("0 0.5 0.5 0 0.1", r"\.txt:2: box without area"),
        ("0 0.5 0.5", r"\.txt:2: wrong number of values \(found 3,"),
        ("car 0.5 0.5 0.1 0.1", r"\.txt:2: invalid label"),
    ],
)
def test_an_invalid_label_error_names_file_and_line(data, line, message):
    label = sorted((data.parent / "labels/val").iterdir())[0]
    label.write_text(f"0 0.5 0.5 0.1 0.1\n{line}\n")
    with pytest.raises(InputError, match=message):
        dataset.load(data)


def test_boxes_are_read_from_labels_of_poses(data):
    """Ultralytics does the same for detection; without kpt_shape the labels would be read as polygons."""
    from ultralytics.data.dataset import YOLODataset

    for label in (data.parent / "labels").rglob("*.txt"):
        label.write_text("1 0.5 0.5 0.2 0.4" + " 0.1 0.9" * 4 + "\n")
    data.write_text("train: images/train\nval: images/val\nnames: [a, b, c]\nkpt_shape: [4, 2]\n")
    loaded = dataset.load(data)
    np.testing.assert_array_equal(loaded.labels(loaded.val[0]), [[1, 0.5, 0.5, 0.2, 0.4]])
    from edgeprune.training.finetune import _write_data

    written = _write_data(loaded, data.parent)
    from ultralytics.data.utils import check_det_dataset

    theirs = YOLODataset(img_path=str(data.parent / "images/val"), data=check_det_dataset(str(written)), imgsz=96)
    np.testing.assert_allclose(theirs.labels[0]["bboxes"], [[0.5, 0.5, 0.2, 0.4]])


def test_boxes_and_polygons_in_one_file_are_refused(data):
    label = sorted((data.parent / "labels/val").iterdir())[0]
    label.write_text("0 0.5 0.5 0.1 0.1\n0 0.1 0.1 0.2 0.1 0.2 0.2\n")
    with pytest.raises(InputError, match="boxes and polygons in one file"):
        dataset.load(data)


def test_last_folder_named_images_becomes_labels():
    from pathlib import Path

    from ultralytics.data.utils import img2label_paths

    paths = ["/a/images/b/images/c.x.jpg", "/images/c.png", "/a/myimages/c.jpg", "/images.d/images/c.PNG", "/a/c.jpg"]
    assert [str(labels.path_of(Path(p))) for p in paths] == img2label_paths(paths)


def test_rows_are_cached_until_the_file_changes(data, monkeypatch):
    monkeypatch.setattr(memory, "_SETTLED_S", 0)
    picture = sorted((data.parent / "images/val").iterdir())[0]
    path = labels.path_of(picture)
    path.write_text("1 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.2 0.2\n1 0.5 0.5 0.2 0.2\n")
    first, missing = labels.read_all([picture], 3)
    assert first[picture].tolist() == [[0, 0.5, 0.5, 0.2, 0.2], [1, 0.5, 0.5, 0.2, 0.2]] and not missing
    read, calls = labels.read, []
    monkeypatch.setattr(labels, "read", lambda *args: calls.append(args) or read(*args))
    np.testing.assert_array_equal(labels.read_all([picture], 3)[0][picture], first[picture])
    assert not calls
    with pytest.raises(InputError, match="class out of range"):
        labels.read_all([picture], 1)
    path.write_text("2 0.5 0.5 0.2 0.2\n")
    assert labels.read_all([picture], 3)[0][picture].tolist() == [[2, 0.5, 0.5, 0.2, 0.2]]
    path.unlink()
    rows, missing = labels.read_all([picture], 3)
    assert rows[picture].shape == (0, 5) and missing == {picture}


@fuzz.counts(500, 100_000)
def test_any_label_file_is_read_or_refused_in_one_line(count, tmp_path):
    path = tmp_path / "a.txt"

    def attempt(mutant):
        path.write_bytes(mutant)
        rows = labels.read(path, 3)
        assert rows.shape[1:] == (5,) and np.isfinite(rows).all() and (rows[:, 3:] > 0).all()

    boxes = b"0 0.5 0.5 0.25 0.25\n2 0.125 0.5 0.0625 0.25\n"
    polygons = b"1 0.1 0.2 0.5 0.2 0.5 0.6 0.1 0.6\n"
    result = fuzz.run(attempt, fuzz.of_bytes(boxes, count, others=[polygons]))
    assert result["accepted"] and result["refused"]
