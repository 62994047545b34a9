"""Ultralytics checkpoints, opened without running their code and written in stock format.

No code in a file is run (archive.py). The YAML inside is checked (architecture.py), and hooks are dropped, because
stock Ultralytics would run them later from a file that edgeprune wrote.
"""

from __future__ import annotations

import contextlib
import copy
import io
import re
import tempfile
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from edgeprune_device.errors import InputError
from edgeprune_device.files import write_atomic
from edgeprune_device.option import named
from edgeprune_device.progress import Say, silent
from edgeprune_device.size import Size, SizeLike, largest_of
from torch import nn

from edgeprune import tasks
from edgeprune.model import architecture, archive
from edgeprune.model.head import select, strides
from edgeprune.model.shape import rectangle

if TYPE_CHECKING:
    from ultralytics.models import YOLO

#: The tasks that every command supports.
SUPPORTED = tuple(tasks.TASKS)
#: The tasks of networks that can be pruned without images.
TASKS = ("detect", "segment", "pose", "obb", "classify")


@dataclass
class Checkpoint:
    """A network and the other content of its file.

    Attributes:
        path: The file; it names the network in messages.
        model: The network: float32, in eval mode, on the CPU.
        extra: The other entries of the file; `train_args` holds the training arguments.
        stock: Whether stock Ultralytics, too, opens the file safely and trains that network.
    """

    path: Path
    model: nn.Module
    extra: dict[str, Any]
    stock: bool = True

    @property
    def task(self) -> str:
        """The task, one of TASKS."""
        return tasks.NETWORKS[type(self.model).__name__]

    @property
    def names(self) -> list[str]:
        """The class names, in the order of their numbers."""
        names: Any = self.model.names
        return [str(names[i]) for i in range(len(names))]

    @property
    def imgsz(self) -> Size | None:
        """The image size of the training, px; None if the file does not state it."""
        size = (self.extra.get("train_args") or {}).get("imgsz")
        sides = size if isinstance(size, (list, tuple)) else [size]
        known = [int(side) for side in sides if isinstance(side, (int, float)) and side > 0]
        return Size(known[0], known[-1]) if len(known) == len(sides) in (1, 2) else None

    def with_head(self, head: str | None) -> Checkpoint:
        """This checkpoint with the head that is exported and measured; the network is copied.

        Args:
            head: See `head.select`; None returns this checkpoint.

        Raises:
            InputError: The network does not have this head.
        """
        if head is None:
            return self
        chosen = replace(self, model=copy.deepcopy(self.model))
        select(chosen.model, head)
        return chosen

    def input_size(
        self, asked: SizeLike | None, warn: Say = silent, *, shapes: Iterable[tuple[int, int]] | None = None
    ) -> Size:
        """The size of the network's input, px: `asked`, else the size of the training, else 640.

        Sides that are no multiples of the model's stride are raised to the next one, as Ultralytics does.

        Args:
            asked: The value of the option, or None.
            warn: Called with a line if a side is raised, or if the network was trained on images of varying shape.
            shapes: (height, width) of the data set's images, px; None without a data set.

        Raises:
            InputError: The value asks for the shape of the images, and no images are given.
        """
        stride = max(strides(self.model))
        longer = largest_of(asked)
        if longer is not None:
            if shapes is None:
                raise InputError(f"{named('imgsz', asked)}: needs images; give {named('data', 'data.yaml')}")
            square = Size.of(longer).rounded(stride)
            size = rectangle(shapes, square.width, stride)
            if size is None:
                warn(f"{named('imgsz', asked)}: the images have no common shape; the input is {square}, a square")
                return square
            return size
        wanted = Size.of(asked) if isinstance(asked, (int, tuple)) else self.imgsz or Size(640, 640)
        size = wanted.rounded(stride)
        if size != wanted:
            warn(f"{named('imgsz', wanted)}: raised to {size}, because the model's stride is {stride}")
        if asked is None and (self.extra.get("train_args") or {}).get("rect") is True:
            warn(
                f"{self.path.name}: trained with rect=True, on images of varying shape; the input is {size}; "
                f"{named('imgsz', f'auto:{max(size)}')} takes the shape of the images"
            )
        return size


