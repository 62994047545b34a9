"""A labelled data set in Ultralytics' form: read once, and checked before anything long starts.

A data.yaml has the meaning here that it has to Ultralytics. Other forms become a data.yaml first (formats/).
"""

from __future__ import annotations

import glob
import hashlib
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml
from edgeprune_device.errors import InputError

from edgeprune.data import formats
from edgeprune.data.pictures import PICTURES, READABLE, UNREADABLE


@dataclass(frozen=True)
class Dataset:
    """A labelled data set.

    Attributes:
        path: The path as it was given.
        names: Class names, in the order of their numbers.
        train: Training images, sorted as listed.
        val: Validation images, sorted as listed.
        keypoints: (count, dimensions) where the labels are those of poses, whose boxes are read; else None.
    """

    path: Path
    names: tuple[str, ...]
    train: tuple[Path, ...]
    val: tuple[Path, ...]
    keypoints: tuple[int, int] | None = None
    _labels: dict[Path, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def labels(self, picture: Path) -> np.ndarray:
        """(n, 5) float64 [class, cx, cy, w, h], normalised to the size of the image."""
        if picture not in self._labels:
            self._labels[picture] = _read_labels(_label_of(picture), len(self.names), self.keypoints)
        return self._labels[picture]

    def truth(self, picture: Path, shape: tuple[int, int]) -> np.ndarray:
        """(n, 5) float64 [class, x1, y1, x2, y2], px.

        Args:
            picture: The image.
            shape: (height, width) of the image, px.
        """
        labels = self.labels(picture)
        height, width = shape
        centre, half = labels[:, 1:3] * (width, height), labels[:, 3:5] * (width, height) / 2
        return np.concatenate([labels[:, :1], centre - half, centre + half], axis=1)

    def boxes(self, pictures) -> np.ndarray:
        """(classes,) the number of labelled boxes of each class in these images."""
        counts = np.zeros(len(self.names), dtype=int)
        for picture in pictures:
            counts += np.bincount(self.labels(picture)[:, 0].astype(int), minlength=len(self.names))
        return counts

    def overlap(self) -> int:
        """The number of validation images that are also training images, by content."""
        by_size: dict[int, list[Path]] = {}
        for picture in self.train:
            by_size.setdefault(picture.stat().st_size, []).append(picture)
        digest = {}

        def content(picture: Path) -> bytes:
            if picture not in digest:
                digest[picture] = hashlib.sha256(picture.read_bytes()).digest()
            return digest[picture]

        twins = ((v, by_size.get(v.stat().st_size, [])) for v in self.val)
        return sum(any(t == v or content(t) == content(v) for t in candidates) for v, candidates in twins)

    @property
    def sha256(self) -> str:
        """SHA-256 over the class names, the images' names and sizes, and the labels."""
        digest = hashlib.sha256(repr(self.names).encode())
        for split in (self.train, self.val):
            for picture in split:
                digest.update(f"{picture.name}:{picture.stat().st_size};".encode())
                digest.update(self.labels(picture).tobytes())
        return digest.hexdigest()


def load(path: str | Path) -> Dataset:
    """Read a data set, in any form that `formats.find` knows, and check every label file of both splits.

    Raises:
        InputError: The file, an image folder or an image is missing, or a label is malformed (file and line).
    """
    given, path = Path(path), formats.find(Path(path))
    content = _read_yaml(path)
    names = _names(path, content)
    _check_kind(path, content)
    root = _root(path, content)
    train, val = (_pictures(path, root, content, key) for key in ("train", "val"))
    dataset = Dataset(given, names, train, val, _keypoints(path, content))
    for picture in (*train, *val):
        dataset.labels(picture)
    for split, pictures in (("training", train), ("validation", val)):
        if not dataset.boxes(pictures).sum():
            where = _label_of(pictures[0]).parent
            raise InputError(f"{path}: the {split} pictures have no labelled box; looked in {where}")
    return dataset


def check_names(dataset: Dataset, names: list[str]) -> None:
    """Check that the data set and the model have the same classes in the same order.

    Args:
        dataset: The data set.
        names: The model's class names.

    Raises:
        InputError: They differ.
    """
    if list(names) == ["item"] and len(dataset.names) > 1:
        raise InputError(
            f"{dataset.path}: {len(dataset.names)} classes, but the model was trained with single_cls, on one; give it "
            "labels whose class is always 0, and names: [item]"
        )
    if len(names) != len(dataset.names):
        raise InputError(
            f"{dataset.path}: {len(dataset.names)} classes, but the model has {len(names)} "
            f"({', '.join(names[:6])}{', …' if len(names) > 6 else ''})"
        )
    for i, (ours, theirs) in enumerate(zip(names, dataset.names)):
        if _plain(ours) != _plain(theirs):
            raise InputError(f"{dataset.path}: class {i} is {theirs!r}, but the model calls it {ours!r}")


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def _read_yaml(path: Path) -> dict:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a data.yaml (expected train:, val: and names:)")
    return content


def _names(path: Path, content: dict) -> tuple[str, ...]:
    names, count = content.get("names"), content.get("nc")
    if isinstance(names, dict):
        numbered = {str(k): v for k, v in names.items()}
        if set(numbered) != {str(i) for i in range(len(names))}:
            raise InputError(f"{path}: names: the class numbers must be 0, 1, … without gaps")
        names = [numbered[str(i)] for i in range(len(names))]
    try:
        count = None if count is None else int(str(count).removesuffix(".0"))
    except ValueError:
        raise InputError(f"{path}: nc: {count!r} is not a number of classes") from None
    if names is None and count:
        return tuple(f"class_{i}" for i in range(count))
    if not isinstance(names, list) or not names:
        raise InputError(f"{path}: names: is missing or empty")
    if count is not None and count != len(names):
        raise InputError(f"{path}: nc: says {count} classes, names: lists {len(names)}; take nc: out")
    return tuple(str(n) for n in names)


def _check_kind(path: Path, content: dict) -> None:
    if content.get("channels", 3) != 3:
        raise InputError(f"{path}: pictures of {content['channels']} channels; edgeprune knows 3 (RGB)")


def _keypoints(path: Path, content: dict) -> tuple[int, int] | None:
    shape = content.get("kpt_shape")
    if shape is None:
        return None
    if not isinstance(shape, list) or len(shape) != 2 or not all(isinstance(v, int) and v > 0 for v in shape):
        raise InputError(f"{path}: kpt_shape: {shape!r} is not [keypoints, 2 or 3]")
    return tuple(shape)


def _root(path: Path, content: dict) -> Path:
    """The folder that the splits' paths begin in.

    A relative `path:` is, to Ultralytics, one from the working folder, else one in its `datasets_dir`. Where neither
    has the images, it is one from the file's own folder.
    """
    root = content.get("path")
    if root is None:
        return path.resolve().parent
    if not isinstance(root, str):
        raise InputError(f"{path}: path: {root!r} is not a path")
    root = Path(root).expanduser()
    if root.is_absolute():
        return root
    from ultralytics.utils import DATASETS_DIR

    theirs = root if root.exists() else Path(DATASETS_DIR) / root
    ours = path.resolve().parent / root
    entries = [e for key in ("train", _val(content)) for e in _listed(content.get(key))]

    def lacks(place: Path) -> int:
        return sum(not _place(place, entry).exists() for entry in entries)

    return (ours if lacks(theirs) and lacks(ours) < lacks(theirs) else theirs).absolute()


def _val(content: dict) -> str:
    return "validation" if "val" not in content and "validation" in content else "val"


def _listed(entries) -> list:
    return entries if isinstance(entries, list) else [entries] if entries else []


def _place(root: Path, entry) -> Path:
    place = root / str(entry)
    if not place.exists() and str(entry).startswith("../"):
        place = root / str(entry)[3:]  # Roboflow's exports write it so, and Ultralytics reads them so
    return place


def _pictures(path: Path, root: Path, content: dict, key: str) -> tuple[Path, ...]:
    entries = _listed(content.get(_val(content) if key == "val" else key))
    if not entries or not all(isinstance(e, str) for e in entries):
        raise InputError(f"{path}: {key}: is missing" if not entries else f"{path}: {key}: {entries!r} is not a path")
    found: list[Path] = []
    for entry in entries:
        # Resolved, as in Ultralytics: where a folder links into a store, the labels lie in the store.
        place = _place(root, entry).resolve()
        if place.is_dir():
            files = glob.glob(f"{glob.escape(str(place))}/**/*.*", recursive=True)  # nothing hidden
            found += sorted(Path(f) for f in files if Path(f).suffix.lower() in PICTURES)
        elif place.suffix == ".txt" and place.is_file():
            found += _list(place)
        elif place.suffix.lower() in READABLE:
            found.append(place)
        else:
            raise InputError(
                f"{path}: {key}: {place} is neither a folder of pictures nor a .txt list{_hint(path, content)}"
            )
    if not found:
        raise InputError(f"{path}: {key}: no pictures in {root / str(entries[0])}")
    missing = [p for p in found if not p.is_file()]
    if missing:
        raise InputError(f"{path}: {key}: {len(missing)} of {len(found)} pictures are missing, the first: {missing[0]}")
    unreadable = [p for p in found if p.suffix.lower() in UNREADABLE]
    if unreadable:
        raise InputError(
            f"{path}: {key}: {len(unreadable)} of {len(found)} pictures are of a kind that is not decoded here, the "
            f"first: {unreadable[0]}; make them JPEG or PNG"
        )
    # Not resolve(): the labels lie beside the image as listed, also where the image links into a store.
    return tuple(dict.fromkeys(Path(os.path.abspath(p)) for p in found))


def _list(place: Path) -> list[Path]:
    """The images of a .txt list.

    `./` is the list's own folder. Other relative paths are from the working folder, as in Ultralytics; where there is
    no such file, they are from the list's own folder.
    """
    lines = [line.strip() for line in place.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()]
    paths = [Path(line) for line in lines if Path(line).suffix.lower() in PICTURES]
    here = [line.startswith("./") for line in lines if Path(line).suffix.lower() in PICTURES]
    return [place.parent / p if beside or not p.exists() else p for p, beside in zip(paths, here)]


def _hint(path: Path, content: dict) -> str:
    if not content.get("download"):
        return ""
    said = "; its download: is not run here"
    if not re.fullmatch(r"[\w.-]+", path.name):  # a shown command must not contain an unsafe file name
        return said
    run = f"from ultralytics.data.utils import check_det_dataset as c; c('{path.name}')"
    return f'{said}: python -c "{run}" runs it'


def _label_of(picture: Path) -> Path:
    """The label file of an image, by Ultralytics' rule: the last `images` in the path becomes `labels`."""
    parts = list(picture.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _read_labels(path: Path, classes: int, keypoints: tuple[int, int] | None = None) -> np.ndarray:
    if not path.is_file():
        return np.zeros((0, 5))
    rows, widths = [], set()
    posed = 5 + math.prod(keypoints) if keypoints else None
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        values = line.split()
        if values:
            values = values[:5] if len(values) == posed else values
            rows.append(_row(values, f"{path}:{number}", classes))
            widths.add(len(values) > 5)
    if len(widths) == 2:
        raise InputError(
            f"{path}: holds boxes and polygons; Ultralytics leaves such a picture out: make them all boxes"
        )
    # The same box twice counts once, as in Ultralytics.
    return np.unique(np.array(rows, dtype=np.float64), axis=0) if rows else np.zeros((0, 5))


def _row(words: list[str], where: str, classes: int) -> list[float]:
    line = " ".join(words)
    try:
        values = [float(v) for v in words]
    except ValueError:
        raise InputError(f"{where}: not numbers: {line[:60]!r}") from None
    if len(values) < 5 or len(values) == 6 or (len(values) > 5 and len(values) % 2 == 0):
        raise InputError(f"{where}: {len(values)} values; expected class cx cy w h, or class and a polygon")
    if not all(math.isfinite(v) for v in values):
        raise InputError(f"{where}: a coordinate is not finite: {line[:60]!r}")
    if values[0] != int(values[0]) or not 0 <= values[0] < classes:
        raise InputError(f"{where}: class {values[0]:g} is out of range 0..{classes - 1}")
    if any(not -0.01 <= v <= 1.01 for v in values[1:]):
        raise InputError(f"{where}: coordinates must be normalised to 0..1: {line[:60]!r}")
    if len(values) > 5:
        xs, ys = values[1::2], values[2::2]
        low, high = (min(xs), min(ys)), (max(xs), max(ys))
        values = [values[0], *((a + b) / 2 for a, b in zip(low, high)), *(b - a for a, b in zip(low, high))]
    if values[3] <= 0 or values[4] <= 0:
        raise InputError(f"{where}: a box without area: {line[:60]!r}")
    return values
