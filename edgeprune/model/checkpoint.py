"""Ultralytics checkpoints: opened without running the code in them, written so that stock Ultralytics opens them.

A `.pt` file is a pickle, and unpickling runs code. Files are therefore read with torch's `weights_only` loader and
Ultralytics' own list of known classes (as ULTRALYTICS_SAFE_LOAD=1 does); there is no unsafe fallback. The YAML inside
is checked (architecture.py), and hooks are dropped: stock Ultralytics would run them later, out of a file that
edgeprune wrote.
"""

from __future__ import annotations

import contextlib
import copy
import io
import re
import tempfile
import types
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch
from edgeprune_device.errors import InputError
from edgeprune_device.files import write_atomic
from edgeprune_device.hint import no_such_file
from torch import nn

from edgeprune.model import architecture

#: Model class -> task. Other classes (RT-DETR, YOLO-World, YOLOE) are refused by name.
_TASK_OF = {
    "DetectionModel": "detect",
    "SegmentationModel": "segment",
    "PoseModel": "pose",
    "OBBModel": "obb",
    "ClassificationModel": "classify",
}
TASKS = tuple(_TASK_OF.values())


@dataclass
class Checkpoint:
    """A network and the other content of its file.

    Attributes:
        path: The file; it names the network in messages.
        model: The network: float32, in eval mode, on the CPU.
        extra: The other entries of the file; `train_args` holds the training arguments.
    """

    path: Path
    model: nn.Module
    extra: dict

    @property
    def task(self) -> str:
        """The task, one of TASKS."""
        return self.model.task

    @property
    def names(self) -> list[str]:
        """The class names, in the order of their numbers."""
        names = self.model.names
        return [str(names[i]) for i in range(len(names))]

    @property
    def imgsz(self) -> int | None:
        """The image size of the training, px; None where the file does not state it."""
        size = (self.extra.get("train_args") or {}).get("imgsz")
        size = max(size) if isinstance(size, (list, tuple)) and size else size
        return int(size) if isinstance(size, (int, float)) and size > 0 else None

    def input_size(self, asked: int | None) -> int:
        """The side of the square image, px: `asked`, else the size of the training, else 640.

        Raises:
            InputError: The size is not a multiple of the model's stride.
        """
        size, stride = asked or self.imgsz or 640, int(max(self.model.stride))
        if size < 32 or size % stride:
            raise InputError(f"--imgsz {size} must be a multiple of {stride}, the model's stride")
        return size


