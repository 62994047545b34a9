"""Read the network in a `.pt` file without running the code in it, and describe files of other kinds.

A `.pt` file is a pickle, and unpickling runs code. Files are therefore read with torch's `weights_only` loader and
Ultralytics' own list of known classes (as ULTRALYTICS_SAFE_LOAD=1 does); there is no unsafe fallback. The network of a
whole `YOLO` object is read as well: a class that does nothing replaces its other classes.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from edgeprune_device.errors import InputError
from edgeprune_device.hint import no_such_file
from edgeprune_device.printable import printable
from torch import nn

__all__ = ["Content", "existing", "quiet", "read"]

#: A YOLO, or another object of Ultralytics around a network, of any version.
_WHOLE = re.compile(r"ultralytics\.(yolo\.)?(models|engine)\.([a-z_]+\.)*model\.\w+")
#: The callbacks of such an object.
_AROUND = re.compile(r"ultralytics\.(yolo\.)?utils\.callbacks\.[\w.]+")
_NAME = re.compile(r"GLOBAL ([\w.]+)")
#: Files that `yolo train` writes in its folder, best first.
_TRAINED = ("weights/best.pt", "best.pt", "weights/last.pt", "last.pt")
_GIVE = "give the best.pt that `yolo train` wrote"
_SAVE = '`model.save("good.pt")` of the YOLO writes a checkpoint'


def existing(path: str | Path) -> Path:
    """The path of a file that exists.

    Raises:
        InputError: There is no such file. A folder's message names the weights in it.
    """
    if not Path(path).is_file():
        raise InputError(no_such_file(path, inside=_TRAINED))
    return Path(path)


@dataclass(frozen=True)
class Content:
    """The content of a file.

    Attributes:
        network: The network: the EMA if the checkpoint has one; the student for an interrupted distillation.
        extra: The other entries of the file.
        stock: Whether stock Ultralytics also opens the file safely and trains that network.
    """

    network: nn.Module
    extra: dict[str, Any]
    stock: bool


def read(path: str | Path) -> Content:
    """Read the file of a network.

    Args:
        path: The `.pt` file.

    Raises:
        InputError: The file is missing or damaged, or contains foreign classes or no Ultralytics network.
    """
    path = existing(path)
    if path.suffix != ".pt":
        raise InputError(f"{path}: not a checkpoint (expected a .pt file)")
    content = _content(path)
    entries = content if isinstance(content, dict) else {"model": content}
    extra = {k: v for k, v in entries.items() if k not in ("model", "ema", "optimizer")}
    inside = entries.get("model") if entries.get("ema") is None else entries["ema"]
    outer = inside
    if isinstance(inside, _Object):
        extra = {"train_args": inside.arguments, **extra}
        inside = inside.network
    elif inside is content and isinstance(inside, nn.Module):
        extra["train_args"] = _mapping(getattr(inside, "args", None))
    if type(inside).__name__ == "DistillationModel":
        inside = getattr(inside, "student_model", None)
    if not isinstance(inside, nn.Module) or not hasattr(inside, "yaml"):
        raise InputError(f"{path}: no Ultralytics model inside{_instead(content)}")
    return Content(inside, extra, stock=inside is outer and outer is not content)


class _Object:
    """Stands for a YOLO in a file, with its attributes but without its methods."""

    @property
    def network(self) -> object:
        own = vars(self)
        return _mapping(own.get("_modules")).get("model", own.get("model"))

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The arguments of the training, or those stored in the network."""
        own = vars(self)
        stored = own.get("ckpt")
        trained = stored.get("train_args") if isinstance(stored, dict) else None
        return _mapping(trained) or _mapping(getattr(self.network, "args", None)) or _mapping(own.get("overrides"))


def _nothing(*_: object) -> None:
    """Stands for a function in a file."""


def _dictionary(*_: object) -> dict[object, object]:
    """Stands for collections.defaultdict."""
    return {}


def _mapping(value: object) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    return vars(value) if type(value).__name__ == "IterableSimpleNamespace" else {}


