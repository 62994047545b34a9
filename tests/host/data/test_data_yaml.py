"""data_yaml: its classes and images as Ultralytics reads them, and messages that name the cause."""

from pathlib import Path

import pytest
from edgeprune_device.errors import InputError

from edgeprune.data import data_yaml, dataset, memory

from ... import fuzz

SPLITS = "train: images/train\nval: images/val\n"


def test_roboflows_layout_is_read(data):
    """../train/images is relative to the folder of data.yaml, as in Ultralytics."""
    for split in ("train", "val"):
        (data.parent / split).mkdir()
        (data.parent / "images" / split).rename(data.parent / split / "images")
        (data.parent / "labels" / split).rename(data.parent / split / "labels")
    data.write_text("train: ../train/images\nval: ../val/images\nnames: [thing0, thing1, thing2]\n")
    loaded = dataset.load(data)
    assert (len(loaded.train), len(loaded.val)) == (8, 4) and loaded.boxes(loaded.train).sum() > 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n", "not a data.yaml"),
        ("train: [\n", "cannot be read as YAML"),
        ("train: images/train\nval: images/val\n", "names: missing"),
        (
            "train: images/train\nval: images/val\nnames: {0: a, 2: b}\n",
            r"\(found \[0, 2\], expected 0, 1, … without gaps",
        ),
        ("train: images/train\nval: images/val\nnames: {0: a, x: b}\n", r"\(found \[0, 'x'\], expected"),
        ("train: images/train\nnames: [a, b, c]\n", "val: missing"),
        ("train: images/nowhere\nval: images/val\nnames: [a, b, c]\n", "no such folder of images or .txt list"),
        ("train: labels/train\nval: images/val\nnames: [a, b, c]\n", "no images"),
    ],
)
def test_an_invalid_yaml_is_refused(data, content, message):
    data.write_text(content)
    with pytest.raises(InputError, match=message):
        dataset.load(data)


def test_missing_images_are_counted(data, tmp_path):
    (tmp_path / "list.txt").write_text("/nowhere/a.png\n/nowhere/b.png\n")
    data.write_text(f"train: {tmp_path / 'list.txt'}\nval: images/val\nnames: [a, b, c]\n")
    with pytest.raises(InputError, match=r"2 of 2 images are missing, the first is /nowhere/a.png"):
        dataset.load(data)


def test_download_script_of_a_data_yaml_is_not_run(data, tmp_path):
    """If the validation images are missing, Ultralytics runs it as Python or as a shell script."""
    from edgeprune.training.finetune import _write_data

    marker = tmp_path / "ran"
    text, script = data.read_text(), f"download: open({str(marker)!r}, 'w')\n"
    data.write_text(text + script)
    assert "\ndownload:" not in _write_data(dataset.load(data), tmp_path).read_text()
    for name in ("data.yaml", "x');import os;('.yaml"):
        bad = data.with_name(name)
        bad.write_text(text.replace("val: images/val", "val: images/gone") + script)
        with pytest.raises(InputError, match="edgeprune does not run the download: script") as caught:
            dataset.load(bad)
        assert ("python -c" in str(caught.value)) == (name == "data.yaml")
    assert not marker.exists()


def test_a_relative_root_is_resolved_like_ultralytics_or_beside_the_file(data, tmp_path, monkeypatch):
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
    with pytest.raises(InputError, match=r"no such folder of images or \.txt list"):
        dataset.load(elsewhere)
    (tmp_path / "beside.yaml").write_text(text)
    assert dataset.load(tmp_path / "beside.yaml").train[0].parent == data.parent / "images/train"


def test_a_list_is_resolved_like_ultralytics(data, tmp_path, monkeypatch):
    from ultralytics.data.dataset import YOLODataset

    names = sorted(p.name for p in (data.parent / "images/train").iterdir())[:4]
    listing = data.parent / "some.txt"
    lines = [f"./images/train/{names[0]}", f"data/images/train/{names[1]}", "", "# a remark", "README.md",
             str(data.parent / "images/train" / names[2])]  # fmt: skip
    listing.write_text("\ufeff" + "\n".join(lines))
    data.write_text("train: some.txt\nval: images/val\nnames: [thing0, thing1, thing2]\n")
    monkeypatch.chdir(tmp_path)
    loaded = dataset.load(data)
    assert [p.name for p in loaded.train] == names[:3]
    theirs = YOLODataset(img_path=str(listing), data={"names": dict(enumerate("abc")), "nc": 3}, imgsz=96)
    assert sorted(Path(f).name for f in theirs.im_files) == names[:3]
    monkeypatch.chdir("/")
    listing.write_text(f"images/train/{names[3]}\n")  # relative to the list's folder, not to the working folder
    assert [p.name for p in dataset.load(data).train] == names[3:]