def load(path: str | Path, supported: tuple[str, ...] = SUPPORTED, *, fused: bool = False) -> Checkpoint:
    """Open an Ultralytics checkpoint without executing code from it.

    Args:
        path: The `.pt` file: a checkpoint, or a YOLO or a network that torch.save wrote.
        supported: The tasks from TASKS that the caller supports.
        fused: Whether the caller supports a network with folded batch norms.

    Raises:
        InputError: The file is missing, damaged, not an Ultralytics checkpoint, for another task, fused, or contains
            foreign classes.
    """
    path = Path(path)
    content = archive.read(path)
    model, extra = content.network, content.extra
    _drop_hooks(model)
    _check(path, model, supported, fused=fused)
    extra["train_args"] = _figures(extra.get("train_args"))
    return Checkpoint(path, _ready(model, extra), extra, content.stock)


def of_network(
    model: nn.Module,
    path: Path,
    arguments: Mapping[str, Any],
    supported: tuple[str, ...] = SUPPORTED,
    *,
    fused: bool = False,
) -> Checkpoint:
    """Make a Checkpoint from a network in memory. The network is not copied, but changed to float32 and eval on the
    CPU.

    Args:
        model: The network.
        path: The name of the network in messages.
        arguments: Its training arguments.
        supported: The tasks from TASKS that the caller supports.
        fused: Whether the caller supports a network with folded batch norms.

    Raises:
        InputError: edgeprune does not support the network, or its batch norms were fused.
    """
    _check(path, model, supported, fused=fused)
    raw = {"train_args": _figures(arguments)}
    return Checkpoint(path, _ready(model.cpu(), raw), raw)


def as_yolo(source: Checkpoint) -> YOLO:
    """The network as a new Ultralytics YOLO, as if its file had been opened."""
    from ultralytics.models import YOLO

    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder, archive.quiet(), safe_load():
        path = Path(folder) / f"{source.path.stem}.pt"
        save(path, source.model, like=source)
        opened = YOLO(str(path), task=source.task)
    attributes: Any = opened  # Ultralytics declares neither attribute as a string
    attributes.ckpt_path = attributes.model.pt_path = str(source.path)
    return opened


def _check(path: Path, model: nn.Module, supported: tuple[str, ...], *, fused: bool) -> None:
    kind = type(model).__name__
    task = tasks.NETWORKS.get(kind)
    if task is None:
        raise InputError(f"{path}: unsupported model (found {kind}, expected a YOLO model for {', '.join(TASKS)})")
    if task not in supported:
        more = f"; `edgeprune prune` without --data accepts {', '.join(TASKS)}" if task in TASKS else ""
        raise InputError(f"{path}: unsupported task (found {task}, expected {' or '.join(supported)}){more}")
    for module in model.modules():
        if hasattr(module, "yaml"):
            architecture.check(path, module.yaml)
    if not all(torch.isfinite(v).all() for v in model.state_dict().values() if v.is_floating_point()):
        raise InputError(f"{path}: NaN or infinite weights; use an earlier checkpoint")
    if not fused and _is_fused(model):
        raise InputError(
            f"{path}: fused (its batch norms are folded into the convolutions, as predict, val and export do), so it "
            "can be exported and compared, but not pruned or trained; give the best.pt that `yolo train` wrote"
        )
    names = getattr(model, "names", None)
    if not names or (isinstance(names, dict) and set(names) != set(range(len(names)))):
        raise InputError(
            f"{path}: invalid class names (expected names numbered 0, 1, …); train the model again, or correct "
            "model.names"
        )
    taken = next(m for m in model.modules() if isinstance(m, nn.Conv2d)).in_channels
    if taken != 3:
        raise InputError(f"{path}: unsupported input (found {taken} channels, expected 3 for RGB)")