def _content(path: Path) -> object:
    """The content of the file.

    Raises:
        InputError: The file cannot be read; the message gives the reason.
    """
    from ultralytics.nn.tasks import _SafeLoad

    if not _SafeLoad.SUPPORTED:
        raise InputError(f"torch {torch.__version__}: cannot load checkpoints safely; install torch 2.6 or newer")
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a file that is refused below
        try:
            return _unpickled(path)
        except Exception as error:  # torch raises a dozen kinds here
            foreign = _foreign(path, error)
            whole = any(map(_WHOLE.fullmatch, foreign))
            try:
                if whole:
                    return _unpickled(path, foreign)
            except Exception as second:
                error = second
            others = [name for name in foreign if not (whole and _stand_in(name))]
            raise InputError(f"{path}: {_reason(error, others, whole=whole)}") from error


def _unpickled(path: Path, around: list[str] | None = None) -> object:
    """The content of the file; `around` are the names of classes that may be replaced by inert ones."""
    from ultralytics.nn.tasks import _SafeLoad

    loading: Any = _SafeLoad.loading  # Ultralytics has no types here
    with ExitStack() as stack:
        stack.enter_context(loading(path))
        stand_ins: list[Any] = [(inert, name) for name in around or () if (inert := _stand_in(name))]
        if stand_ins:
            stack.enter_context(torch.serialization.safe_globals(stand_ins))
        return torch.load(path, map_location="cpu", weights_only=True)


def _stand_in(name: str) -> Any:
    """An inert replacement for a class or function of an object around a network; None if it is foreign."""
    if _WHOLE.fullmatch(name):
        return type("_Object", (_Object,), {})  # torch tells classes apart by identity
    if _AROUND.fullmatch(name):
        return _nothing
    return {"collections.defaultdict": _dictionary, "builtins.list": list}.get(name)


def _foreign(path: Path, error: Exception) -> list[str]:
    """The names in the pickle that the loader does not know. The pickle is read, not executed."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # no zip archive of torch's, or a damaged one
        return _NAME.findall(str(error))[:1]


def _reason(error: Exception, foreign: list[str], *, whole: bool) -> str:
    if isinstance(error, PermissionError):
        return "cannot be read (permission denied)"
    if any(name.startswith("models.") for name in foreign):
        return "a checkpoint of the old YOLOv5 repository; train with Ultralytics (for example from yolov5nu.pt)"
    if "TorchScript" in str(error):
        return "a TorchScript archive; give the .pt from which it was exported"
    named = printable(", ".join([*foreign[:3], *(["…"] if len(foreign) > 3 else [])])[:200])
    if whole:
        held = f"; contains classes that are not Ultralytics' own ({named})" if foreign else ""
        return f"a whole YOLO object, saved with torch.save{held}, so the file was not loaded; {_SAVE}"
    if foreign or "Unsupported" in str(error):
        return (
            f"contains classes that are not Ultralytics' own{f' ({named})' if foreign else ''}, so the file was not "
            "loaded (unpickling would run the code of these classes); save the model again with stock Ultralytics "
            "classes only"
        )
    return "damaged, cut off, or not a checkpoint; copy the file again"


def _instead(content: object) -> str:
    """The contents of a file without a network, with advice."""
    if isinstance(content, dict):
        tables = [content, *(content.get(key) for key in ("model", "ema", "state_dict", "model_state_dict"))]
        if any(isinstance(t, dict) and t and all(isinstance(v, torch.Tensor) for v in t.values()) for t in tables):
            return (
                ', only weights (a state_dict); load them into their network (`model = YOLO("yolov8n'
                f'.yaml")`, `model.model.load_state_dict(…)`), then {_SAVE}'
            )
        keys = printable(", ".join(str(key) for key in list(content)[:5])[:100])
        return f" (found a dictionary of {keys or 'nothing'}); {_GIVE}"
    kind = printable(type(content).__name__[:60])
    if isinstance(content, nn.Module):
        return f" (found a {kind}, the layers without their YAML); {_SAVE}"
    return f" (found a {kind}); {_GIVE}"


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress Ultralytics' log; the caller reports the problem with more detail."""
    from ultralytics.utils import LOGGER

    level = LOGGER.level
    LOGGER.setLevel("CRITICAL")
    try:
        yield
    finally:
        LOGGER.setLevel(level)
