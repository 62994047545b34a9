"""The model card of the built-in weights, generated from measured figures."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edgeprune_device.vision.accuracy import Accuracy, ClassAccuracy

from edgeprune.demo import dataset
from edgeprune.demo.scenes import NAMES

_AUGMENTATION = ("fliplr", "flipud", "scale", "translate", "hsv_h", "hsv_s", "hsv_v", "mosaic")
_TEXT = """\
# Model card: `{file}`

{network} at {size} px for the synthetic drone scenes of `edgeprune.demo`, trained from scratch (no pretrained
weights) on images from `scenes.py` only. {use}

| | |
|---|---|
| Architecture | {architecture}, {classes} classes: {names} |
| File | {size_bytes:,} bytes, half precision, stock Ultralytics classes only |
| sha256 | `{sha256}` |
| Licence | AGPL-3.0, as Ultralytics, whose code trained it; the scenes are this project's own |

## Accuracy on {val} unseen scenes

{table}

Evaluator: `edgeprune_device.vision.accuracy` (COCO mAP{overlap}), square letterbox of {size} px,
confidence 0.001, IoU 0.7, 300 detections. Small: under 32² px.{stock}

## Training

| | |
|---|---|
| Command | `{command}` |
| Training scenes | {scenes:,}, seeds {train_first:,} to {train_last:,} |
| Validation scenes | {val}, seeds {val_first:,} to {val_last:,}; no choice depended on them |
| Reserved for fine-tuning (`edgeprune build`) | from seed {tune_first:,} |
| Length | {steps:,} steps of {batch} images = {epochs:.1f} passes over the scenes, in {minutes:.0f} minutes |
| Weights | the trainer's EMA at the last step; no checkpoint was selected by its score |
| Optimizer | AdamW, learning rate {lr0} after {warmup} steps of warm-up, cosine to 1 % over the {schedule} |
| Augmentation | {augmentation} |
| Versions | {versions} |
| Hardware | {cpus} CPU cores ({machine}) shared with other work, no GPU |

A training with a time budget depends on the machine's speed, and floating-point sums depend on the number of threads.
Another run therefore gives similar weights, not the same bytes. The scenes are identical for the same versions of numpy
and OpenCV.

## Limits

- The images are synthetic. The detector is for demonstration and tests; do not expect detections on photographs.
- It was trained for minutes, not days, and more training raises its mAP. To claim that fine-tuning recovers the loss
  from pruning, compare with the control: this model, fine-tuned in the same way.
- People are drawn a fifth larger than life and only at low altitude; a rider and the cycle are one `cycle`.
- A box bounds the visible pixels; objects that are less than 35 % visible or narrower than 3 px are not labelled.
"""


#: {task: the words about its network}.
_NETWORKS = {
    "detect": {
        "network": "YOLOv8n",
        "overlap": ", equal to pycocotools",
        "use": "`edgeprune` prunes it by default.",
        "architecture": "stock Ultralytics `yolov8n.yaml`",
    },
    "obb": {
        "network": "A YOLOv8n-OBB of half the width",
        "overlap": " of the probabilistic IoU",
        "use": "`edgeprune build --task obb` prunes it by default.",
        "architecture": "stock Ultralytics `yolov8-obb.yaml` with a width of 0.125 (`yolov8n-obb-scenes.yaml`)",
    },
}


@dataclass(frozen=True)
class Training:
    """A finished training.

    Attributes:
        command: The command of the training.
        scenes: The number of training scenes.
        steps: The number of training steps.
        seconds: The duration of the training.
        schedule: The basis of the learning rate, "time" or "steps".
        warmup: The number of warm-up steps.
        settings: The arguments of Ultralytics' trainer.
        task: The task of the network.
    """

    command: str
    scenes: int
    steps: int
    seconds: float
    schedule: str
    warmup: int
    settings: Mapping[str, Any]
    task: str = "detect"


def _table(accuracy: Accuracy) -> str:
    """A table with one row for all classes and one row for each class."""

    def row(name: str, item: Accuracy | ClassAccuracy) -> str:
        figures = (item.map50, item.map50_95, item.small_map50_95)
        shown = " | ".join("–" if figure is None else f"{figure:.3f}" for figure in figures)
        return f"| {name} | {item.boxes:,} | {item.small_boxes:,} | {shown} |"

    head = "| class | boxes | small boxes | mAP50 | mAP50-95 | mAP50-95, small |\n|---|---|---|---|---|---|"
    return "\n".join([head, row("all", accuracy), *(row(item.name, item) for item in accuracy.per_class)])


def _versions() -> str:
    packages = ("torch", "ultralytics", "numpy", "opencv-python")
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)])


def _machine() -> str:
    """The name of the processor, if Linux reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def text(weights: Path, training: Training, accuracy: Accuracy, stock: tuple[float, float] | None) -> str:
    """The card of `weights`.

    Args:
        weights: The checkpoint.
        training: Its training.
        accuracy: Its accuracy on the validation scenes, from the evaluator.
        stock: Its mAP50 and mAP50-95 according to Ultralytics; None if they were not measured.
    """
    theirs = "not measured" if stock is None else f"mAP50 {stock[0]:.3f}, mAP50-95 {stock[1]:.3f}"
    data, settings, val = weights.read_bytes(), training.settings, accuracy.pictures
    return _TEXT.format(
        **_NETWORKS[training.task],
        file=weights.name,
        size=dataset.SIZE,
        classes=len(NAMES),
        names=", ".join(NAMES),
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        val=val,
        table=_table(accuracy),
        stock=f"\nUltralytics' own `val` with `rect=False`: {theirs}.",
        command=training.command,
        scenes=training.scenes,
        train_first=dataset.WEIGHTS_SEED,
        train_last=dataset.WEIGHTS_SEED + training.scenes - 1,
        val_first=dataset.VAL_SEED,
        val_last=dataset.VAL_SEED + val - 1,
        tune_first=dataset.TUNE_SEED,
        steps=training.steps,
        batch=settings["batch"],
        epochs=training.steps * settings["batch"] / training.scenes,
        minutes=training.seconds / 60,
        lr0=settings["lr0"],
        warmup=training.warmup,
        schedule=training.schedule,
        augmentation=", ".join(f"{k} {settings[k]}" for k in _AUGMENTATION),
        versions=_versions(),
        cpus=os.cpu_count(),
        machine=_machine(),
    )
