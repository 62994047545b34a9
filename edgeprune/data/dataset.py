"""A labelled data set in Ultralytics' format: read and checked once, before any long step.

Every command and every function takes its images from here. All of them therefore skip an unusable image (see
inspection.py): pruning, training, calibration, evaluation and the bundle's images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from edgeprune_device.errors import InputError
from edgeprune_device.option import named
from edgeprune_device.printable import printable
from edgeprune_device.progress import silent
from edgeprune_device.vision import preprocess

from edgeprune.console.progress import Reporter
from edgeprune.data import data_yaml, formats, inspection, labels
from edgeprune.data.inspection import Look
from edgeprune.tasks import DETECT, Task, get

#: A larger share of images without a label file gets a warning.
FEW_LABELS = 0.1
#: Unusable images that a message names.
_NAMED = 5


@dataclass(frozen=True)
class Split:
    """The state of the listed images of one split.

    Attributes:
        listed: Number of images that the data.yaml lists.
        damaged: {unusable image: the reason}; all steps skip these.
        unlabelled: Number of the other images that have no label file; they count as images without objects.
        beside: Number of the unlabelled images that have a label file in their own folder, where it is not read.
        example: One of the images counted in `beside`, else in `unlabelled`; None if both are 0.
    """

    listed: int
    damaged: Mapping[Path, str]
    unlabelled: int
    beside: int
    example: Path | None


@dataclass(frozen=True)
class Dataset:
    """A labelled data set.

    Attributes:
        path: The given path.
        names: Class names, in the order of their numbers.
        train: Training images, sorted as listed.
        val: Validation images, sorted as listed.
        keypoints: (count, dimensions) if the labels are poses, of which only the boxes are read; else None.
        val_total: The number of validation images from which `val` was chosen (samples.fewer); None if `val` is all.
        named: Whether the data set names its classes; else it only counts them.
        splits: {"train": the state of the listed images, "val": the same for the validation images}.
        task: The task of the labels.
    """

    path: Path
    names: tuple[str, ...]
    train: tuple[Path, ...]
    val: tuple[Path, ...]
    keypoints: tuple[int, int] | None = None
    val_total: int | None = None
    named: bool = True
    splits: Mapping[str, Split] = field(default_factory=dict, compare=False)
    task: Task = DETECT
    _labels: dict[Path, labels.Rows] = field(default_factory=dict, repr=False, compare=False)
    _looks: dict[Path, Look] = field(default_factory=dict, repr=False, compare=False)

    def labels(self, picture: Path) -> labels.Rows:
        """(n, width of the task) float64, normalised to the size of the image; see `Task.label`."""
        if picture not in self._labels:
            read, _ = labels.read_all([picture], len(self.names), self.keypoints, self.task)
            self._labels.update(read)
        return self._labels[picture]

    def shape(self, picture: Path) -> tuple[int, int]:
        """(height, width) of an image, px, after its EXIF orientation has been applied.

        Raises:
            InputError: The image is not in this data set, and it is missing or unusable.
        """
        look = self._looks.get(picture)
        return inspection.upright_shape(picture) if look is None else (look.height, look.width)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(height, width) of each image, px."""
        return [self.shape(picture) for picture in (*self.train, *self.val)]

    def truth(self, picture: Path, shape: tuple[int, int]) -> npt.NDArray[np.float64]:
        """(n, 1 + columns) float64 labels of the task, px; for detection [class, x1, y1, x2, y2].

        Args:
            picture: The image.
            shape: (height, width) of the image, px.
        """
        return self.task.truth(self.labels(picture), shape)

    def boxes(self, pictures: Iterable[Path]) -> npt.NDArray[np.int64]:
        """(classes,) the number of labelled boxes of each class in these images."""
        classes = [self.labels(picture)[:, 0] for picture in pictures]
        return np.bincount(np.concatenate([np.zeros(0), *classes]).astype(np.int64), minlength=len(self.names))

    @property
    def unlabelled(self) -> dict[str, int]:
        """{split: the number of its images that have no label file}."""
        return {split: state.unlabelled for split, state in self.splits.items()}

    @property
    def damaged(self) -> dict[str, list[str]]:
        """{split: the unusable images that were left out of it}."""
        return {split: [str(picture) for picture in state.damaged] for split, state in self.splits.items()}

    def overlap(self) -> int:
        """The number of validation images that are also training images, by content."""
        trained = {self._digest(picture) for picture in self.train}
        return sum(self._digest(picture) in trained for picture in self.val)

    def _digest(self, picture: Path) -> str:
        look = self._looks.get(picture)
        return hashlib.sha256(picture.read_bytes()).hexdigest() if look is None else look.digest

    @property
    def sha256(self) -> str:
        """SHA-256 over the class names, the images' names and sizes, and the labels."""
        digest = hashlib.sha256(repr(self.names).encode())
        for split in (self.train, self.val):
            for picture in split:
                look = self._looks.get(picture)
                size = picture.stat().st_size if look is None else look.size
                digest.update(f"{picture.name}:{size};".encode())
                digest.update(self.labels(picture).tobytes())
        return digest.hexdigest()


