"""dataset: read like Ultralytics does, with file and line in errors."""

import contextlib

import numpy as np
import pytest
from edgeprune_device.errors import InputError
from edgeprune_device.vision import preprocess
from fakes import large
from PIL import Image

from edgeprune.console.progress import Reporter
from edgeprune.data import dataset

from ..small import dataset as make


def test_a_data_set_is_read(data):
    loaded = dataset.load(data)
    assert loaded.names == ("thing0", "thing1", "thing2")
    assert (len(loaded.train), len(loaded.val)) == (8, 4)
    label = data.parent / "labels" / "val" / f"{loaded.val[0].stem}.txt"
    labels = loaded.labels(loaded.val[0])
    np.testing.assert_allclose(np.sort(labels, axis=0), np.sort(np.loadtxt(label, ndmin=2), axis=0))
    truth = loaded.truth(loaded.val[0], (200, 100))
    row = loaded.labels(loaded.val[0])[0]
    np.testing.assert_allclose(truth[0, 1:3] + truth[0, 3:5], 2 * row[1:3] * (100, 200))
    assert loaded.boxes(loaded.val).sum() == sum(len(loaded.labels(p)) for p in loaded.val)


def test_labels_equal_those_of_ultralytics(data):
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import check_det_dataset

    theirs = YOLODataset(img_path=str(data.parent / "images/val"), data=check_det_dataset(str(data)), imgsz=96)
    ours = dataset.load(data)
    for label in theirs.labels:
        picture = next(p for p in ours.val if p.name == label["im_file"].rsplit("/", 1)[1])
        both = np.concatenate([label["cls"], label["bboxes"]], axis=1)
        np.testing.assert_allclose(np.unique(both, axis=0), ours.labels(picture), atol=1e-6)


def test_linked_images_keep_their_labels(data, tmp_path):
    """In data stores and hand-made splits, the labels are beside the link."""
    store = tmp_path / "store"
    store.mkdir()
    for picture in (data.parent / "images/val").iterdir():
        picture.rename(store / picture.name)
        picture.symlink_to(store / picture.name)
    loaded = dataset.load(data)
    assert loaded.boxes(loaded.val).sum() > 0


def test_a_list_of_images_with_a_root_is_read(data, tmp_path):
    listing = tmp_path / "some.txt"
    listing.write_text("".join(f"{p}\n" for p in sorted((data.parent / "images/train").iterdir())[:3]))
    data.write_text(
        f"path: {data.parent}\ntrain: {listing}\nval: [images/val, images/train]\nnames: [thing0, thing1, thing2]\n"
    )
    loaded = dataset.load(data)
    assert (len(loaded.train), len(loaded.val)) == (3, 12)
    assert loaded.overlap() == 3


def test_overlap_is_found_by_content(data):
    train = sorted((data.parent / "images/train").iterdir())
    assert dataset.load(data).overlap() == 0
    (data.parent / "images/val/copy.png").write_bytes(train[0].read_bytes())
    assert dataset.load(data).overlap() == 1


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_a_box_is_refused(data, split):
    for label in (data.parent / "labels" / split).iterdir():
        label.write_text("")
    with pytest.raises(InputError, match="no labelled box"):
        dataset.load(data)


def test_classes_that_differ_from_the_models_are_refused(data):
    loaded = dataset.load(data)
    dataset.check_names(loaded, ["Thing 0", "thing_1", "THING2"])
    with pytest.raises(InputError, match="found 3, expected the model's 2"):
        dataset.check_names(loaded, ["a", "b"])
    with pytest.raises(InputError, match=r"wrong name of class 1 \(found 'thing1', expected 'car' as in the model"):
        dataset.check_names(loaded, ["thing0", "car", "thing2"])


def test_hash_changes_with_the_labels(tmp_path):
    one, two = make(tmp_path / "a"), make(tmp_path / "b")
    assert dataset.load(one).sha256 == dataset.load(two).sha256
    label = next((tmp_path / "b/labels/train").iterdir())
    label.write_text("0 0.5 0.5 0.5 0.5\n")
    assert dataset.load(one).sha256 != dataset.load(two).sha256


def test_labels_of_a_linked_folder_are_read_beside_its_target(data, tmp_path):
    (tmp_path / "store").mkdir()
    for kind in ("images", "labels"):
        (data.parent / kind).rename(tmp_path / "store" / kind)
    (data.parent / "images").symlink_to(tmp_path / "store/images")
    assert dataset.load(data).boxes(dataset.load(data).val).sum() > 0


def test_a_model_with_a_single_class_needs_single_class_labels(data):
    with pytest.raises(InputError, match="trained with single_cls"):
        dataset.check_names(dataset.load(data), ["item"])