def load(path: str | Path, tasks: tuple[str, ...] = ("detect",)) -> Checkpoint:
    """Open an Ultralytics checkpoint without executing code from it.

    Args:
        path: The `.pt` file.
        tasks: The tasks, of TASKS, that the caller can work with.

    Raises:
        InputError: The file is missing, damaged, no Ultralytics checkpoint, of another task, or holds foreign classes.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(no_such_file(path))
    if path.suffix != ".pt":
        raise InputError(f"{path}: not a .pt checkpoint")
    from ultralytics.nn.tasks import _SafeLoad, torch_safe_load

    if not _SafeLoad.SUPPORTED:
        raise InputError("this torch cannot load checkpoints safely; install torch 2.6 or newer")
    with _quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are about a file that is refused below
        try:
            raw, _ = torch_safe_load(path.absolute(), safe_only=True)
        except Exception as error:  # Ultralytics and torch raise a dozen kinds here; each means the same to the user
            raise InputError(f"{path}: {_reason(path, error)}") from error
    model = (raw.get("ema") or raw.get("model")) if isinstance(raw, dict) else None
    if not isinstance(model, nn.Module) or not hasattr(model, "yaml"):
        raise InputError(f"{path}: no Ultralytics model inside; give the best.pt that `yolo train` wrote")
    _drop_hooks(model)
    _check(path, model, tasks)
    extra = {k: v for k, v in raw.items() if k not in ("model", "ema", "optimizer")}
    extra["train_args"] = _figures(extra.get("train_args"))
    return Checkpoint(path, _ready(model, extra), extra)


def of_network(model: nn.Module, path: Path, arguments: Mapping, tasks: tuple[str, ...] = ("detect",)) -> Checkpoint:
    """Make a Checkpoint of a network in memory. The network is not copied: it is made float32 and eval on the CPU.

    Args:
        model: The network.
        path: Names the network in messages.
        arguments: The arguments that it was trained with.
        tasks: The tasks, of TASKS, that the caller can work with.

    Raises:
        InputError: The network is none that edgeprune takes, or its batch norms were fused away.
    """
    kind = type(model).__name__
    if kind in _TASK_OF and not any(isinstance(m, nn.BatchNorm2d) for m in model.modules()):
        raise InputError(f"this {kind} was fused (YOLO.fuse does that, in place): open its file anew")
    _check(path, model, tasks)
    raw = {"train_args": _figures(arguments)}
    return Checkpoint(path, _ready(model.cpu(), raw), raw)


def as_yolo(source: Checkpoint):
    """The network as a new Ultralytics YOLO, as if its file had been opened."""
    from ultralytics import YOLO

    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder, _quiet(), safe_load():
        path = Path(folder) / f"{source.path.stem}.pt"
        save(path, source.model, like=source)
        opened = YOLO(str(path), task=source.task)
    opened.ckpt_path = opened.model.pt_path = str(source.path)
    return opened


def _check(path: Path, model: nn.Module, tasks: tuple[str, ...]) -> None:
    kind = type(model).__name__
    task = _TASK_OF.get(kind)
    if task is None:
        raise InputError(f"{path}: a {kind} is not supported; edgeprune takes YOLO models: {', '.join(TASKS)}")
    if task not in tasks:
        raise InputError(
            f"{path}: task {task!r} is not supported here, only {', '.join(tasks)}; "
            "`edgeprune prune` without --data takes every task"
        )
    for module in model.modules():
        if hasattr(module, "yaml"):
            architecture.check(path, module.yaml)
    if not all(torch.isfinite(v).all() for v in model.state_dict().values() if v.is_floating_point()):
        raise InputError(f"{path}: the weights hold NaN or infinite values; take an earlier checkpoint")
    names = getattr(model, "names", None)
    if not names or (isinstance(names, dict) and set(names) != set(range(len(names)))):
        raise InputError(f"{path}: its class names are missing or not numbered 0, 1, …")
    taken = next(m for m in model.modules() if isinstance(m, nn.Conv2d)).in_channels
    if taken != 3:
        raise InputError(f"{path}: takes pictures of {taken} channels; edgeprune knows 3 (RGB)")


def _drop_hooks(model: nn.Module) -> None:
    """Remove the functions that a file would have called beside the network's own methods. Stock checkpoints hold none.

    A module's own `forward_fuse` as its `forward` stays.
    """
    for module in model.modules():
        own = vars(module)
        for name, value in list(own.items()):
            if name.endswith("_hooks") and value:
                value.clear()
            function = isinstance(value, (types.FunctionType, types.MethodType, type))
            shadows = function and callable(getattr(type(module), name, None))
            # Ultralytics' own is `m.forward = m.forward_fuse`.
            if name == "_compiled_call_impl" or (shadows and getattr(value, "__self__", None) is not module):
                del own[name]


def _figures(arguments: object) -> dict:
    """The training arguments that are words, numbers or lists of numbers."""
    if not isinstance(arguments, Mapping):
        return {}
    number, word = (bool, int, float, type(None)), (str, Path)
    return {
        str(k): str(v) if isinstance(v, word) else v
        for k, v in arguments.items()
        if isinstance(v, (*number, *word)) or (isinstance(v, (list, tuple)) and all(isinstance(i, number) for i in v))
    }


def _ready(model: nn.Module, raw: dict) -> nn.Module:
    """Bring a model of any age into the state that Ultralytics' load_checkpoint leaves it in."""
    model = model.float().eval()
    model.args = {k: v for k, v in (raw.get("train_args") or {}).items() if k in ("imgsz", "task", "single_cls")}
    model.task = _TASK_OF[type(model).__name__]
    if not hasattr(model, "stride"):
        model.stride = torch.tensor([32.0])
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = True
        elif isinstance(module, nn.Upsample) and not hasattr(module, "recompute_scale_factor"):
            module.recompute_scale_factor = None  # saved by torch < 1.11
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model


