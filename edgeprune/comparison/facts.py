"""The facts of a comparison: the content of its JSON, which the page and the table render."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from edgeprune.comparison.gallery import Gallery
from edgeprune.comparison.row import Row

SCHEMA_VERSION = 2


class ValidationImages(TypedDict):
    """The data set, and its validation images, on which mAP was measured.

    Attributes:
        path: the data set's file.
        sha256: hash of the data set.
        pictures: number of measured images.
        total: number of validation images; more than `pictures` if an evenly spread part was measured.
        boxes: number of their labelled boxes.
        train_in_val: number of validation images that are also training images.
        unlabelled: {"train": number of training images without a label file, "val": of validation images}.
        damaged: {"train": number of damaged training images, which were left out, "val": of validation images}.
    """

    path: str
    sha256: str
    pictures: int
    total: int
    boxes: int
    train_in_val: int
    unlabelled: dict[str, int]
    damaged: dict[str, int]


class Machine(TypedDict):
    """The machine that measured: the fields of `Environment` that the page shows.

    Attributes:
        cpu: name of the CPU; None if unknown.
        cores: number of cores.
        memory_bytes: installed memory; None if unknown.
        os: name of the operating system.
        python: version of Python.
        packages: {package: version}; None for a package that is not installed.
    """

    cpu: str | None
    cores: int
    memory_bytes: int | None
    os: str
    python: str
    packages: dict[str, str | None]


class Gate(TypedDict):
    """A gate of a build.

    Attributes:
        name: name of the gate.
        limit: the limit, in words; empty without a limit.
        found: the measured figure, in words; None if it was not measured.
        passed: whether the gate passed; None if it was not judged.
    """

    name: str
    limit: str
    found: str | None
    passed: bool | None


class StageTime(TypedDict):
    """The duration of one stage of a build.

    Attributes:
        name: name of the stage.
        seconds: its duration.
    """

    name: str
    seconds: float


class BuildFacts(TypedDict):
    """Further facts of a build.

    Attributes:
        stages: the completed stages.
        bundle: file of the bundle; None if there is none.
        signed_by: the key that signed the bundle.
    """

    stages: list[StageTime]
    #: Layers that fell back from INT8; None if no INT8 file was made.
    rescued: list[str] | None
    bundle: str | None
    signed_by: str | None


@dataclass(frozen=True)
class Facts:
    """A comparison of models; the first is the reference for the others.

    Attributes:
        title: heading of the page.
        kind: "compare" or "build".
        created: time of the comparison.
        reproduce: shell commands that repeat the measurement.
        data: the validation images; None without a data set.
        machine: the machine that measured, and its package versions.
        items: one Row for each model.
        classes: class names.
        gates: the gates of a build.
        gallery: the images of the gallery (`gallery.choose`); None without a gallery.
        more: further facts of a build.
        schema_version: version of this JSON.
    """

    title: str
    kind: str
    created: str
    reproduce: tuple[str, ...]
    data: ValidationImages | None
    machine: Machine
    items: tuple[Row, ...]
    classes: tuple[str, ...] = ()
    gates: tuple[Gate, ...] = ()
    gallery: Gallery | None = None
    more: BuildFacts | None = None
    schema_version: int = SCHEMA_VERSION
