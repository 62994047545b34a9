"""The model card of the embedded weights, generated from measured figures and never written by hand."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib.metadata import version
from pathlib import Path

from edgeprune_device.vision.accuracy import Accuracy

from edgeprune.demo import dataset
from edgeprune.demo.scenes import NAMES

_AUGMENTATION = ("fliplr", "flipud", "scale", "translate", "hsv_h", "hsv_s", "hsv_v", "mosaic")
_TEXT = """\
# Model card: `{file}`

YOLOv8n at {size} px for the synthetic drone scenes of `edgeprune.demo`, trained from scratch (no pretrained
weights, no picture that was not drawn by `scenes.py`). It is what `edgeprune` prunes when it is given nothing else.

| | |
|---|---|
| Architecture | stock Ultralytics `yolov8n.yaml`, {classes} classes: {names} |
| File | {size_bytes:,} bytes, half precision, stock Ultralytics classes only |
| sha256 | `{sha256}` |
| Licence | AGPL-3.0, as Ultralytics, whose code trained it; the scenes are this project's own |

## Accuracy on {val} scenes that no training has seen

{table}

Evaluator: `edgeprune_device.vision.accuracy` (COCO mAP, equal to pycocotools), square letterbox of {size} px,
confidence 0.001, IoU 0.7, 300 detections. Small: under 32² px. Ultralytics' own `val` with `rect=False` gives mAP50
{stock50:.3f}, mAP50-95 {stock:.3f}.

## Training

| | |
|---|---|
| Command | `{command}` |
| Training scenes | {scenes:,}, seeds {train_first:,} to {train_last:,} |
| Validation scenes | {val}, seeds {val_first:,} to {val_last:,}; nothing was chosen by them |
| Kept apart for fine-tuning (`edgeprune build`) | from seed {tune_first:,} |
| Length | {steps:,} steps of {batch} pictures = {epochs:.1f} passes over the scenes, in {minutes:.0f} minutes |
| Weights | the trainer's EMA at the last step; no checkpoint was picked by its score |
| Optimizer | AdamW, learning rate {lr0} after {warmup} steps of warm-up, cosine to 1 % over the {schedule} |
| Augmentation | {augmentation} |
| Versions | {versions} |
| Hardware | {cpus} CPU cores ({machine}) shared with other work, no GPU |

A run that follows the clock depends on the machine's speed, and a CPU's sums on its threads: another run gives
weights like these, not the same bytes. The scenes themselves are the same for the same versions of numpy and OpenCV.

## Limits

- The pictures are synthetic. This detector is for demonstration and tests; do not expect it to
  find anything on photographs.
- It was trained for minutes, not days: more training raises its mAP. A claim that fine-tuning recovers what pruning
  cost needs the control, this model fine-tuned in the same way.
- People are drawn a fifth larger than life and only at low altitude; a rider and the cycle are one `cycle`.
- A box bounds the visible pixels; objects of which less than 35 % shows, or under 3 px wide, are not labelled.
"""


def _table(accuracy: Accuracy) -> str:
    """A table with one line for all classes, and one for each class."""

    def row(name: str, item) -> str:
        figures = (item.map50, item.map50_95, item.small_map50_95)
        shown = " | ".join("–" if figure is None else f"{figure:.3f}" for figure in figures)
        return f"| {name} | {item.boxes:,} | {item.small_boxes:,} | {shown} |"

    head = "| class | boxes | of these small | mAP50 | mAP50-95 | mAP50-95, small |\n|---|---|---|---|---|---|"
    return "\n".join([head, row("all", accuracy), *(row(item.name, item) for item in accuracy.per_class)])


def _versions() -> str:
    packages = ("torch", "ultralytics", "numpy", "opencv-python")
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)])


def _machine() -> str:
    """The name of the processor where Linux states it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def text(
    accuracy: Accuracy,
    stock: tuple[float, float],
    *,
    weights: Path,
    command: str,
    scenes: int,
    steps: int,
    seconds: float,
    schedule: str,
    warmup: int,
    settings: dict,
) -> str:
    """The card of `weights`.

    Args:
        accuracy: Accuracy on the validation scenes, by the evaluator.
        stock: mAP50 and mAP50-95 by Ultralytics.
        weights: The checkpoint.
        command: The command of the training.
        scenes: The number of training scenes.
        steps: The number of training steps.
        seconds: The duration of the training.
        schedule: The learning rate followed "time" or "steps".
        warmup: The number of warm-up steps.
        settings: The training arguments.
    """
    data, batch, val = weights.read_bytes(), settings["batch"], accuracy.pictures
    return _TEXT.format(
        file=weights.name,
        size=dataset.SIZE,
        classes=len(NAMES),
        names=", ".join(NAMES),
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        val=val,
        table=_table(accuracy),
        stock50=stock[0],
        stock=stock[1],
        command=command,
        scenes=scenes,
        train_first=dataset.WEIGHTS_SEED,
        train_last=dataset.WEIGHTS_SEED + scenes - 1,
        val_first=dataset.VAL_SEED,
        val_last=dataset.VAL_SEED + val - 1,
        tune_first=dataset.TUNE_SEED,
        steps=steps,
        batch=batch,
        epochs=steps * batch / scenes,
        minutes=seconds / 60,
        lr0=settings["lr0"],
        warmup=warmup,
        schedule=schedule,
        augmentation=", ".join(f"{k} {settings[k]}" for k in _AUGMENTATION),
        versions=_versions(),
        cpus=os.cpu_count(),
        machine=_machine(),
    )
