"""Packs files, figures and a target into one signed bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from edgeprune_device import clock, onnx_file
from edgeprune_device.errors import InputError, reason
from edgeprune_device.layouts import FLOAT32_NCHW
from edgeprune_device.options import MAX_MEGAPIXELS
from edgeprune_device.size import Size
from edgeprune_device.trust import keys
from edgeprune_device.trust.bundle import Bundle
from edgeprune_device.vision.accuracy import Matches
from edgeprune_device.vision.evaluation import EvaluationSet
from edgeprune_device.vision.postprocess import CONF, IOU, MAX_DET
from edgeprune_device.vision.preprocess import PAD, STRIDE

from edgeprune import versions
from edgeprune.data.dataset import Dataset
from edgeprune.data.samples import pick
from edgeprune.model import head

#: Limits of the bundle's evaluation set: number of images, and their bytes.
PICTURES = 64
MAX_BYTES = 24 << 20


def evaluation_pictures(dataset: Dataset) -> list[int]:
    """The indices of the validation images for the bundle: spread evenly, up to PICTURES images and MAX_BYTES.

    Images that a device refuses by default are left out.

    Raises:
        InputError: no image is left.
    """
    most, pictures = MAX_MEGAPIXELS.default, dataset.val
    chosen: list[int] = []
    size = 0
    small = [i for i, path in enumerate(pictures) if prod(dataset.shape(path)) <= most * 10**6]
    for i in pick(small, PICTURES):
        size += pictures[i].stat().st_size
        if size > MAX_BYTES and chosen:
            break
        chosen.append(i)
    if not chosen:
        raise InputError(
            f"{pictures[0].parent}: no validation image of at most {most} megapixels for the bundle's evaluation set; "
            "scale some down"
        )
    return chosen


def evaluation_set(dataset: Dataset, pictures: Sequence[Path]) -> bytes:
    """Pack images and their labels into the bundle's evaluation set.

    Args:
        dataset: the data set that holds the labels.
        pictures: image files.

    Returns:
        The bytes of evaluation.zip.
    """
    items = []
    for i, path in enumerate(pictures):
        data = path.read_bytes()
        items.append((f"{i:04d}{path.suffix.lower()}", data, dataset.truth(path, dataset.shape(path))))
    return EvaluationSet.pack(items)


def figures(matches: Matches, subset: Sequence[int]) -> dict[str, Any]:
    """The mAP of a model on the bundle's evaluation set, which the device measures again.

    Args:
        matches: the model's matches on all validation images.
        subset: indices of the images of the evaluation set.
    """
    accuracy = matches.accuracy(np.asarray(subset))
    return {
        "map50": accuracy.map50,
        "map50_95": accuracy.map50_95,
        "small_map50_95": accuracy.small_map50_95,
    }


@dataclass(frozen=True)
class Contents:
    """The contents of a bundle.

    Attributes:
        name: name of the bundle.
        target: name of the target.
        task: name of the task.
        names: class names, in the order of the model's outputs.
        imgsz: side of a square input, or (height, width), px.
        models: {precision: manifest entry without its payload}.
        files: {precision: ONNX file}.
        engines: {name: manifest entry}.
        plans: {payload name: file of the engine}.
        evaluation: the packed evaluation set.
        described: numbers of images and boxes of the evaluation set, and the accuracy of each model on it.
        lineage: hashes and costs of the networks that the files were made from.
    """

    name: str
    target: str
    task: str
    names: Sequence[str]
    imgsz: int | Sequence[int]
    models: Mapping[str, dict[str, Any]]
    files: Mapping[str, Path]
    engines: Mapping[str, dict[str, Any]]
    plans: Mapping[str, Path]
    evaluation: bytes
    described: dict[str, Any]
    lineage: dict[str, Any]


def _whole(file: Path) -> bytes:
    """The bytes of an ONNX file; InputError if it needs a second file, which the signature would not cover."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({reason(error)})") from error
    onnx_file.refuse_outside(data, str(file))
    return data


def pack(path: Path, contents: Contents) -> Bundle:
    """Write and sign a bundle.

    Args:
        path: the file to write.
        contents: its contents.

    Returns:
        The bundle, opened.

    Raises:
        InputError: the bundle cannot be written, an ONNX file needs a second file, or the formats of its files differ.
    """
    entries: dict[str, dict[str, Any]] = {}
    payloads: dict[str, bytes | Path] = {}
    formats: dict[str, tuple[str, str]] = {}
    for precision, entry in contents.models.items():
        file = contents.files[precision]
        model = onnx.load_from_string(_whole(file))
        output = head.output_of_file(model, classes=len(contents.names), what=str(file))
        formats[precision] = (output, head.layout_of_file(model, what=str(file)))
        payload = f"model.{precision}.{'' if formats[precision][1] == FLOAT32_NCHW else 'device.'}onnx"
        payloads[payload] = file
        opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
        entries[precision] = {"payload": payload, "opset": opset, **entry}
    (output, layout), *others = sorted(set(formats.values()))
    if others:
        described = ", ".join(f"{precision}: {' from '.join(found)}" for precision, found in formats.items())
        raise InputError(
            f"{path}: files with different output or input formats ({described}); export all files with the same "
            "options"
        )
    payloads.update(contents.plans)
    payloads["evaluation.zip"] = contents.evaluation
    manifest = {
        "name": contents.name,
        "counter": keys.next_counter(),
        "created": clock.wall(),
        "edgeprune_version": versions.edgeprune(),
        "target": contents.target,
        "task": contents.task,
        "classes": list(contents.names),
        "imgsz": list(Size.of(contents.imgsz)),
        "letterbox": {"pad": PAD, "stride": STRIDE},
        "nms": {"conf": CONF, "iou": IOU, "max_det": MAX_DET},
        "output": output,
        **({} if layout == FLOAT32_NCHW else {"layout": layout}),  # without it, earlier versions read the manifest
        "models": entries,
        "engines": dict(contents.engines),
        "evaluation": {"payload": "evaluation.zip", **contents.described},
        "lineage": contents.lineage,
    }
    return Bundle.write(path, manifest, payloads, keys.load_or_create())