def save(path: str | Path, model: nn.Module, like: Checkpoint, extra: Mapping[str, dict] | None = None) -> None:
    """Write `model` as a stripped half-precision checkpoint of stock classes, atomically.

    Args:
        path: The file to write.
        model: See `to_bytes`.
        like: See `to_bytes`.
        extra: See `to_bytes`.

    Raises:
        InputError: A weight does not fit half precision.
    """
    write_atomic(Path(path), to_bytes(model, like, extra))


def to_bytes(model: nn.Module, like: Checkpoint, extra: Mapping[str, dict] | None = None) -> bytes:
    """The bytes of the file that `save` writes.

    Args:
        model: The network; it is not changed.
        like: The checkpoint whose training arguments go with the network; paths of this machine are left out. Its own
            extra values are left out as well, since they belong to other weights.
        extra: Plain values under keys of their own. Stock Ultralytics ignores them; `load` returns them.

    Raises:
        InputError: A weight does not fit half precision.
    """
    model = copy.deepcopy(model).cpu().half().eval()
    _drop_hooks(model)
    for attribute in ("criterion", "pt_path"):
        if hasattr(model, attribute):
            setattr(model, attribute, None)
    arguments = {k: v for k, v in (like.extra.get("train_args") or {}).items() if _travels(k, v)}
    model.args = {k: arguments[k] for k in ("imgsz", "task", "single_cls") if k in arguments}
    if isinstance(model.yaml, dict) and "yaml_file" in model.yaml:
        model.yaml["yaml_file"] = Path(str(model.yaml["yaml_file"])).name
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
        "version": _word(like.extra.get("version")),
        "license": "AGPL-3.0 (https://ultralytics.com/license)",
        "docs": "https://docs.ultralytics.com",
        **(extra or {}),
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _travels(name: str, value) -> bool:
    """Whether a training argument is valid on another machine. Arguments that name files or devices are not."""
    from ultralytics.utils import DEFAULT_CFG_DICT

    return name in DEFAULT_CFG_DICT and (not isinstance(value, str) or (name in _WORDS and _word(value) is not None))


def _word(text: object) -> str | None:
    """The text if it is a name or a version number; None for anything else."""
    return text if isinstance(text, str) and re.fullmatch(r"[0-9A-Za-z_.+-]{1,40}", text) else None


#: Text arguments that are no paths.
_WORDS = {"task", "optimizer", "auto_augment", "copy_paste_mode", "split", "mode"}


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
    """Whether the pickle inside names a module. It is read as bytes, not executed."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(module in archive.read(n) for n in archive.namelist() if n.endswith("data.pkl"))
    except (OSError, zipfile.BadZipFile):
        return False


@contextlib.contextmanager
def _quiet():
    """Suppress Ultralytics' log; the caller reports the problem with more detail."""
    from ultralytics.utils import LOGGER

    level = LOGGER.level
    LOGGER.setLevel("CRITICAL")
    try:
        yield
    finally:
        LOGGER.setLevel(level)


@contextlib.contextmanager
def safe_load():
    """Within the block, Ultralytics opens checkpoints safely.

    Ultralytics reads its SAFE_LOAD flag once, at import; load_checkpoint() has no argument for it.
    """
    from ultralytics.nn import tasks

    before = tasks.SAFE_LOAD
    tasks.SAFE_LOAD = True
    try:
        yield
    finally:
        tasks.SAFE_LOAD = before
