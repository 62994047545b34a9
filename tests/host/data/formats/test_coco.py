"""COCO's JSON as --data: the layouts there are, read as pycocotools reads them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from edgeprune_device import cli
from edgeprune_device.errors import InputError
from PIL import Image

from edgeprune.data import dataset
from edgeprune.data.formats import coco

#: Of the three classes, in an order that is not theirs, with gaps and a 0; and a group that nobody is of.
CATEGORIES = [
    {"id": 17, "name": "thing2", "supercategory": "things"},
    {"id": 0, "name": "thing0", "supercategory": "things"},
    {"id": 5, "name": "thing1", "supercategory": "things"},
]


def annotations(data, split, categories=CATEGORIES, **of_picture):
    """The split of an ordinary data set as COCO's JSON; boxes as whole pixels, as the conftest draws them."""
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
def test_the_usual_layouts_are_the_same_data_set(data, tmp_path, layout):
    expected = dataset.load(data)
    for given in layout(data, tmp_path / "set"):
        found = dataset.load(given)
        assert found.names == expected.names and found.path == given
        assert (len(found.train), len(found.val)) == (8, 4)
        for ours, theirs in zip(found.train + found.val, expected.train + expected.val):
            assert ours.is_symlink() and ours.read_bytes() == theirs.read_bytes()
            np.testing.assert_allclose(found.labels(ours), expected.labels(theirs), atol=1e-6)
    assert len(list((tmp_path / "cache/edgeprune/data").iterdir())) == 1  # made once


def test_boxes_are_those_that_pycocotools_reads(data, tmp_path):
    """With boxes between pixels and at the edge, a crowd, a picture without boxes, folders in names, names twice."""
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
    found = dataset.load(root)
    for file, pictures in ((train, found.train), (val, found.val)):
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
            truth = found.truth(picture, (entry["height"], entry["width"]))
            truth[:, 1:] /= size
            assert len(truth) == len(rows)
            if rows:
                order = [a[np.lexsort(a.round(4).T)] for a in (truth, np.array(rows))]
                np.testing.assert_allclose(*order, atol=1e-6, rtol=0)


def test_what_is_left_out_is_said_once(data, tmp_path, capsys):
    root, train, _ = as_a_pair(data, tmp_path / "set")
    content = json.loads(train.read_text())
    content["annotations"][0].update(iscrowd=1, segmentation={"counts": "abc", "size": [96, 96]})
    content["annotations"][1]["bbox"][2] = 0
    train.write_text(json.dumps(content))
    boxes = [dataset.load(root).boxes(dataset.load(root).train).sum() for _ in range(2)]
    assert boxes == [len(content["annotations"]) - 2] * 2
    said = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[-1] for line in said] == [
        "left out 1 boxes of crowds (iscrowd)",
        "left out 1 boxes without area",
    ]


def test_boxes_that_reach_beyond_their_picture_are_cut_at_its_edge(data, tmp_path, capsys):
    """As labelling tools leave some; Ultralytics would leave out the whole picture."""
    root, train, _ = as_a_pair(data, tmp_path / "set")
    content = json.loads(train.read_text())
    one = content["annotations"][0]
    spare = [{**one, "id": 1000 + i, "bbox": [i, 9, 30, 30]} for i in range(20)]  # at most one in ten may be so
    content["annotations"] += spare
    content["annotations"][0]["bbox"] = [-10, 80, 50, 40]
    content["annotations"][1]["bbox"] = [100, 10, 50, 40]
    train.write_text(json.dumps(content))
    found = dataset.load(root)
    assert found.boxes(found.train).sum() == len(content["annotations"]) - 1
    boxes = np.concatenate([found.truth(p, (96, 96))[:, 1:] for p in found.train])
    assert any(np.allclose(box, [0, 80, 40, 96], atol=1e-3) for box in boxes)
    assert boxes.min() >= -1e-3 and boxes.max() <= 96.001
    said = [line.split(": ")[-1] for line in capsys.readouterr().err.splitlines()]
    assert said == ["left out 1 parts of boxes beyond their picture's edge", "left out 1 boxes outside their picture"]