def load(path: str | Path, *, task: str = "detect", strict: bool = False, reporter: Reporter | None = None) -> Dataset:
    """Read a data set in any format that `formats.find` knows, and check every image and label file of both splits.

    Args:
        path: The data set.
        task: The task of its labels, the same as the network's.
        strict: Refuse a data set with unusable images; otherwise, all steps skip them.
        reporter: Receives the progress, the number of images, and warnings about unusable images and missing labels.

    Raises:
        InputError: The file, an image folder or an image is missing, an image is too large to decode, a label is
            malformed (file and line), or a split has no sound image or no labelled box.
    """
    try:
        return _load(Path(path), get(task), strict, reporter)
    except InputError as error:  # names in foreign files may hold control characters
        raise InputError(printable(str(error))) from error


def shapes(path: str | Path, reporter: Reporter) -> list[tuple[int, int]]:
    """(height, width) of each sound image of a data set, px, without a look at its labels.

    Args:
        path: See `load`.
        reporter: Receives the progress.

    Raises:
        InputError: The file or an image folder is missing, or an image is too large to decode.
    """
    try:
        _, looks = _inspected(formats.find(Path(path)), reporter)
    except InputError as error:  # see `load`
        raise InputError(printable(str(error))) from error
    return [(look.height, look.width) for look in looks.values() if not look.problem]


def _inspected(path: Path, reporter: Reporter | None) -> tuple[data_yaml.Description, dict[Path, Look]]:
    """(the description of the data set, {image: its Look})."""
    described = data_yaml.read(path)
    with nullcontext(silent) if reporter is None else reporter.stage("images") as progress:
        looks = inspection.inspect(list(dict.fromkeys((*described.train, *described.val))), progress)
    _check_sizes(path, {"train": described.train, "val": described.val}, looks)
    return described, looks


def _load(given: Path, task: Task, strict: bool, reporter: Reporter | None) -> Dataset:
    path = formats.find(given)
    described, looks = _inspected(path, reporter)
    listed = {"train": described.train, "val": described.val}
    damaged = {s: {p: looks[p].problem or "" for p in pictures if looks[p].problem} for s, pictures in listed.items()}
    if strict:
        _refuse(path, damaged)
    sound = {split: tuple(p for p in pictures if p not in damaged[split]) for split, pictures in listed.items()}
    for split, pictures in sound.items():
        if not pictures:
            raise InputError(f"{path}: {split}: {_damaged(damaged[split], len(listed[split]))}; replace the images")
    read, missing = labels.read_all([*sound["train"], *sound["val"]], len(described.names), described.keypoints, task)
    labels.refuse_foreign(read, task)
    splits = {split: _split(listed[split], damaged[split], missing) for split in listed}
    dataset = Dataset(
        given,
        described.names,
        sound["train"],
        sound["val"],
        described.keypoints,
        named=described.named,
        splits=splits,
        task=task,
        _labels=read,
        _looks=looks,
    )
    if reporter is not None:
        _report(dataset, reporter)
    for split, pictures in (("training", dataset.train), ("validation", dataset.val)):
        if not dataset.boxes(pictures).sum():
            where = labels.path_of(pictures[0]).parent
            raise InputError(f"{path}: no labelled box in the {split} images; add label files in {where}")
    return dataset


