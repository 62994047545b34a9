"""A labelled data set in Ultralytics' form: read once, checked before anything long starts."""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml
from edgeprune_device.errors import InputError

_PICTURES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class Dataset:
    """path: the data.yaml; names: class names by index; train, val: pictures, sorted as listed."""

    path: Path
    names: tuple[str, ...]
    train: tuple[Path, ...]
    val: tuple[Path, ...]
    _labels: dict[Path, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def labels(self, picture: Path) -> np.ndarray:
        """(n, 5) float64 [class, cx, cy, w, h], normalised to the picture's size."""
        if picture not in self._labels:
            self._labels[picture] = _read_labels(_label_of(picture), len(self.names))
        return self._labels[picture]

    def truth(self, picture: Path, shape: tuple[int, int]) -> np.ndarray:
        """(n, 5) float64 [class, x1, y1, x2, y2] in pixels of a picture of shape (height, width)."""
        labels = self.labels(picture)
        height, width = shape
        centre, half = labels[:, 1:3] * (width, height), labels[:, 3:5] * (width, height) / 2
        return np.concatenate([labels[:, :1], centre - half, centre + half], axis=1)

    def boxes(self, pictures) -> np.ndarray:
        """(classes,) the number of labelled boxes of each class."""
        counts = np.zeros(len(self.names), dtype=int)
        for picture in pictures:
            counts += np.bincount(self.labels(picture)[:, 0].astype(int), minlength=len(self.names))
        return counts

    def overlap(self) -> int:
        """How many validation pictures are also training pictures, by content."""
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
        """Over names, the pictures' names and sizes, and labels."""
        digest = hashlib.sha256(repr(self.names).encode())
        for split in (self.train, self.val):
            for picture in split:
                digest.update(f"{picture.name}:{picture.stat().st_size};".encode())
                digest.update(self.labels(picture).tobytes())
        return digest.hexdigest()


def load(path: str | Path) -> Dataset:
    """Read a data.yaml and check every label file of both splits.

    Raises:
        InputError: the file, a picture folder or a picture is missing; a label is malformed (file and line).
    """
    path = Path(path)
    content = _read_yaml(path)
    names = _names(path, content)
    root = _root(path, content)
    train, val = (_pictures(path, root, content, key) for key in ("train", "val"))
    dataset = Dataset(path, names, train, val)
    for picture in (*train, *val):
        dataset.labels(picture)
    for split, pictures in (("training", train), ("validation", val)):
        if not dataset.boxes(pictures).sum():
            where = _label_of(pictures[0]).parent
            raise InputError(f"{path}: the {split} pictures have no labelled box; looked in {where}")
    return dataset


def check_names(dataset: Dataset, names: list[str]) -> None:
    """The data set and the model must mean the same by class 0, 1, …"""
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
    names = content.get("names")
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise InputError(f"{path}: names: the class numbers must be 0, 1, … without gaps")
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        raise InputError(f"{path}: names: is missing or empty")
    return tuple(str(n) for n in names)


def _root(path: Path, content: dict) -> Path:
    root = content.get("path")
    if root is None:
        return path.resolve().parent
    root = Path(str(root)).expanduser()
    return root if root.is_absolute() else (path.resolve().parent / root)


def _pictures(path: Path, root: Path, content: dict, key: str) -> tuple[Path, ...]:
    entries = content.get(key)
    if not entries:
        raise InputError(f"{path}: {key}: is missing")
    found: list[Path] = []
    for entry in entries if isinstance(entries, list) else [entries]:
        place = root / str(entry)
        if not place.exists() and str(entry).startswith("../"):
            place = root / str(entry)[3:]  # Roboflow's exports mean it so, and Ultralytics reads them so
        if place.is_dir():
            found += sorted(p for p in place.rglob("*") if p.suffix.lower() in _PICTURES)
        elif place.suffix == ".txt" and place.is_file():
            lines = (line.strip() for line in place.read_text().splitlines())
            found += [place.parent / line for line in lines if line]
        elif place.suffix.lower() in _PICTURES:
            found.append(place)
        else:
            raise InputError(f"{path}: {key}: {place} is neither a folder of pictures nor a .txt list")
    if not found:
        raise InputError(f"{path}: {key}: no pictures in {root / str(entries)}")
    missing = [p for p in found if not p.is_file()]
    if missing:
        raise InputError(f"{path}: {key}: {len(missing)} of {len(found)} pictures are missing, the first: {missing[0]}")
    # Not resolve(): labels lie beside the picture as listed, also where that is a link into a store.
    return tuple(dict.fromkeys(Path(os.path.abspath(p)) for p in found))


def _label_of(picture: Path) -> Path:
    """Ultralytics' rule: the last `images` in the path becomes `labels`."""
    parts = list(picture.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _read_labels(path: Path, classes: int) -> np.ndarray:
    if not path.is_file():
        return np.zeros((0, 5))
    rows = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        if line.strip():
            rows.append(_row(line, f"{path}:{number}", classes))
    # The same box twice counts once, as in Ultralytics.
    return np.unique(np.array(rows, dtype=np.float64), axis=0) if rows else np.zeros((0, 5))


def _row(line: str, where: str, classes: int) -> list[float]:
    try:
        values = [float(v) for v in line.split()]
    except ValueError:
        raise InputError(f"{where}: not numbers: {line.strip()[:60]!r}") from None
    if len(values) < 5 or len(values) == 6 or (len(values) > 5 and len(values) % 2 == 0):
        raise InputError(f"{where}: {len(values)} values; expected class cx cy w h, or class and a polygon")
    if not all(math.isfinite(v) for v in values):
        raise InputError(f"{where}: a coordinate is not finite: {line.strip()[:60]!r}")
    if values[0] != int(values[0]) or not 0 <= values[0] < classes:
        raise InputError(f"{where}: class {values[0]:g} is out of range 0..{classes - 1}")
    if any(not -0.01 <= v <= 1.01 for v in values[1:]):
        raise InputError(f"{where}: coordinates must be normalised to 0..1: {line.strip()[:60]!r}")
    if len(values) > 5:
        xs, ys = values[1::2], values[2::2]
        low, high = (min(xs), min(ys)), (max(xs), max(ys))
        values = [values[0], *((a + b) / 2 for a, b in zip(low, high)), *(b - a for a, b in zip(low, high))]
    if values[3] <= 0 or values[4] <= 0:
        raise InputError(f"{where}: a box without area: {line.strip()[:60]!r}")
    return values
