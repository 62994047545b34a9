"""COCO's JSON, turned into labels by Ultralytics' own converter.

These layouts are recognised from the folder or from one of the files:

    annotations/instances_train2017.json   instances_val2017.json     images/train2017/ or train2017/   COCO
    train/_annotations.coco.json           valid/_annotations.coco.json, images beside them             Roboflow
    train.json                             val.json, images in images/, train/, val/ or beside          a pair

Ultralytics' converter maps category 1 to class 0, 2 to 1, and so on, whatever ids exist. It copies folders in image
names to the labels' paths, where no reader finds them. It appends to existing label files. Therefore it gets a tidied
copy: classes in the order of the category ids, numbered images, and flat, unique names.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from edgeprune_device.errors import InputError, reason
from edgeprune_device.files import sha256
from edgeprune_device.option import named
from edgeprune_device.vision import preprocess

from edgeprune.data import memory
from edgeprune.data.formats import cache
from edgeprune.data.pictures import PICTURES

__all__ = ["find"]

#: A JSON object of the file; `_part` has checked its required fields.
Json = dict[str, Any]

#: The words in the names of a split's files and folders.
_WORDS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
_SPLITS = ("train", "val")
#: Fields that must be plain values.
_PLAIN = ("id", "image_id", "category_id", "file_name", "supercategory")
#: Part of the cache's key; it changes with the conversion.
_VERSION = "3"
#: Some labelling tools write boxes that extend beyond their image; such boxes are cut at its edge. A larger share of
#: such boxes means that the values are not x, y, width, height in pixels.
_BEYOND = 0.1


@dataclass(frozen=True)
class _Part:
    """One file of a data set, and the folder of its images.

    Example: _Part(Path("annotations/instances_val2017.json"), Path("images/val2017"), content).

    Attributes:
        json: The file.
        pictures: The folder that its image names are relative to.
        content: The parsed JSON.
    """

    json: Path
    pictures: Path
    content: Json


def find(path: Path) -> Path:
    """The data.yaml of a converted data set.

    Args:
        path: A folder, or one of the two files.

    Raises:
        InputError: A part, an image or an entry is missing or wrong; the message names it, with a remedy.
    """
    files = _files(path)
    key = _key(files)
    place = _made_before(key) or _make(path, files)
    if key:
        memory.keep({key: os.fsencode(place)})
    for line in json.loads((place / "notes.json").read_text()):
        _say(line)
    return place / "data.yaml"


def _key(files: dict[str, Path]) -> bytes | None:
    """The cache key of the converted data set; None if a file has just changed."""
    keys = []
    for split, file in sorted(files.items()):
        try:
            keys.append(memory.identity(f"coco {_VERSION} {split} {file.absolute()}", os.stat(file)))
        except OSError:
            return None
    return None if None in keys else b"".join(key or b"" for key in keys)


def _made_before(key: bytes | None) -> Path | None:
    """The existing conversion of these files, without reading them again; None if it or an image is missing.

    The JSON of COCO has 450 MB.
    """
    remembered = memory.recall([key]).get(key) if key else None
    if remembered is None:
        return None
    place = Path(os.fsdecode(remembered))
    try:
        pictures = [entry.path for split in _SPLITS for entry in os.scandir(place / "images" / split)]
    except OSError:
        return None
    whole = (place / "notes.json").is_file() and all(map(os.path.exists, pictures))
    return place if whole else None


def _make(path: Path, files: dict[str, Path]) -> Path:
    parts = {split: _part(split, file) for split, file in files.items()}
    classes = _classes(parts)
    digest = hashlib.sha256(_VERSION.encode())
    for split, part in sorted(parts.items()):
        digest.update(f"{split} {sha256(part.json)} {part.pictures}\n".encode())
    return cache.made(_root(path.resolve()).name, digest.hexdigest(), functools.partial(_write, parts, classes))


@functools.cache
def _say(line: str) -> None:
    """Print a note once per process, because a command may open its data several times."""
    print(f"note: {line}", file=sys.stderr, flush=True)


# -- the files ---------------------------------------------------------------------------------------------------------
def _split_of(file: Path) -> str | None:
    """`train` or `val`, by the words in the file's name, else in the folder's."""
    for text in (file.stem, file.parent.name):
        words = {_WORDS[w] for w in re.split(r"[^a-z]+", text.lower()) if w in _WORDS}
        if len(words) == 1:
            return words.pop()
    return None


def _root(path: Path) -> Path:
    """The folder of a data set, from the folder itself or from one of its files."""
    if path.is_dir():
        return path
    folder = path.parent
    return folder.parent if folder.name == "annotations" or folder.name.lower() in _WORDS else folder


def _files(path: Path) -> dict[str, Path]:
    root, given = _root(path), None if path.is_dir() else path
    places = [root, root / "annotations", *(p for p in sorted(root.iterdir()) if p.name.lower() in _WORDS)]
    by_split: dict[str, list[Path]] = {"train": [], "val": []}
    for file in (f for place in places if place.is_dir() for f in sorted(place.glob("*.json"))):
        split = _split_of(file)
        if split:
            by_split[split].append(file)
    if given is not None:
        split = _split_of(given)
        if split is None:
            raise InputError(
                f"{given}: unknown split; rename the file or its folder so that the name contains train or val"
            )
        other = "val" if split == "train" else "train"
        by_split[split] = [given]
        by_split[other] = [f for f in by_split[other] if _pattern(f) == _pattern(given)] or by_split[other]
    if not by_split["train"] and not by_split["val"]:
        raise InputError(f"{path}: no data.yaml and no COCO annotations (expected annotations/instances_train*.json, "
                         "train/_annotations.coco.json or train.json)")  # fmt: skip
    return {split: _one(root, split, files) for split, files in by_split.items()}


def _pattern(file: Path) -> str:
    return re.sub("training|train|validation|valid|val", "*", file.stem.lower())


def _one(root: Path, split: str, files: list[Path]) -> Path:
    instances = [f for f in files if f.stem.startswith("instances")]
    files = instances if len(files) > 1 and instances else files
    if not files:
        raise InputError(f"{root}: COCO annotations for {split} are missing; a data set needs train and val (a file "
                         f"with {split} in its name or its folder's)")  # fmt: skip
    if len(files) > 1:
        these = ", ".join(str(f.relative_to(root)) for f in files[:4])
        raise InputError(f"{root}: several annotation files for {split} ({these}); give one of them as {named('data')}")
    return files[0]


# -- the content of the files ------------------------------------------------------------------------------------------
def _part(split: str, file: Path) -> _Part:
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({reason(error)})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: cannot be read as JSON ({' '.join(str(error).split())[:200]})") from error
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in keys):
        raise InputError(f"{file}: not COCO annotations (expected images, annotations and categories)")
    for key, needed in (("images", ("id", "file_name", "width", "height")), ("annotations", ("image_id",)),
                        ("categories", ("id", "name"))):  # fmt: skip
        for i, entry in enumerate(content[key]):
            missing = [k for k in needed if not isinstance(entry, dict) or entry.get(k) is None]
            if missing:
                raise InputError(f"{file}: {key}[{i}]: {missing[0]}: missing")
            for name in _PLAIN:
                if not isinstance(entry.get(name), (int, float, str, type(None))):
                    raise InputError(f"{file}: {key}[{i}]: {name}: invalid value (expected a number or text)")
    if not content["images"]:
        raise InputError(f"{file}: images: empty; list the images of the data set")
    return _Part(file, _pictures(split, file, content), content)


def _pictures(split: str, file: Path, content: Json) -> Path:
    """The folder that the image names in the file are relative to."""
    base = _root(file)
    called = [file.stem.removeprefix("instances_"), *(w for w, s in _WORDS.items() if s == split)]
    places = [file.parent, *(base / "images" / c for c in called), *(base / c / "images" for c in called),
              *(base / c for c in called), base / "images", base / "data", base]  # fmt: skip
    names = [str(entry["file_name"]) for entry in content["images"]]

    def missing(place: Path) -> list[str]:
        return [name for name in names if not (place / name).is_file()]

    tried = {p.resolve(): missing(p) for p in dict.fromkeys(places) if p.is_dir()}
    best = min(tried, key=lambda p: len(tried[p]))
    if tried[best]:
        lacking, looked = tried[best], ", ".join(str(p) for p in tried)
        raise InputError(
            f"{file}: {len(lacking)} of {len(names)} images are missing, the first is {lacking[0]}; searched: {looked}"
        )
    return best


def _classes(parts: dict[str, _Part]) -> dict[int, str]:
    """Category id -> name, in the order of the ids, of both files."""
    names: dict[int, str] = {}
    used, groups = set(), set()
    for part in parts.values():
        for entry in part.content["categories"]:
            if names.setdefault(entry["id"], str(entry["name"])) != str(entry["name"]):
                raise InputError(f"{part.json}: category {entry['id']}: different names in the two files (found "
                                 f"{entry['name']!r} and {names[entry['id']]!r})")  # fmt: skip
            if entry.get("supercategory") != entry["name"]:
                groups.add(entry.get("supercategory"))
        used |= {entry.get("category_id") for entry in part.content["annotations"]}
    # Roboflow's category 0 is the supercategory of the others, not a class.
    classes = {k: name for k, name in names.items() if k in used or name not in groups}
    if any(not isinstance(k, int) for k in classes):
        raise InputError(f"{part.json}: categories: invalid id (expected whole numbers)")
    return dict(sorted(classes.items()))


# -- the converted data set --------------------------------------------------------------------------------------------
def _write(parts: dict[str, _Part], classes: dict[int, str], place: Path) -> None:
    work = place.parent / "tidied"
    work.mkdir()
    notes = []
    for split, part in parts.items():
        left_out, content = _tidy(split, part, classes, place)
        (work / f"{split}.json").write_text(json.dumps(content))
        notes += [f"{part.json}: left out {count:,} {what}" for what, count in left_out.items()]
    from ultralytics.data.converter import convert_coco

    with _quiet():
        convert_coco(str(work), str(place.parent / "converted"), use_segments=False, cls91to80=False)
    os.rename(place.parent / "converted" / "labels", place / "labels")
    names = dict(enumerate(classes.values()))
    content = {"train": "images/train", "val": "images/val", "names": names}
    (place / "data.yaml").write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    (place / "notes.json").write_text(json.dumps(notes))


def _tidy(split: str, part: _Part, classes: dict[int, str], place: Path) -> tuple[Counter[str], Json]:
    """Tidy the content for Ultralytics' converter, and link the images.

    Returns:
        (the number of entries that were left out, by reason; the tidied content).
    """
    (place / "images" / split).mkdir(parents=True)
    index = {category: i + 1 for i, category in enumerate(classes)}
    images: list[Json] = []
    numbers: dict[Any, int] = {}  # an id may be text
    sources: dict[Path, int] = {}
    taken: set[str] = set()
    left_out: Counter[str] = Counter()
    for number, entry in enumerate(part.content["images"], 1):
        if entry["id"] in numbers:
            raise InputError(f"{part.json}: images: duplicate id {entry['id']}")
        source = part.pictures / str(entry["file_name"])
        if source in sources:  # one image gets the boxes of both entries; a second copy would have no boxes
            numbers[entry["id"]] = sources[source]
            left_out["duplicate images (their boxes are kept)"] += 1
            continue
        if source.suffix.lower() not in PICTURES:
            raise InputError(
                f"{part.json}: {source}: unsupported file name extension; convert the image to JPEG or PNG, or rename "
                "it"
            )
        _check_size(part.json, source, entry)
        name = _flat(str(entry["file_name"]), number, taken)
        os.symlink(os.path.abspath(source), place / "images" / split / name)
        images.append({**entry, "id": len(images) + 1, "file_name": name})
        numbers[entry["id"]] = sources[source] = len(images)
    annotations, beyond = [], []
    for i, entry in enumerate(part.content["annotations"]):
        where = f"{part.json}: annotation {entry.get('id', i)}"
        if entry["image_id"] not in numbers:
            raise InputError(f"{where}: unknown image_id {entry['image_id']} (not listed in images)")
        if entry.get("iscrowd"):
            left_out["boxes of crowds (iscrowd)"] += 1
            continue
        if entry.get("category_id") not in index:
            raise InputError(f"{where}: unknown category_id {entry.get('category_id')} (not listed in categories)")
        box = entry.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, (int, float)) for v in box):
            raise InputError(f"{where}: invalid bbox (expected four numbers: x, y, width, height in pixels)")
        if box[2] <= 0 or box[3] <= 0:
            left_out["boxes without area"] += 1
            continue
        image = images[numbers[entry["image_id"]] - 1]
        if not _inside(box, image["width"], image["height"]):
            beyond.append(f"{where}: bbox {box} extends beyond its image of {image['width']}x{image['height']} px")
            box = _cut(box, image["width"], image["height"])
            if box is None:
                left_out["boxes outside their image"] += 1
                continue
            left_out["parts of boxes beyond their image's edge"] += 1
        annotations.append({"image_id": image["id"], "category_id": index[entry["category_id"]], "bbox": box})
    count = len(part.content["annotations"])
    if len(beyond) > _BEYOND * count:
        raise InputError(
            f"{beyond[0]} ({len(beyond):,} of {count:,} boxes); bbox must be x, y, width, height in pixels"
        )
    return left_out, {"images": images, "annotations": annotations}


def _flat(name: str, number: int, taken: set[str]) -> str:
    """A file name without folders; its stem is unique in the split, because the label file has the same stem."""
    path = PurePosixPath(name.replace("\\", "/"))
    stem = "_".join(p for p in (*path.parent.parts, path.stem) if p not in ("/", "..", "."))
    stem = stem.lstrip(".") or "picture"  # hidden files are not listed
    while stem in taken:
        stem = f"{stem}-{number}"
    taken.add(stem)
    return stem + path.suffix


def _inside(box: list[float], width: int, height: int) -> bool:
    """Whether a box meets Ultralytics' rule for labels: centre and size within the image, with a tolerance of 1 %."""
    x, y, w, h = box
    values = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
    return all(-0.01 <= v <= 1.01 for v in values)


