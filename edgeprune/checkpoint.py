"""Ultralytics checkpoints: opened without running what is in them, written so that stock Ultralytics opens them.

A `.pt` file is a pickle, and unpickling runs code. Files are therefore read with torch's `weights_only` loader and
Ultralytics' own list of known classes (what ULTRALYTICS_SAFE_LOAD=1 does); there is no unsafe fallback.
"""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
import zipfile
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch
from edgeprune_device.errors import InputError
from edgeprune_device.files import write_atomic
from torch import nn

_TASKS = ("detect",)


@dataclass
class Checkpoint:
    """A detector and what came with it. `model` is float32, in eval mode, on the CPU."""

    path: Path
    model: nn.Module
    extra: dict

    @property
    def names(self) -> list[str]:
        names = self.model.names
        return [str(names[i]) for i in range(len(names))]

    @property
    def imgsz(self) -> int | None:
        """The size (pixels) it was trained at, where the file says so."""
        size = (self.extra.get("train_args") or {}).get("imgsz")
        return int(size) if isinstance(size, (int, float)) and size > 0 else None


def load(path: str | Path) -> Checkpoint:
    """Open an Ultralytics detection checkpoint without executing code from it.

    Raises:
        InputError: missing, damaged, not an Ultralytics checkpoint, foreign classes inside, or not a detector.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.suffix != ".pt":
        raise InputError(f"{path}: not a .pt checkpoint")
    from ultralytics.nn.tasks import load_checkpoint, torch_safe_load

    with _quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what we are about to refuse
        try:
            raw, _ = torch_safe_load(path.resolve(), safe_only=True)
        except Exception as error:  # Ultralytics and torch raise a dozen kinds here; each means the same to the user
            raise InputError(f"{path}: {_reason(path, error)}") from error
        model = (raw.get("ema") or raw.get("model")) if isinstance(raw, dict) else None
        if not isinstance(model, nn.Module) or not hasattr(model, "yaml"):
            raise InputError(f"{path}: no Ultralytics model inside; give the best.pt that `yolo train` wrote")
        with safe_load():
            model, raw = load_checkpoint(path.resolve())
    task = getattr(model, "task", None)
    if task not in _TASKS:
        raise InputError(f"{path}: task {task!r} is not supported; edgeprune prunes detectors (detect)")
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    if not all(torch.isfinite(v).all() for v in model.state_dict().values() if v.is_floating_point()):
        raise InputError(f"{path}: the weights hold NaN or infinite values")
    return Checkpoint(path, model, {k: v for k, v in raw.items() if k not in ("model", "ema", "optimizer")})


def save(path: str | Path, model: nn.Module, like: Checkpoint) -> None:
    """Write `model` as a stripped half-precision checkpoint of stock classes, atomically."""
    write_atomic(Path(path), to_bytes(model, like))


def to_bytes(model: nn.Module, like: Checkpoint) -> bytes:
    """The file `save` writes. `like` gives the training arguments that go with it; paths of this machine are left out.

    Raises:
        InputError: a weight does not fit half precision.
    """
    model = copy.deepcopy(model).cpu().half().eval()
    for attribute in ("criterion", "args", "pt_path"):
        if hasattr(model, attribute):
            setattr(model, attribute, None)
    arguments = {k: v for k, v in (like.extra.get("train_args") or {}).items() if k not in _LOCAL}
    model.args = {k: arguments[k] for k in ("imgsz", "data", "task", "single_cls") if k in arguments}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if not all(torch.isfinite(v).all() for v in model.state_dict().values() if v.is_floating_point()):
        raise InputError("the weights do not fit half precision (NaN or infinite after conversion)")
    content = {
        "epoch": -1,
        "best_fitness": None,
        "model": model,
        "ema": None,
        "updates": None,
        "optimizer": None,
        "train_args": arguments,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "version": like.extra.get("version"),
        "license": "AGPL-3.0 (https://ultralytics.com/license)",
        "docs": "https://docs.ultralytics.com",
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


#: Arguments that name files or devices of the machine that trained; the next one has no use for them.
_LOCAL = {"model", "data", "project", "name", "save_dir", "resume", "pretrained", "device", "workers", "cfg", "source"}


def _reason(path: Path, error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError) and "Permission" in text:
        return "not readable: permission denied"
    if "YOLOv5" in text or _mentions(path, b"models.yolo"):
        return "a checkpoint of the old YOLOv5 repository; train with Ultralytics (yolov5nu.pt opens)"
    if "TorchScript" in text:
        return "a TorchScript archive; give the .pt that it was exported from"
    if "outside the supported" in text or "Unsupported" in text or "weights_only" in text or "GLOBAL" in text:
        return (
            "holds classes that are not Ultralytics' own, so it was not opened (unpickling would run its code); "
            "re-save it with stock Ultralytics classes only"
        )
    return "damaged, cut off, or not a checkpoint at all; fetch it again"


def _mentions(path: Path, module: bytes) -> bool:
    """Whether the pickle inside names a module; read as bytes, not executed."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(module in archive.read(n) for n in archive.namelist() if n.endswith("data.pkl"))
    except (OSError, zipfile.BadZipFile):
        return False


@contextlib.contextmanager
def _quiet():
    """Ultralytics logs what we are about to say better."""
    from ultralytics.utils import LOGGER

    level = LOGGER.level
    LOGGER.setLevel("CRITICAL")
    try:
        yield
    finally:
        LOGGER.setLevel(level)


@contextlib.contextmanager
def safe_load():
    """Ultralytics reads its SAFE_LOAD flag once, at import; load_checkpoint() has no argument for it."""
    from ultralytics.nn import tasks

    before = tasks.SAFE_LOAD
    tasks.SAFE_LOAD = True
    try:
        yield
    finally:
        tasks.SAFE_LOAD = before