def test_another_content_is_another_data_set_and_the_users_folder_is_left_alone(data, tmp_path):
    root, train, _ = as_a_pair(data, tmp_path / "set")
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    one = dataset.load(root).sha256
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == before
    content = json.loads(train.read_text())
    content["annotations"].pop()
    train.write_text(json.dumps(content))
    assert dataset.load(root).sha256 != one
    assert len(list((tmp_path / "cache/edgeprune/data").iterdir())) == 2


def test_a_conversion_that_is_killed_leaves_nothing(data, tmp_path, monkeypatch):
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
    """x, y, x, y: what people take bbox for."""
    for entry in content["annotations"]:
        x, y, w, h = entry["bbox"]
        entry["bbox"] = [x, y, x + w, y + h]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: c.pop("images"), r"train.json: not COCO annotations"),
        (lambda c: c["images"].clear(), r"lists no pictures"),
        (lambda c: c["images"][0].pop("width"), r"images\[0\] has no width"),
        (spoiled("images", file_name="gone.png"), r"1 of 8 pictures are missing, the first: gone.png; looked in /"),
        (spoiled("images", width=100, height=50), r"is 96x96 upright, but listed as 100x50"),
        (spoiled("images", id=101), r"two pictures have the id 101"),
        (spoiled("images", id=[1]), r"images\[0\]: id is neither a number nor text"),
        (spoiled("annotations", category_id={}), r"annotations\[0\]: category_id is neither a number nor text"),
        (spoiled("annotations", image_id=7), r"annotation 0 is of picture 7, which is not listed"),
        (spoiled("annotations", category_id=99), r"annotation 0 is of category 99, which is not listed"),
        (spoiled("annotations", bbox=[1, 2]), r"annotation 0 has no bbox of four numbers"),
        (corners, r"annotation \d+: the box .* is not in its picture, 96x96, as .* is bbox x, y, width, height"),
        (spoiled("categories", name="other"), r"category 17 is 'thing2', but in the other file 'other'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(data, tmp_path, spoil, message):
    root, train, _ = as_a_pair(data, tmp_path / "set")
    content = json.loads(train.read_text())
    spoil(content)
    train.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        dataset.load(root)


def test_no_picture_is_lost_without_a_word(data, tmp_path):
    """Hidden ones are found by nobody, one listed twice would be trained on as an empty one, too."""
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
    found = dataset.load(root)
    assert len(found.train) == 8 and found.boxes(found.train).sum() == boxes
    assert "hidden.png" in {p.name for p in found.train}
    (place / ".hidden.png").rename(place / "hidden")
    first["file_name"] = "hidden"
    train.write_text(json.dumps(content))
    with pytest.raises(InputError, match="hidden has no picture's ending"):
        dataset.load(root)


def test_what_is_missing_is_named(data, tmp_path):
    root, train, val = as_a_pair(data, tmp_path / "set")
    (root / "instances.json").write_text("{}")
    with pytest.raises(InputError, match="neither its name nor its folder says train or val"):
        dataset.load(root / "instances.json")
    (root / "val_small.json").write_text(val.read_text())
    with pytest.raises(InputError, match=r"several files for val \(val.json, val_small.json\)"):
        dataset.load(root)
    assert dataset.load(train).boxes(dataset.load(train).val).sum() > 0  # val.json is named as train.json is
    (root / "val_small.json").unlink()
    val.unlink()
    with pytest.raises(InputError, match="none for val; a data set needs train and val"):
        dataset.load(train)
    with pytest.raises(InputError, match=r"no data\.yaml in it, and no COCO annotations"):
        dataset.load(root / "images")
    train.write_text("{")
    with pytest.raises(InputError, match=r"train\.json: cannot be read as JSON"):
        coco._part("train", train)


def test_finetune_takes_it(weights, data, tmp_path, capsys):
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


def test_the_same_picture_name_with_another_suffix(tmp_path):
    taken = set()
    assert [coco._flat(n, i, taken) for i, n in enumerate(["a.jpg", "a.png", "b/a.jpg", "../b/a.png", "/x/y.png"])] == [
        "a.jpg", "a-1.png", "b_a.jpg", "b_a-3.png", "x_y.png",
    ]  # fmt: skip
