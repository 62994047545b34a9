"""Packs files, figures and a target into one signed bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from edgeprune_device import clock
from edgeprune_device.errors import InputError
from edgeprune_device.trust import keys
from edgeprune_device.trust.bundle import Bundle
from edgeprune_device.vision.accuracy import Matches
from edgeprune_device.vision.evaluation import EvaluationSet

from edgeprune import versions
from edgeprune.data.dataset import Dataset
from edgeprune.data.samples import pick
from edgeprune.model import head

#: Limits of the bundle's evaluation set: number of images, and their bytes.
PICTURES = 64
MAX_BYTES = 24 << 20


def evaluation_pictures(pictures: Sequence[Path]) -> list[int]:
    """The indices of the validation images for the bundle: spread evenly, up to PICTURES images and MAX_BYTES."""
    order = pick(range(len(pictures)), PICTURES)
    chosen, size = [], 0
    for i in order:
        size += pictures[i].stat().st_size
        if size > MAX_BYTES and chosen:
            break
        chosen.append(i)
    return chosen


def evaluation_set(dataset: Dataset, pictures: Sequence[Path]) -> bytes:
    """Pack images and their labels into the bundle's evaluation set.

    Args:
        dataset: the data set that holds the labels.
        pictures: image files.

    Returns:
        The bytes of evaluation.zip.
    """
    from edgeprune_device.vision.preprocess import decode

    items = []
    for i, path in enumerate(pictures):
        data = path.read_bytes()
        shape = decode(data, str(path)).shape[:2]
        items.append((f"{i:04d}{path.suffix.lower()}", data, dataset.truth(path, shape)))
    return EvaluationSet.pack(items)


def figures(matches: Matches, subset: Sequence[int]) -> dict:
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


def pack(
    path: Path,
    *,
    name: str,
    target: str,
    names: Sequence[str],
    imgsz: int,
    models: Mapping[str, dict],
    files: Mapping[str, Path],
    engines: Mapping[str, dict],
    plans: Mapping[str, bytes],
    evaluation: bytes,
    described: dict,
    lineage: dict,
) -> Bundle:
    """Write and sign a bundle.

    Args:
        path: the file to write.
        name: name of the bundle.
        target: name of the target.
        names: class names, in the order of the model's outputs.
        imgsz: network input, px.
        models: {precision: manifest entry without its payload}.
        files: {precision: ONNX file}.
        engines: {name: manifest entry}.
        plans: {payload name: bytes of the engine}.
        evaluation: the packed evaluation set.
        described: numbers of images and boxes of the evaluation set, and the accuracy of each model on it.
        lineage: hashes and costs of the networks that the files were made from.

    Returns:
        The bundle, opened.

    Raises:
        InputError: the bundle cannot be written, or the outputs of its files have different meanings.
    """
    entries, outputs = {}, {}
    for precision, entry in models.items():
        model = onnx.load(files[precision])
        outputs[precision] = head.output_of_file(model, classes=len(names), what=str(files[precision]))
        opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
        entries[precision] = {"payload": f"model.{precision}.onnx", "opset": opset, **entry}
    output, *others = sorted(set(outputs.values()))
    if others:
        raise InputError(f"{path}: the outputs of its files mean different things ({outputs}); export them alike")
    payloads: dict[str, bytes | Path] = {f"model.{p}.onnx": files[p] for p in models}
    payloads.update(plans)
    payloads["evaluation.zip"] = evaluation
    manifest = {
        "name": name,
        "counter": keys.next_counter(),
        "created": clock.wall(),
        "edgeprune_version": versions.edgeprune(),
        "target": target,
        "classes": list(names),
        "imgsz": [imgsz, imgsz],
        "letterbox": {"pad": 114, "stride": 32},
        "nms": {"conf": 0.25, "iou": 0.7, "max_det": 300},
        "output": output,
        "models": entries,
        "engines": dict(engines),
        "evaluation": {"payload": "evaluation.zip", **described},
        "lineage": lineage,
    }
    return Bundle.write(path, manifest, payloads, keys.load_or_create())
