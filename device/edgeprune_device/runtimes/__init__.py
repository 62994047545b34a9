"""Inference runtimes: `open(model) -> Session`, and nothing above this folder knows which one runs.

Adding a runtime is adding one file here; its name is the value of `--runtime`. A runtime module has

    AUTOMATIC: int              rank for "auto", highest first; 0: only when asked for by name
    available() -> str | None   None when it can run here, else the reason in a few words
    open(model, settings) -> Session

and imports its library inside these functions only.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Tuple, Union

import numpy as np

from edgeprune_device.errors import InputError, RuntimeUnavailable

__all__ = ["Session", "Settings", "Shapes", "available", "names", "open"]

# (input shape, output shapes), e.g. ((1, 3, 640, 640), [(1, 84, 8400)]): for runtimes that do not read the model.
Shapes = Tuple[Tuple[int, ...], List[Tuple[int, ...]]]


@dataclass(frozen=True)
class Settings:
    """How to run a model; a runtime takes from it what concerns it. E.g. `Settings(threads=1)`.

    - `threads`: CPU threads, None for the library's own choice
    - `shapes`: see `Shapes`; needed by "null" only
    """

    threads: Optional[int] = None
    shapes: Optional[Shapes] = None

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise InputError(f"threads must be at least 1, not {self.threads}")


class Session:
    """A model ready to run. Use as a context manager, or call `close`.

    - `name`: the runtime's, e.g. "ort"
    - `description`: for reports, e.g. "onnxruntime 1.32.0, CPUExecutionProvider, 1 thread"
    - `input_shape`: (1, 3, h, w); None for a dimension that is not fixed
    """

    name: str = ""
    description: str = ""
    input_shape: Tuple[Optional[int], ...] = ()

    def infer(self, x: np.ndarray) -> List[np.ndarray]:
        """(1, 3, h, w) float32 -> the model's outputs, float32, batch first. InputError for another shape."""
        raise NotImplementedError

    def close(self) -> None:
        """Free what the session holds; calling it twice does no harm."""

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc) -> None:
        self.close()


def names() -> List[str]:
    """Every runtime that edgeprune knows, available here or not, best first."""
    found = [module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])]
    return sorted(found, key=lambda name: (-_module(name).AUTOMATIC, name))


def available() -> Dict[str, Optional[str]]:
    """{name: None when it can run here, else why not}, best first."""
    return {name: _module(name).available() for name in names()}


def open(
    model: Union[bytes, str, Path],
    runtime: str = "auto",
    settings: Settings = Settings(),
) -> Session:
    """Open an ONNX model (its bytes or path).

    RuntimeUnavailable: unknown or not installed here; InputError: the model cannot be read or has no fixed input.
    """
    if isinstance(model, (str, Path)) and not Path(model).is_file():
        raise InputError(f"{model}: no such model file")
    return _module(choose(runtime)).open(model, settings)


def choose(runtime: str = "auto") -> str:
    """The name of the runtime that "auto" means here, or `runtime` itself when it can run. RuntimeUnavailable else."""
    if runtime == "auto":
        for name in names():
            if _module(name).AUTOMATIC and _module(name).available() is None:
                return name
        reasons = "; ".join(f"{name}: {why}" for name, why in available().items() if why)
        raise RuntimeUnavailable(f"no inference runtime on this machine ({reasons})")
    if runtime not in names():
        raise RuntimeUnavailable(f"unknown runtime {runtime!r}; known: auto, {', '.join(names())}")
    reason = _module(runtime).available()
    if reason:
        raise RuntimeUnavailable(f"runtime {runtime}: {reason}")
    return runtime


def _module(name: str):
    return importlib.import_module(f"{__name__}.{name}")
