"""The models that a verb accepts: a file, an Ultralytics YOLO, a network, or the result of another verb."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from edgeprune_device.errors import InputError

from edgeprune.api.result import write
from edgeprune.model import checkpoint
from edgeprune.model.checkpoint import Checkpoint

if TYPE_CHECKING:
    from torch import nn
    from ultralytics.models import YOLO

    from edgeprune.api.result import Network

#: A .pt file, an Ultralytics YOLO, its network, or a result that holds one.
Model: TypeAlias = "str | Path | YOLO | nn.Module | Checkpoint | Network"


def opened(
    model: Model,
    supported: tuple[str, ...] = checkpoint.SUPPORTED,
    *,
    fused: bool = False,
    head: str | None = None,
) -> Checkpoint:
    """Return the checkpoint behind `model`; a network in memory is copied, and never changed.

    Args:
        model: a .pt file, an Ultralytics YOLO, its network, a `Checkpoint`, or a result that holds one.
        supported: the tasks that the caller supports.
        fused: whether the caller supports a network whose batch norms were folded into its convolutions.
        head: the head to export and measure (`head.select`).

    Raises:
        InputError: the file is missing or damaged, the network is fused, of another task or without that head, or
            `model` holds no network.
    """
    return _opened(model, supported, fused=fused).with_head(head)


def _opened(model: Model, supported: tuple[str, ...], *, fused: bool) -> Checkpoint:
    if isinstance(model, Checkpoint):
        return model
    if isinstance(model, (str, Path)):
        return checkpoint.load(model, supported, fused=fused)
    held: Any = getattr(model, "checkpoint", None)
    if isinstance(held, Checkpoint):
        return held
    from ultralytics.engine.model import Model as Wrapper

    name, arguments = "model.pt", {}
    network: Any = model
    if isinstance(model, Wrapper):  # a YOLO
        network = model.model
        name = str(getattr(model, "ckpt_path", None) or name)
        arguments = dict((getattr(model, "ckpt", None) or {}).get("train_args") or {})
    if not hasattr(network, "state_dict"):
        raise InputError(
            f"model: unsupported type (found {type(model).__name__}, expected a .pt file, a YOLO, its network, or a "
            "result)"
        )
    return checkpoint.of_network(copy.deepcopy(network), Path(name), arguments, supported, fused=fused)


@contextlib.contextmanager
def as_file(model: Model) -> Iterator[Path]:
    """Provide a checkpoint file of `model` for the duration of the block.

    Yields:
        The file of `model` if it is a path; else a temporary file, which is deleted after the block.
    """
    if isinstance(model, (str, Path)):
        yield Path(model)
        return
    source = opened(model)
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        path = Path(folder) / f"{source.path.stem}.pt"
        write(path, source)
        yield path