def _is_fused(model: nn.Module) -> bool:
    from ultralytics.nn.modules import Conv

    lost = any(isinstance(m, Conv) and not hasattr(m, "bn") for m in model.modules())
    return lost or not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def _drop_hooks(model: nn.Module) -> None:
    """Remove functions of the file that would run beside the network's own methods. Stock checkpoints have none.

    A module's own `forward_fuse` in place of `forward` stays.
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


def _figures(arguments: object) -> dict[str, Any]:
    """The training arguments that are words, numbers or lists of numbers."""
    if not isinstance(arguments, Mapping):
        return {}
    number, word = (bool, int, float, type(None)), (str, Path)
    return {
        str(k): str(v) if isinstance(v, word) else v
        for k, v in arguments.items()
        if isinstance(v, (*number, *word)) or (isinstance(v, (list, tuple)) and all(isinstance(i, number) for i in v))
    }


def _ready(model: nn.Module, raw: Mapping[str, Any]) -> nn.Module:
    """Bring a model of any version into the state after Ultralytics' load_checkpoint."""
    network: Any = model.float().eval()
    arguments = raw.get("train_args") or {}
    network.args = {k: v for k, v in arguments.items() if k in ("imgsz", "task", "single_cls")}
    network.task = tasks.NETWORKS[type(model).__name__]
    if not hasattr(network, "stride"):
        network.stride = torch.tensor([32.0])
    module: Any
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = True
        elif isinstance(module, nn.Upsample) and not hasattr(module, "recompute_scale_factor"):
            module.recompute_scale_factor = None  # saved by torch < 1.11
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model


def save(
    path: str | Path, model: nn.Module, like: Checkpoint, extra: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
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


def to_bytes(model: nn.Module, like: Checkpoint, extra: Mapping[str, Mapping[str, Any]] | None = None) -> bytes:
    """The bytes of the file that `save` writes.

    Args:
        model: The network; it is not changed.
        like: The checkpoint with the training arguments of the network; paths of this machine are left out. Its own
            extra values are left out as well, because they belong to other weights.
        extra: Plain values under separate keys. Stock Ultralytics ignores them; `load` returns them.

    Raises:
        InputError: A weight does not fit half precision.
    """
    network: Any = copy.deepcopy(model).cpu().half().eval()
    _drop_hooks(network)
    for attribute in ("criterion", "pt_path"):
        if hasattr(network, attribute):
            setattr(network, attribute, None)
    arguments = {k: v for k, v in (like.extra.get("train_args") or {}).items() if _travels(k, v)}
    network.args = {k: arguments[k] for k in ("imgsz", "task", "single_cls") if k in arguments}
    if isinstance(network.yaml, dict) and "yaml_file" in network.yaml:
        network.yaml["yaml_file"] = Path(str(network.yaml["yaml_file"])).name
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    if not all(torch.isfinite(v).all() for v in network.state_dict().values() if v.is_floating_point()):
        raise InputError(
            "weights: too large for half precision (NaN or infinite after the conversion); train with a lower "
            "learning rate"
        )
    content = {
        "epoch": -1,
        "best_fitness": None,
        "model": network,
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


def _travels(name: str, value: object) -> bool:
    """Whether a training argument is valid on another machine. Arguments that name files or devices are not."""
    from ultralytics.utils import DEFAULT_CFG_DICT

    return name in DEFAULT_CFG_DICT and (not isinstance(value, str) or (name in _WORDS and _word(value) is not None))


def _word(text: object) -> str | None:
    """The text if it is a name or a version number; None for anything else."""
    return text if isinstance(text, str) and re.fullmatch(r"[0-9A-Za-z_.+-]{1,40}", text) else None


#: Text arguments that are not paths.
_WORDS = {"task", "optimizer", "auto_augment", "copy_paste_mode", "split", "mode"}


@contextlib.contextmanager
def safe_load() -> Iterator[None]:
    """Within the block, Ultralytics opens checkpoints safely.

    Ultralytics reads its SAFE_LOAD flag once, at import; load_checkpoint() has no argument for it.
    """
    from ultralytics.nn import tasks as networks

    flags: Any = networks  # the module does not export the flag that it reads
    before, flags.SAFE_LOAD = flags.SAFE_LOAD, True
    try:
        yield
    finally:
        flags.SAFE_LOAD = before