def _check_sizes(path: Path, listed: Mapping[str, Sequence[Path]], looks: Mapping[Path, Look]) -> None:
    """Check the image sizes in the files' headers. Training decodes with OpenCV, which has a much higher limit.

    Raises:
        InputError: Images are too large to decode.
    """
    most = preprocess.most_megapixels() * 10**6
    for split, pictures in listed.items():
        large = [p for p in pictures if looks[p].large or looks[p].height * looks[p].width > most]
        if large:
            count = f"{len(large)} images are too large to decode; " if len(large) > 1 else ""
            try:
                preprocess.opened(large[0], str(large[0])).close()
            except InputError as error:
                raise InputError(f"{path}: {split}: {count}{error}") from error


def _refuse(path: Path, damaged: Mapping[str, Mapping[Path, str]]) -> None:
    for split, pictures in damaged.items():
        if pictures:
            raise InputError(
                f"{path}: {split}: {_damaged(pictures)}; remove or replace them, or leave out {named('strict', True)}"
            )


def _damaged(pictures: Mapping[Path, str], of: int | None = None) -> str:
    """The number of unusable images, the names of the first ones, and the reason for the first one."""
    first, *others = pictures
    more = [p.name for p in others[: _NAMED - 1]] + (["…"] if len(others) >= _NAMED else [])
    images = "image" if len(pictures) == 1 and of is None else "images"
    of_all = "" if of is None else f" of {of:,}"
    are = "is" if len(pictures) == 1 else "are"
    also = f", {', '.join(more)}" if more else ""
    return f"{len(pictures):,}{of_all} {images} {are} unusable: {first} ({pictures[first]}){also}"


def _split(listed: Sequence[Path], damaged: Mapping[Path, str], missing: set[Path]) -> Split:
    unlabelled = [p for p in listed if p in missing]
    beside = [p for p in unlabelled if labels.beside(p)]
    example = next(iter(beside or unlabelled), None)
    return Split(len(listed), damaged, len(unlabelled), len(beside), example)


def _report(dataset: Dataset, reporter: Reporter) -> None:
    """Say how many images there are, and how many of them are unusable or have no label file."""
    texts = []
    for split, word in (("train", "training"), ("val", "validation")):
        state, count = dataset.splits[split], len(getattr(dataset, split))
        texts.append(f"{count:,} {word} images ({state.unlabelled:,} without a label file)")
    reporter.say(f"{dataset.path}: {', '.join(texts)}")
    for split, state in dataset.splits.items():
        if state.damaged:
            what = _damaged(state.damaged, state.listed)
            reporter.warn(
                f"{dataset.path}: {split}: {what}; all steps skip these images (with {named('strict', True)}, the "
                "command fails instead)"
            )
        sound = state.listed - len(state.damaged)
        if state.example is not None and (state.beside or state.unlabelled > FEW_LABELS * sound):
            beside = (
                f" ({state.beside:,} of these images have a .txt file in the image folder, where it is ignored)"
                if state.beside
                else ""
            )
            reporter.warn(
                f"{dataset.path}: {split}: {state.unlabelled:,} of {sound:,} images have no label file and are "
                f"treated as images without objects{beside}; put label files where Ultralytics expects them, "
                f"for example {labels.path_of(state.example)}"
            )


def check_names(dataset: Dataset, names: list[str]) -> None:
    """Check that the data set and the model have the same classes in the same order.

    Args:
        dataset: The data set.
        names: The model's class names.

    Raises:
        InputError: The classes or their order differ.
    """
    if list(names) == ["item"] and len(dataset.names) > 1:
        raise InputError(
            f"{dataset.path}: too many classes (found {len(dataset.names)}, expected 1, because the model was trained "
            "with single_cls); use labels of class 0 only, and names: [item]"
        )
    if len(names) != len(dataset.names):
        raise InputError(
            f"{dataset.path}: wrong number of classes (found {len(dataset.names)}, expected the model's {len(names)}: "
            f"{', '.join(names[:6])}{', …' if len(names) > 6 else ''}); use the data set of the model"
        )
    if not dataset.named and list(names) != list(dataset.names):
        shown = ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
        raise InputError(
            f"{dataset.path}: names: missing, so the classes cannot be compared with the model's; add names: [{shown}]"
        )
    for i, (ours, theirs) in enumerate(zip(names, dataset.names)):
        if _plain(ours) != _plain(theirs):
            raise InputError(
                f"{dataset.path}: names: wrong name of class {i} (found {theirs!r}, expected {ours!r} as in the "
                "model); rename or reorder the classes"
            )


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())
