"""dataset: read as Ultralytics reads it, refused with file and line where it is wrong."""

from pathlib import Path

import numpy as np
import pytest
from edgeprune_device.errors import InputError

from edgeprune.data import dataset

from ..small import dataset as make


def test_read(data):
    found = dataset.load(data)
    assert found.names == ("thing0", "thing1", "thing2")
    assert (len(found.train), len(found.val)) == (8, 4)
    label = data.parent / "labels" / "val" / f"{found.val[0].stem}.txt"
    np.testing.assert_allclose(np.sort(found.labels(found.val[0]), axis=0), np.sort(np.loadtxt(label, ndmin=2), axis=0))
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


def test_the_download_of_a_data_yaml_is_never_run(data, tmp_path):
    """Ultralytics runs it as Python, or as a shell script, where the validation pictures are missing."""
    from edgeprune.training.finetune import _write_data

    marker = tmp_path / "ran"
    text, script = data.read_text(), f"download: open({str(marker)!r}, 'w')\n"
    data.write_text(text + script)
    assert "\ndownload:" not in _write_data(dataset.load(data), tmp_path).read_text()
    for name in ("data.yaml", "x');import os;('.yaml"):
        bad = data.with_name(name)
        bad.write_text(text.replace("val: images/val", "val: images/gone") + script)
        with pytest.raises(InputError, match="its download: is not run here") as caught:
            dataset.load(bad)
        assert ("python -c" in str(caught.value)) == (name == "data.yaml")
    assert not marker.exists()


def test_a_relative_root_is_ultralytics_or_the_files_own(data, tmp_path, monkeypatch):
    from ultralytics import utils
    from ultralytics.data.utils import check_det_dataset

    monkeypatch.setattr(utils, "DATASETS_DIR", tmp_path / "sets")
    (tmp_path / "elsewhere").mkdir()
    elsewhere = tmp_path / "elsewhere/data.yaml"
    text = "path: data\ntrain: images/train\nval: images/val\nnames: [thing0, thing1, thing2]\n"
    elsewhere.write_text(text)
    monkeypatch.chdir(tmp_path)  # data/ is here
    assert dataset.load(elsewhere).train[0].parent == data.parent / "images/train"
    assert check_det_dataset(str(elsewhere))["train"] == str(data.parent / "images/train")
    monkeypatch.chdir("/")
    with pytest.raises(InputError, match="neither a folder"):
        dataset.load(elsewhere)
    (tmp_path / "beside.yaml").write_text(text)
    assert dataset.load(tmp_path / "beside.yaml").train[0].parent == data.parent / "images/train"


def test_a_list_as_ultralytics_reads_it(data, tmp_path, monkeypatch):
    from ultralytics.data.dataset import YOLODataset

    names = sorted(p.name for p in (data.parent / "images/train").iterdir())[:4]
    listing = data.parent / "some.txt"
    lines = [f"./images/train/{names[0]}", f"data/images/train/{names[1]}", "", "# a remark", "README.md",
             str(data.parent / "images/train" / names[2])]  # fmt: skip
    listing.write_text("\ufeff" + "\n".join(lines))
    data.write_text("train: some.txt\nval: images/val\nnames: [thing0, thing1, thing2]\n")
    monkeypatch.chdir(tmp_path)
    found = dataset.load(data)
    assert [p.name for p in found.train] == names[:3]
    theirs = YOLODataset(img_path=str(listing), data={"names": dict(enumerate("abc")), "nc": 3}, imgsz=96)
    assert sorted(Path(f).name for f in theirs.im_files) == names[:3]
    monkeypatch.chdir("/")
    listing.write_text(f"images/train/{names[3]}\n")  # not from here: from the list's folder
    assert [p.name for p in dataset.load(data).train] == names[3:]


def test_a_folder_that_is_a_link_has_its_labels_in_the_store(data, tmp_path):
    (tmp_path / "store").mkdir()
    for kind in ("images", "labels"):
        (data.parent / kind).rename(tmp_path / "store" / kind)
    (data.parent / "images").symlink_to(tmp_path / "store/images")
    assert dataset.load(data).boxes(dataset.load(data).val).sum() > 0


def test_hidden_files_are_no_pictures(data):
    (data.parent / "images/train/._000.jpg").write_bytes(b"a Mac's")
    (data.parent / "images/train/.thumbs").mkdir()
    (data.parent / "images/train/.thumbs/000.png").write_bytes(b"")
    assert len(dataset.load(data).train) == 8


def test_pictures_nobody_here_decodes(data):
    (data.parent / "images/train/000.HEIC").write_bytes(b"")
    with pytest.raises(InputError, match=r"1 of 9 pictures are of a kind.*000.HEIC; make them JPEG or PNG"):
        dataset.load(data)


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        ("nc: 3", ("class_0", "class_1", "class_2")),
        ("nc: '3'\nnames: [a, b, c]", ("a", "b", "c")),
        ("names: {'0': a, 1: b, '2': c}", ("a", "b", "c")),
    ],
)
def test_classes_as_ultralytics_names_them(data, classes, names):
    from ultralytics.data.utils import check_det_dataset

    data.write_text(f"train: images/train\nvalidation: images/val\n{classes}\n")
    assert dataset.load(data).names == names
    assert tuple(check_det_dataset(str(data))["names"].values()) == names


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("nc: 2\nnames: [a, b, c]", "nc: says 2 classes, names: lists 3"),
        ("nc: 1.5", r"nc: 1.5 is not a number of classes"),
        ("channels: 1\nnames: [a, b, c]", "pictures of 1 channels"),
        ("kpt_shape: 17\nnames: [a, b, c]", "kpt_shape: 17 is not"),
        ("path: 5\nnames: [a, b, c]", "path: 5 is not a path"),
    ],
)
def test_what_a_yaml_says_and_we_cannot(data, more, message):
    data.write_text(f"train: images/train\nval: images/val\n{more}\n")
    with pytest.raises(InputError, match=message):
        dataset.load(data)


def test_labels_of_poses_give_their_boxes(data):
    """As Ultralytics reads them for detection; without kpt_shape they would pass for polygons."""
    from ultralytics.data.dataset import YOLODataset

    for label in (data.parent / "labels").rglob("*.txt"):
        label.write_text("1 0.5 0.5 0.2 0.4" + " 0.1 0.9" * 4 + "\n")
    data.write_text("train: images/train\nval: images/val\nnames: [a, b, c]\nkpt_shape: [4, 2]\n")
    found = dataset.load(data)
    np.testing.assert_array_equal(found.labels(found.val[0]), [[1, 0.5, 0.5, 0.2, 0.4]])
    from edgeprune.training.finetune import _write_data

    written = _write_data(found, data.parent)
    from ultralytics.data.utils import check_det_dataset

    theirs = YOLODataset(img_path=str(data.parent / "images/val"), data=check_det_dataset(str(written)), imgsz=96)
    np.testing.assert_allclose(theirs.labels[0]["bboxes"], [[0.5, 0.5, 0.2, 0.4]])


def test_boxes_and_polygons_in_one_file(data):
    label = sorted((data.parent / "labels/val").iterdir())[0]
    label.write_text("0 0.5 0.5 0.1 0.1\n0 0.1 0.1 0.2 0.1 0.2 0.2\n")
    with pytest.raises(InputError, match="holds boxes and polygons"):
        dataset.load(data)


def test_a_model_of_a_single_class(data):
    with pytest.raises(InputError, match="trained with single_cls"):
        dataset.check_names(dataset.load(data), ["item"])