@pytest.mark.parametrize("split", ["train", "val"])
def test_too_large_images_are_refused_before_any_long_step(data, split):
    """OpenCV, which decodes for training, accepts a gigapixel."""
    for name in ("000.png", "001.png"):
        (data.parent / "images" / split / name).write_bytes(large.png(1, 170_000_000))
    with pytest.raises(InputError, match=rf"data\.yaml: {split}: 2 images are too large to decode; .*000\.png: "):
        dataset.load(data)
    with pytest.raises(InputError, match=rf"{split}: 2 images are too large to decode"):
        dataset.shapes(data, Reporter(quiet=True))
    with preprocess.limited(178):
        assert dataset.load(data).names


# -- damaged images and missing labels ---------------------------------------------------------------------------------
def cut(picture, count=2):
    """As `head -c -2` does."""
    with Image.open(picture) as image:
        image.convert("RGB").save(picture.with_suffix(".jpg"))
    picture.unlink()
    picture = picture.with_suffix(".jpg")
    picture.write_bytes(picture.read_bytes()[:-count])
    return picture


class Told:
    """A reporter that keeps its messages."""

    def __init__(self):
        self.said, self.warned = [], []
        self.say, self.warn = self.said.append, self.warned.append

    @contextlib.contextmanager
    def stage(self, name):
        yield lambda *progress: None


def pictures_of(data, split):
    return sorted((data.parent / "images" / split).iterdir())


def test_unusable_images_are_left_out_counted_and_named(data):
    one, two = cut(pictures_of(data, "train")[0]), cut(pictures_of(data, "train")[5])
    three = cut(pictures_of(data, "val")[1])
    told = Told()
    loaded = dataset.load(data, reporter=told)
    assert len(loaded.train) == 6 and not {one, two} & set(loaded.train)
    assert len(loaded.val) == 3 and three not in loaded.val
    assert loaded.damaged == {"train": [str(one), str(two)], "val": [str(three)]}
    first, second = told.warned
    assert f"train: 2 of 8 images are unusable: {one} (not an image that can be decoded (" in first
    assert two.name in first and "all steps skip these images (with strict=True, the command fails instead)" in first
    assert f"val: 1 of 4 images is unusable: {three}" in second


def test_strict_refuses_unusable_images(data):
    one = cut(pictures_of(data, "val")[0])
    with pytest.raises(
        InputError, match=rf"val: 1 image is unusable: {one} .*; remove or replace them, or leave out strict=True"
    ):
        dataset.load(data, strict=True)


def test_split_without_an_intact_image_is_refused(data):
    for picture in pictures_of(data, "train"):
        cut(picture)
    with pytest.raises(InputError, match=r"train: 8 of 8 images are unusable: .*, …; replace the images"):
        dataset.load(data)


def test_the_number_of_images_without_a_label_file_is_always_printed(data):
    told = Told()
    assert dataset.load(data, reporter=told).unlabelled == {"train": 0, "val": 0}
    assert told.said == [
        f"{data}: 8 training images (0 without a label file), 4 validation images (0 without a label file)"
    ]
    assert not told.warned


def test_missing_label_files_get_a_warning(data):
    picture = pictures_of(data, "train")[0]
    label = data.parent / "labels/train" / f"{picture.stem}.txt"
    label.unlink()
    told = Told()
    assert dataset.load(data, reporter=told).unlabelled == {"train": 1, "val": 0}
    assert told.said[0].startswith(f"{data}: 8 training images (1 without a label file)")
    assert told.warned == [
        f"{data}: train: 1 of 8 images have no label file and are treated as images without objects; put label files "
        f"where Ultralytics expects them, for example {label}"
    ]


def test_single_label_file_beside_its_image_gets_a_warning(tmp_path):
    data = make(tmp_path / "many", train=30)
    picture = pictures_of(data, "train")[0]
    label = data.parent / "labels/train" / f"{picture.stem}.txt"
    told = Told()
    content = label.read_text()
    label.unlink()
    dataset.load(data, reporter=told)
    assert not told.warned  # below a tenth
    picture.with_suffix(".txt").write_text(content)
    dataset.load(data, reporter=told)
    assert (
        " (1 of these images have a .txt file in the image folder, where it is ignored); put label files where "
        in told.warned[0]
    )


def test_images_and_labels_are_read_once(data, monkeypatch):
    """Shapes, contents and hashes come from the inspection."""
    loaded = dataset.load(data)
    monkeypatch.setattr(preprocess, "opened", None)
    assert [loaded.shape(p) for p in loaded.val] == [(96, 96)] * 4
    assert loaded.overlap() == 0 and loaded.sha256


def test_overlap_of_many_equal_images_takes_linear_time(data):
    train = pictures_of(data, "train")[0]
    for i in range(300):
        for split in ("train", "val"):
            (data.parent / "images" / split / f"copy{i}.png").write_bytes(train.read_bytes())
    loaded = dataset.load(data)
    assert loaded.overlap() == 300
