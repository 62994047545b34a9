"""dataset: read as Ultralytics reads it, refused with file and line where it is wrong."""

import numpy as np
import pytest
from edgeprune_device.errors import InputError

from edgeprune import dataset

from .conftest import dataset as make


def test_read(data):
    found = dataset.load(data)
    assert found.names == ("thing0", "thing1", "thing2")
    assert (len(found.train), len(found.val)) == (8, 4)
    label = data.parent / "labels" / "val" / f"{found.val[0].stem}.txt"
    np.testing.assert_allclose(
        np.sort(found.labels(found.val[0]), axis=0), np.sort(np.loadtxt(label, ndmin=2), axis=0)
    )
    truth = found.truth(found.val[0], (200, 100))
    row = found.labels(found.val[0])[0]
    np.testing.assert_allclose(truth[0, 1:3] + truth[0, 3:5], 2 * row[1:3] * (100, 200))
    assert found.boxes(found.val).sum() == sum(len(found.labels(p)) for p in found.val)


def test_as_ultralytics_does(data):
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import check_det_dataset

    theirs = YOLODataset(img_path=str(data.parent / "images/val"), data=check_det_dataset(str(data)), imgsz=96)
    ours = dataset.load(data)
    for label in theirs.labels:
        picture = next(p for p in ours.val if p.name == label["im_file"].rsplit("/", 1)[1])
        both = np.concatenate([label["cls"], label["bboxes"]], axis=1)
        np.testing.assert_allclose(np.unique(both, axis=0), ours.labels(picture), atol=1e-6)


def test_pictures_that_are_links_keep_their_labels(data, tmp_path):
    """As data stores and hand-made splits have them: the labels lie beside the link."""
    store = tmp_path / "store"
    store.mkdir()
    for picture in (data.parent / "images/val").iterdir():
        picture.rename(store / picture.name)
        picture.symlink_to(store / picture.name)
    found = dataset.load(data)
    assert found.boxes(found.val).sum() > 0


def test_roboflows_layout(data):
    """../train/images is meant from the folder of data.yaml, as Ultralytics reads it."""
    for split in ("train", "val"):
        (data.parent / split).mkdir()
        (data.parent / "images" / split).rename(data.parent / split / "images")
        (data.parent / "labels" / split).rename(data.parent / split / "labels")
    data.write_text("train: ../train/images\nval: ../val/images\nnames: [thing0, thing1, thing2]\n")
    found = dataset.load(data)
    assert (len(found.train), len(found.val)) == (8, 4) and found.boxes(found.train).sum() > 0


def test_a_list_of_pictures_and_a_root(data, tmp_path):
    listing = tmp_path / "some.txt"
    listing.write_text("".join(f"{p}\n" for p in sorted((data.parent / "images/train").iterdir())[:3]))
    data.write_text(
        f"path: {data.parent}\ntrain: {listing}\nval: [images/val, images/train]\nnames: [thing0, thing1, thing2]\n"
    )
    found = dataset.load(data)
    assert (len(found.train), len(found.val)) == (3, 12)
    assert found.overlap() == 3


def test_overlap_is_found_by_content(data):
    train = sorted((data.parent / "images/train").iterdir())
    assert dataset.load(data).overlap() == 0
    (data.parent / "images/val/copy.png").write_bytes(train[0].read_bytes())
    assert dataset.load(data).overlap() == 1


def test_polygons_become_boxes(data):
    label = next((data.parent / "labels/val").iterdir())
    label.write_text("1 0.1 0.2 0.5 0.2 0.5 0.6 0.1 0.6\n")
    found = dataset.load(data)
    picture = next(p for p in found.val if p.stem == label.stem)
    np.testing.assert_allclose(found.labels(picture), [[1, 0.3, 0.4, 0.4, 0.4]])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("7 0.5 0.5 0.1 0.1", r"\.txt:2: class 7 is out of range 0..2"),
        ("-1 0.5 0.5 0.1 0.1", r"\.txt:2: class -1 is out of range"),
        ("1.5 0.5 0.5 0.1 0.1", r"\.txt:2: class 1.5 is out of range"),
        ("0 nan 0.5 0.1 0.1", r"\.txt:2: a coordinate is not finite"),
        ("0 0.5 inf 0.1 0.1", r"\.txt:2: a coordinate is not finite"),
        ("0 50 50 10 10", r"\.txt:2: coordinates must be normalised"),
        ("0 0.5 0.5 0 0.1", r"\.txt:2: a box without area"),
        ("0 0.5 0.5", r"\.txt:2: 3 values"),
        ("car 0.5 0.5 0.1 0.1", r"\.txt:2: not numbers"),
    ],
)
def test_a_bad_label_names_file_and_line(data, line, message):
    label = sorted((data.parent / "labels/val").iterdir())[0]
    label.write_text(f"0 0.5 0.5 0.1 0.1\n{line}\n")
    with pytest.raises(InputError, match=message):
        dataset.load(data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n", "not a data.yaml"),
        ("train: [\n", "cannot be read as YAML"),
        ("train: images/train\nval: images/val\n", "names: is missing"),
        ("train: images/train\nval: images/val\nnames: {0: a, 2: b}\n", "without gaps"),
        ("train: images/train\nval: images/val\nnames: {0: a, x: b}\n", "without gaps"),
        ("train: images/train\nnames: [a, b, c]\n", "val: is missing"),
        ("train: images/nowhere\nval: images/val\nnames: [a, b, c]\n", "neither a folder"),
        ("train: labels/train\nval: images/val\nnames: [a, b, c]\n", "no pictures"),
    ],
)
def test_a_bad_yaml(data, content, message):
    data.write_text(content)
    with pytest.raises(InputError, match=message):
        dataset.load(data)


def test_missing_pictures_are_counted(data, tmp_path):
    (tmp_path / "list.txt").write_text("/nowhere/a.png\n/nowhere/b.png\n")
    data.write_text(f"train: {tmp_path / 'list.txt'}\nval: images/val\nnames: [a, b, c]\n")
    with pytest.raises(InputError, match=r"2 of 2 pictures are missing, the first: /nowhere/a.png"):
        dataset.load(data)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_a_box(data, split):
    for label in (data.parent / "labels" / split).iterdir():
        label.write_text("")
    with pytest.raises(InputError, match="no labelled box"):
        dataset.load(data)


def test_classes_that_are_not_the_models(data):
    found = dataset.load(data)
    dataset.check_names(found, ["Thing 0", "thing_1", "THING2"])
    with pytest.raises(InputError, match="3 classes, but the model has 2"):
        dataset.check_names(found, ["a", "b"])
    with pytest.raises(InputError, match="class 1 is 'thing1', but the model calls it 'car'"):
        dataset.check_names(found, ["thing0", "car", "thing2"])


def test_the_hash_follows_the_labels(tmp_path):
    one, two = make(tmp_path / "a"), make(tmp_path / "b")
    assert dataset.load(one).sha256 == dataset.load(two).sha256
    label = next((tmp_path / "b/labels/train").iterdir())
    label.write_text("0 0.5 0.5 0.5 0.5\n")
    assert dataset.load(one).sha256 != dataset.load(two).sha256