def _cut(box: list[float], width: int, height: int) -> list[float] | None:
    """The part of the box inside its image, or None."""
    x, y = max(box[0], 0), max(box[1], 0)
    w, h = min(box[0] + box[2], width) - x, min(box[1] + box[3], height) - y
    return [x, y, w, h] if w > 0 and h > 0 else None


def _check_size(file: Path, picture: Path, entry: Json) -> None:
    """Check the listed size of an image, because the boxes of a rotated image (by EXIF or by hand) would be
    misplaced.
    """
    width, height = entry["width"], entry["height"]
    if not all(isinstance(v, (int, float)) and v > 0 for v in (width, height)):
        raise InputError(f"{file}: image {entry['file_name']}: invalid size (found {width}x{height} px)")
    try:
        with preprocess.opened(picture, str(picture)) as image:
            size = image.size
            if size != (width, height) and image.getexif().get(0x0112, 1) in (5, 6, 7, 8):
                size = size[::-1]
    except Exception:  # a damaged image is reported when it is decoded
        return
    if abs(size[0] * height - size[1] * width) > 0.02 * size[0] * height:
        raise InputError(
            f"{file}: {picture}: wrong size (found {size[0]}x{size[1]} px upright, expected {width}x{height} px as "
            "listed)"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    from ultralytics.utils import LOGGER

    level = LOGGER.level
    LOGGER.setLevel("ERROR")  # this also hides its progress bar
    try:
        yield
    finally:
        LOGGER.setLevel(level)
