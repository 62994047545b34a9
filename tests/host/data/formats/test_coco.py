"""coco: COCO's JSON as --data, in the usual layouts, with the same boxes as pycocotools."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from edgeprune_device import cli
from edgeprune_device.errors import InputError
from PIL import Image

from edgeprune.data import dataset, memory
from edgeprune.data.formats import coco

from .... import fuzz

#: The three classes in another order, with gaps and a 0, and a supercategory without members.
CATEGORIES = [
    {"id": 17, "name": "thing2", "supercategory": "things"},
    {"id": 0, "name": "thing0", "supercategory": "things"},
    {"id": 5, "name": "thing1", "supercategory": "things"},
]


def annotations(data, split, categories=CATEGORIES, **of_picture):
    """The split of an ordinary data set as COCO's JSON, with boxes in whole pixels, like the conftest's images."""
    by_name = {c["name"]: c["id"] for c in categories}
    images, boxes = [], []
    for number, picture in enumerate(sorted((data.parent / "images" / split).iterdir())):
        width, height = Image.open(picture).size
        images.append({"id": 100 + number, "file_name": picture.name, "width": width, "height": height, **of_picture})
        for line in (data.parent / "labels" / split / f"{picture.stem}.txt").read_text().splitlines():
            c, x, y, w, h = map(float, line.split())
            box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
            boxes.append({"id": len(boxes), "image_id": 100 + number, "category_id": by_name[f"thing{c:.0f}"],
                          "bbox": box, "iscrowd": 0, "area": box[2] * box[3], "segmentation": []})  # fmt: skip
    return {"images": images, "annotations": boxes, "categories": categories}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    coco._say.cache_clear()


def as_coco(data, root):
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        shutil.copytree(data.parent / "images" / split, root / "images" / f"{split}2017")
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(annotations(data, split)))
        (root / "annotations" / f"captions_{split}2017.json").write_text("{}")
    return root, root / "annotations/instances_train2017.json", root / "annotations/instances_val2017.json"


def as_roboflow(data, root):
    group = [{"id": 1, "name": "things", "supercategory": "none"}, *CATEGORIES]
    for split, folder in (("train", "train"), ("val", "valid")):
        shutil.copytree(data.parent / "images" / split, root / folder)
        (root / folder / "_annotations.coco.json").write_text(json.dumps(annotations(data, split, group)))
    return root, root / "train/_annotations.coco.json", root / "valid/_annotations.coco.json"


def as_a_pair(data, root):
    for split in ("train", "val"):
        shutil.copytree(data.parent / "images" / split, root / "images" / split)
        (root / f"{split}.json").write_text(json.dumps(annotations(data, split)))
    return root, root / "train.json", root / "val.json"


@pytest.mark.parametrize("layout", [as_coco, as_roboflow, as_a_pair])
def test_the_usual_layouts_give_the_same_data_set(data, tmp_path, layout):
    expected = dataset.load(data)
    for given in layout(data, tmp_path / "set"):
        loaded = dataset.load(given)
        assert loaded.names == expected.names and loaded.path == given
        assert (len(loaded.train), len(loaded.val)) == (8, 4)
        for ours, theirs in zip(loaded.train + loaded.val, expected.train + expected.val):
            assert ours.is_symlink() and ours.read_bytes() == theirs.read_bytes()
            np.testing.assert_allclose(loaded.labels(ours), expected.labels(theirs), atol=1e-6)
    assert len(list((tmp_path / "cache/edgeprune/data").iterdir())) == 1  # made once


def test_boxes_equal_those_of_pycocotools(data, tmp_path):
    """The data has fractional boxes, boxes at the edge, a crowd, an image without boxes, folders and duplicates in
    names.
    """
    COCO = pytest.importorskip("pycocotools.coco").COCO
    root, train, val = as_a_pair(data, tmp_path / "set")
    rng = np.random.default_rng(0)
    for file in (train, val):
        content = json.loads(file.read_text())
        for entry in content["annotations"]:
            x, y, w, h = np.array(entry["bbox"]) + rng.uniform(-1, 1, 4)
            entry["bbox"] = [x, y, w, h]
        content["annotations"][0]["bbox"] = [-3.3, 0.0, 20.7, 96.0]
        content["annotations"][1]["iscrowd"] = 1
        alone = content["images"][1]["id"]
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] != alone]
        for i, folder in ((2, "images/a"), (3, "images/b")):
            old = root / "images" / file.stem / content["images"][i]["file_name"]
            new = root / "images" / file.stem / folder / f"x{'.png' if i == 2 else '.PNG'}"
            new.parent.mkdir(parents=True)
            old.rename(new)
            content["images"][i]["file_name"] = str(new.relative_to(root / "images" / file.stem))
        file.write_text(json.dumps(content))
    loaded = dataset.load(root)
    for file, pictures in ((train, loaded.train), (val, loaded.val)):
        theirs = COCO(str(file))
        index = {c: i for i, c in enumerate(sorted(theirs.getCatIds()))}
        by_content = {p.resolve(): p for p in pictures}
        assert len(by_content) == len(theirs.imgs)
        for number, entry in theirs.imgs.items():
            size = np.array([entry["width"], entry["height"]] * 2)
            rows = [
                [index[a["category_id"]], *((np.array(a["bbox"]) + np.pad(a["bbox"][:2], (2, 0))) / size)]
                for a in theirs.loadAnns(theirs.getAnnIds(number, iscrowd=False))
            ]
            picture = by_content[(root / "images" / file.stem / entry["file_name"]).resolve()]
            truth = loaded.truth(picture, (entry["height"], entry["width"]))
            truth[:, 1:] /= size
            assert len(truth) == len(rows)
            if rows:
                order = [a[np.lexsort(a.round(4).T)] for a in (truth, np.array(rows))]
                np.testing.assert_allclose(*order, atol=1e-6, rtol=0)


def test_skipped_entries_are_reported_once(data, tmp_path, capsys):
    root, train, _ = as_a_pair(data, tmp_path / "set")
    content = json.loads(train.read_text())
    content["annotations"][0].update(iscrowd=1, segmentation={"counts": "abc", "size": [96, 96]})
    content["annotations"][1]["bbox"][2] = 0
    train.write_text(json.dumps(content))
    boxes = [dataset.load(root).boxes(dataset.load(root).train).sum() for _ in range(2)]
    assert boxes == [len(content["annotations"]) - 2] * 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[-1] for line in lines] == [
        "left out 1 boxes of crowds (iscrowd)",
        "left out 1 boxes without area",
    ]


def test_boxes_beyond_their_image_are_cut_at_its_edge(data, tmp_path, capsys):
    """Labelling tools write such boxes; Ultralytics would skip the whole image."""
    root, train, _ = as_a_pair(data, tmp_path / "set")
    content = json.loads(train.read_text())
    one = content["annotations"][0]
    # at most one in ten may be beyond its image
    spare = [{**one, "id": 1000 + i, "bbox": [i, 9, 30, 30]} for i in range(20)]
    content["annotations"] += spare
    content["annotations"][0]["bbox"] = [-10, 80, 50, 40]
    content["annotations"][1]["bbox"] = [100, 10, 50, 40]
    train.write_text(json.dumps(content))
    loaded = dataset.load(root)
    assert loaded.boxes(loaded.train).sum() == len(content["annotations"]) - 1
    boxes = np.concatenate([loaded.truth(p, (96, 96))[:, 1:] for p in loaded.train])
    assert any(np.allclose(box, [0, 80, 40, 96], atol=1e-3) for box in boxes)
    assert boxes.min() >= -1e-3 and boxes.max() <= 96.001
    lines = [line.split(": ")[-1] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["left out 1 parts of boxes beyond their image's edge", "left out 1 boxes outside their image"]


def test_changed_content_gives_another_data_set_and_the_users_folder_is_unchanged(data, tmp_path):
    root, train, _ = as_a_pair(data, tmp_path / "set")
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    one = dataset.load(root).sha256
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == before
    content = json.loads(train.read_text())
    content["annotations"].pop()
    train.write_text(json.dumps(content))
    assert dataset.load(root).sha256 != one
    assert len(list((tmp_path / "cache/edgeprune/data").iterdir())) == 2


def test_a_killed_conversion_leaves_nothing(data, tmp_path, monkeypatch):
    root, *_ = as_a_pair(data, tmp_path / "set")
    from ultralytics.data import converter

    monkeypatch.setattr(converter, "convert_coco", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        dataset.load(root)
    assert list((tmp_path / "cache/edgeprune/data").iterdir()) == []


def spoiled(where, **change):
    def spoil(content):
        content[where][0].update(change)

    return spoil


def corners(content):
    """x, y, x, y: a common misreading of bbox."""
    for entry in content["annotations"]:
        x, y, w, h = entry["bbox"]
        entry["bbox"] = [x, y, x + w, y + h]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: c.pop("images"), r"train.json: not COCO annotations"),
        (lambda c: c["images"].clear(), r"images: empty"),
        (lambda c: c["images"][0].pop("width"), r"images\[0\]: width: missing"),
        (spoiled("images", file_name="gone.png"), r"1 of 8 images are missing, the first is gone.png; searched: /"),
        (spoiled("images", width=100, height=50), r"found 96x96 px upright, expected 100x50"),
        (spoiled("images", id=101), r"images: duplicate id 101"),
        (spoiled("images", id=[1]), r"images\[0\]: id: invalid value"),
        (spoiled("annotations", category_id={}), r"annotations\[0\]: category_id: invalid value"),
        (spoiled("annotations", image_id=7), r"annotation 0: unknown image_id 7"),
        (spoiled("annotations", category_id=99), r"annotation 0: unknown category_id 99"),
        (spoiled("annotations", bbox=[1, 2]), r"annotation 0: invalid bbox \(expected four numbers"),
        (corners, r"annotation \d+: bbox .* extends beyond its image of 96x96 px .* bbox must be x, y, width, height"),
        (spoiled("categories", name="other"), r"category 17: different names .*found 'thing2' and 'other'"),
    ],
)  # fmt: skip
def test_invalid_entries_are_named(data, tmp_path, spoil, message):
    root, train, _ = as_a_pair(data, tmp_path / "set")
    content = json.loads(train.read_text())
    spoil(content)
    train.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        dataset.load(root)


def test_no_image_is_skipped_silently(data, tmp_path):
    """Hidden files are not found, and a duplicate entry would also be trained on as an image without boxes."""
    root, train, _ = as_a_pair(data, tmp_path / "set")
    content = json.loads(train.read_text())
    first, second = content["images"][:2]
    place = next(p for p in root.rglob(Path(first["file_name"]).name) if p.is_file()).parent
    (place / first["file_name"]).rename(place / ".hidden.png")
    first["file_name"] = ".hidden.png"
    content["images"].append({**second, "id": 9999})
    labelled = next(a for a in content["annotations"] if a["image_id"] == second["id"])
    content["annotations"].append({**labelled, "image_id": 9999, "bbox": [3, 4, 20, 30]})
    boxes = len(content["annotations"])
    train.write_text(json.dumps(content))
    loaded = dataset.load(root)
    assert len(loaded.train) == 8 and loaded.boxes(loaded.train).sum() == boxes
    assert "hidden.png" in {p.name for p in loaded.train}
    (place / ".hidden.png").rename(place / "hidden")
    first["file_name"] = "hidden"
    train.write_text(json.dumps(content))
    with pytest.raises(InputError, match="hidden: unsupported file name extension"):
        dataset.load(root)


def test_missing_files_are_named(data, tmp_path):
    root, train, val = as_a_pair(data, tmp_path / "set")
    (root / "instances.json").write_text("{}")
    with pytest.raises(InputError, match="unknown split"):
        dataset.load(root / "instances.json")
    (root / "val_small.json").write_text(val.read_text())
    with pytest.raises(InputError, match=r"several annotation files for val \(val.json, val_small.json\)"):
        dataset.load(root)
    assert dataset.load(train).boxes(dataset.load(train).val).sum() > 0  # val.json is named like train.json
    (root / "val_small.json").unlink()
    val.unlink()
    with pytest.raises(InputError, match="COCO annotations for val are missing; a data set needs train and val"):
        dataset.load(train)
    with pytest.raises(InputError, match=r"no data\.yaml and no COCO annotations"):
        dataset.load(root / "images")
    train.write_text("{")
    with pytest.raises(InputError, match=r"train\.json: cannot be read as JSON"):
        coco._part("train", train)


def test_finetune_accepts_coco_json(weights, data, tmp_path, capsys):
    root, *_ = as_roboflow(data, tmp_path / "set")
    words = [
        "finetune",
        "--weights",
        weights,
        "--data",
        root,
        "--epochs",
        "1",
        "--batch",
        "8",
        "--out",
        tmp_path / "t.pt",
    ]
    assert cli.main([str(w) for w in words]) == 0
    assert (tmp_path / "t.pt").is_file() and "mAP50-95" in capsys.readouterr().out


def test_image_names_that_differ_in_the_suffix_are_kept_apart(tmp_path):
    taken = set()
    assert [coco._flat(n, i, taken) for i, n in enumerate(["a.jpg", "a.png", "b/a.jpg", "../b/a.png", "/x/y.png"])] == [
        "a.jpg", "a-1.png", "b_a.jpg", "b_a-3.png", "x_y.png",
    ]  # fmt: skip


@fuzz.counts(150, 10_000)
def test_any_annotations_are_read_or_refused_in_one_line(count, data, tmp_path, monkeypatch):
    import ultralytics.data.converter  # before the process is forked  # noqa: F401

    monkeypatch.setattr(memory, "_SETTLED_S", 0)
    root, train, _ = as_coco(data, tmp_path / "coco")

    def attempt(mutant):
        train.write_bytes(mutant)
        dataset.load(root)

    result = fuzz.run(attempt, fuzz.of_json(json.loads(train.read_bytes()), count))
    assert result["accepted"] and result["refused"]


def test_annotations_are_parsed_once(data, tmp_path, monkeypatch):
    """Until they change, or an image is gone."""
    monkeypatch.setattr(memory, "_SETTLED_S", 0)
    root, train, _ = as_coco(data, tmp_path / "coco")
    first = coco.find(root)
    parse, parsed = coco._part, []
    monkeypatch.setattr(coco, "_part", lambda *args: parsed.append(args) or parse(*args))
    assert coco.find(root) == first and coco.find(train) == first and not parsed
    picture = next((root / "images/train2017").iterdir())
    picture.rename(tmp_path / picture.name)
    with pytest.raises(InputError, match=rf"1 of 8 images are missing, the first is {picture.name}"):
        coco.find(root)
    (tmp_path / picture.name).rename(picture)
    content = json.loads(train.read_text())
    del content["annotations"][0]
    train.write_text(json.dumps(content))
    assert coco.find(root) != first