def test_hidden_files_are_not_images(data):
    (data.parent / "images/train/._000.jpg").write_bytes(b"a Mac's")
    (data.parent / "images/train/.thumbs").mkdir()
    (data.parent / "images/train/.thumbs/000.png").write_bytes(b"")
    assert len(dataset.load(data).train) == 8


def test_unsupported_image_formats_are_refused(data):
    (data.parent / "images/train/000.HEIC").write_bytes(b"")
    with pytest.raises(InputError, match=r"1 of 9 images have an unsupported format.*000.HEIC; convert them to JPEG"):
        dataset.load(data)


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        ("nc: 3", ("class_0", "class_1", "class_2")),
        ("nc: '3'\nnames: [a, b, c]", ("a", "b", "c")),
        ("names: {'0': a, 1: b, '2': c}", ("a", "b", "c")),
    ],
)
def test_class_names_equal_those_of_ultralytics(data, classes, names):
    from ultralytics.data.utils import check_det_dataset

    data.write_text(f"train: images/train\nvalidation: images/val\n{classes}\n")
    assert dataset.load(data).names == names
    assert tuple(check_det_dataset(str(data))["names"].values()) == names


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("nc: 2\nnames: [a, b, c]", r"nc: not the number of names \(found 2, expected 3\)"),
        ("nc: 1.5", r"nc: invalid value \(found 1.5, expected the number of classes"),
        ("channels: 1\nnames: [a, b, c]", "channels: unsupported value .found 1"),
        ("kpt_shape: 17\nnames: [a, b, c]", "kpt_shape: invalid value .found 17"),
        ("path: 5\nnames: [a, b, c]", r"path: invalid value \(found 5, expected a path"),
    ],
)
def test_unsupported_yaml_entries_are_refused(data, more, message):
    data.write_text(f"train: images/train\nval: images/val\n{more}\n")
    with pytest.raises(InputError, match=message):
        dataset.load(data)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("names: 0:car", r"names: no space after a colon \(found '0:car'\)"),
        ("names:\n  0:car\n  1:bus", r"names: no space after a colon \(found '0:car 1:bus'\)"),
        ("names: car", r"names: invalid value \(found 'car', expected a list or numbered lines"),
        ("names: [a, [b, c]]", r"names: invalid name of a class .found a list of 2"),
        ("names: []", r"names: missing or empty"),
        ("nc: -3", r"nc: invalid value \(found -3,"),
        ("nc: 10000000000", r"nc: invalid value \(found 10000000000,"),
        ("nc: [1]\nnames: [a]", r"nc: invalid value \(found a list of 1,"),
        ("names: [2020-13-45]", r"cannot be read as YAML: month must be"),
        ('names: [a]\npath: "a\\0b"', r"path: invalid value \(found 'a\\x00b', expected a path"),
        ("names: [a]\npath: ~nobody-here/x", r"path: '~nobody-here/x': "),
    ],
)
def test_yaml_error_names_the_cause(data, more, message):
    data.write_text(f"{SPLITS}{more}\n")
    with pytest.raises(InputError, match=message):
        dataset.load(data)


def test_classes_without_names_are_not_compared_by_name(data):
    data.write_text(f"{SPLITS}nc: 3\n")
    loaded = dataset.load(data)
    dataset.check_names(loaded, ["class_0", "class_1", "class_2"])
    with pytest.raises(InputError, match=r"names: missing, .* add names: \[car, bus, van\]") as caught:
        dataset.check_names(loaded, ["car", "bus", "van"])
    assert "class_0" not in str(caught.value)


@pytest.mark.parametrize("line", ["names: [für, b, c]", "names: {0: für, 1: b, 2: c}", "path: für\nnames: [a, b, c]"])
def test_the_error_for_a_file_that_is_not_utf8_names_the_encoding(data, line):
    data.write_bytes(f"{SPLITS}{line}\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"(names|path): cannot be read \(line 3 is not UTF-8, perhaps Latin-1\)"):
        dataset.load(data)


def test_a_comment_may_be_latin1_and_the_file_utf16(data):
    text = data.read_text()
    data.write_bytes(text.encode() + "# für\n".encode("latin-1"))
    assert len(dataset.load(data).train) == 8
    data.write_bytes(text.encode("utf-16"))
    assert len(dataset.load(data).train) == 8


def test_the_root_and_the_folders_that_were_searched_are_named(data, tmp_path, monkeypatch):
    from ultralytics import utils

    monkeypatch.setattr(utils, "DATASETS_DIR", tmp_path / "sets")
    monkeypatch.chdir(tmp_path)
    data.write_text(f"path: gone\n{SPLITS}names: [a, b, c]\n")
    with pytest.raises(InputError) as caught:
        dataset.load(data)
    searched = [tmp_path / "sets/gone/images/train", tmp_path / "gone/images/train", data.parent / "gone/images/train"]
    assert f"; path: is 'gone'; searched: {', '.join(map(str, searched))}" in str(caught.value)


def test_a_folder_of_other_files_is_refused_at_once(data, tmp_path, monkeypatch):
    """As /proc, or /: their listing has no end."""
    monkeypatch.setattr(data_yaml, "_MANY", 50)
    other = tmp_path / "other"
    (other / "more").mkdir(parents=True)
    (other / "more/again").symlink_to(other)  # a circle ends
    for i in range(60):
        (other / f"{i}.log").touch()
    data.write_text(f"train: {other}\nval: images/val\nnames: [a, b, c]\n")
    with pytest.raises(InputError, match=r"holds more than 50 files but only 0 images"):
        dataset.load(data)


def test_a_folder_that_links_to_itself_is_listed_once(data):
    (data.parent / "images/train/again").symlink_to(data.parent / "images/train")
    assert len(dataset.load(data).train) == 8


def test_message_about_nested_aliases_stays_short(data):
    lists = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    for field in ("names", "nc", "path", "train", "val", "channels", "kpt_shape"):
        data.write_text(f"{lists}names: [a, b, c]\n{SPLITS}{field}: *a11\n")
        with pytest.raises(InputError) as caught:
            dataset.load(data)
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("folder", ["/proc", "/sys", "/proc/self"])
def test_virtual_folder_of_the_kernel_is_refused(tmp_path, folder):
    path = tmp_path / "data.yaml"
    path.write_text(f"train: {folder}\nval: {folder}\nnames: [a]\n")
    with pytest.raises(InputError, match=r"train: /(proc|sys).* is a virtual folder of the kernel"):
        dataset.load(path)


@pytest.mark.parametrize("line", ['train: "a\\0b"', 'train: images\npath: "a\\0b"', 'train: ["images", "\\0"]'])
def test_path_with_a_nul_is_refused(tmp_path, line):
    path = tmp_path / "data.yaml"
    path.write_text(f"{line}\nval: images\nnames: [a]\n")
    with pytest.raises(InputError, match="expected a path"):
        dataset.load(path)


def test_links_to_a_folder_above_do_not_loop(tmp_path):
    images = tmp_path / "images"
    (images / "inner").mkdir(parents=True)
    (images / "inner" / "back").symlink_to(images)
    (images / "inner" / ".hidden.png").write_bytes(b"")
    (images / "inner" / "a.PNG").write_bytes(b"")
    (images / "linked").symlink_to(tmp_path / "store")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "b.jpg").write_bytes(b"")
    assert data_yaml._below(images, "x") == [str(images / "inner" / "a.PNG"), str(images / "linked" / "b.jpg")]


@fuzz.counts(150, 20_000)
def test_any_data_yaml_is_read_or_refused_in_one_line(count, data, tmp_path, monkeypatch):
    import ultralytics.utils  # before the process is forked  # noqa: F401

    monkeypatch.setattr(memory, "_SETTLED_S", 0)
    monkeypatch.chdir(tmp_path)
    content = {
        "path": str(data.parent), "train": ["images/train"], "val": "images/val", "nc": 3, "kpt_shape": [4, 2],
        "names": {"0": "thing0", "1": "thing1", "2": "thing2"},
    }  # fmt: skip

    def attempt(mutant):
        data.write_bytes(mutant)
        dataset.load(data)

    text = data.read_bytes()
    result = fuzz.run(attempt, fuzz.of_json(content, count)) + fuzz.run(attempt, fuzz.of_bytes(text, count))
    assert result["accepted"] and result["refused"]
