"""Inference runtimes: `open(model) -> Session`, and nothing above this folder knows which one runs.

Adding a runtime is adding one file here; its name, with "-" for "_", is the value of `--runtime`. A runtime module has

    AUTOMATIC: int              rank for "auto", highest first; 0: only when asked for by name
    available() -> str | None   None when it can run here, else the reason in a few words
    open(model, settings) -> Session
    order(asked, int8_for_cpu) -> (precision, …)     optional: what to try for --precision, best first; see `order`

and imports its library inside these functions only.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple, Union

import numpy as np

from edgeprune_device.errors import InputError, RuntimeUnavailable
from edgeprune_device.hint import did_you_mean

__all__ = ["RuntimeSettings", "Session", "Shapes", "available", "choose", "names", "open", "order"]

# (input shape, output shapes), e.g. ((1, 3, 640, 640), [(1, 84, 8400)]): for runtimes that do not read the model.
Shapes = Tuple[Tuple[int, ...], List[Tuple[int, ...]]]


@dataclass(frozen=True)
class RuntimeSettings:
    """How to run a model, e.g. `RuntimeSettings(threads=1)`. Each runtime reads the fields that concern it.

    Attributes:
        threads: CPU threads; None for the library's own choice.
        spinning: Whether threads that wait for each other keep their cores busy (fastest on a quiet machine) or yield
            them. None: they yield, unless the user's OMP_WAIT_POLICY is ACTIVE.
        shapes: See `Shapes`; only "null" needs it.
        precision: Precision of the file; TensorRT builds each in its own way.
        fp32_nodes: ONNX nodes that stay FP32 where TensorRT takes precisions by flags (the manifest has them).
        cuda: Backend for GPU memory, see `edgeprune_device.cuda.names`.
        graph: Run the network by a CUDA graph.
        workspace_bytes: Scratch memory for building an engine; None: chosen from the free memory.
        offers: Engines that the bundle brings, see `edgeprune_device.engine.offer`.
        progress: Called with (share done, text) while an engine is built.

    Raises:
        InputError: `threads` is less than 1.
    """

    threads: Optional[int] = None
    spinning: Optional[bool] = None
    shapes: Optional[Shapes] = None
    precision: str = "fp32"
    fp32_nodes: Tuple[str, ...] = ()
    cuda: str = "auto"
    graph: bool = False
    workspace_bytes: Optional[int] = None
    offers: Tuple[Any, ...] = ()
    progress: Optional[Callable[[float, str], None]] = None

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise InputError(f"threads must be at least 1, not {self.threads}")


class Session:
    """A model ready to run. Use it as a context manager, or call `close`.

    Attributes:
        name: Name of the runtime, e.g. "ort".
        description: Text for reports, e.g. "onnxruntime 1.32.0, CPUExecutionProvider, 1 thread".
        input_shape: (1, 3, h, w); None for a dimension that is not fixed.
        spinning: Whether its CPU threads spin while they wait; None where there is one thread, or where it is not
            known.
        warnings: Remarks for the reader of this session's figures, one line each.
        device_ms: Times of the last inference by the GPU's own clock, {"h2d", "gpu", "d2h"}, ms; None where there is
            none.
    """

    name: str = ""
    description: str = ""
    input_shape: Tuple[Optional[int], ...] = ()
    spinning: Optional[bool] = None
    warnings: Tuple[str, ...] = ()
    device_ms: Optional[Dict[str, float]] = None

    def infer(self, x: np.ndarray) -> List[np.ndarray]:
        """Run the model.

        The arrays may be the runtime's own buffers: use or copy them before the call after the next.

        Args:
            x: (1, 3, h, w) float32.

        Returns:
            The model's outputs, float32, batch first.

        Raises:
            InputError: `x` has another shape.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Free the memory of the session; a second call has no effect."""

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc) -> None:
        self.close()


def names() -> List[str]:
    """Every runtime that edgeprune knows, available here or not, best first."""
    found = [module.name.replace("_", "-") for module in pkgutil.iter_modules([str(Path(__file__).parent)])]
    return sorted(found, key=lambda name: (-_module(name).AUTOMATIC, name))


def available() -> Dict[str, Optional[str]]:
    """{name: None when the runtime can run here, else the reason}, best first."""
    return {name: _module(name).available() for name in names()}


def open(
    model: Union[bytes, str, Path],
    runtime: str = "auto",
    settings: RuntimeSettings = RuntimeSettings(),
) -> Session:
    """Open an ONNX model.

    Args:
        model: Bytes or path of the model.
        runtime: Name of the runtime, or "auto".
        settings: How to run it.

    Raises:
        RuntimeUnavailable: The runtime is unknown or not installed here.
        InputError: The model cannot be read or has no fixed input.
    """
    if isinstance(model, (str, Path)) and not Path(model).is_file():
        raise InputError(f"{model}: no such model file")
    return _module(choose(runtime)).open(model, settings)


def choose(runtime: str = "auto") -> str:
    """The name of the runtime that "auto" means here, or `runtime` itself when it can run.

    Raises:
        RuntimeUnavailable: The runtime is unknown or cannot run here, or there is none for "auto".
    """
    if runtime == "auto":
        for name in names():
            if _module(name).AUTOMATIC and _module(name).available() is None:
                return name
        reasons = "; ".join(f"{name}: {why}" for name, why in available().items() if why)
        raise RuntimeUnavailable(f"no inference runtime on this machine ({reasons})")
    if runtime not in names():
        near = did_you_mean(runtime, names())
        hint = f"{near} " if near else ""
        raise RuntimeUnavailable(f"unknown runtime {runtime!r}; {hint}known: auto, {', '.join(names())}")
    reason = _module(runtime).available()
    if reason:
        raise RuntimeUnavailable(f"runtime {runtime}: {reason}")
    return runtime


def order(runtime: str, asked: str = "auto", int8_for_cpu: bool = False) -> Tuple[str, ...]:
    """The precisions to try on a runtime, best first.

    Args:
        runtime: Name of the runtime.
        asked: The precision that the user asked for, or "auto".
        int8_for_cpu: Whether the bundle's INT8 is in the form made for CPUs. TensorRT does not read that form, and its
            own form is slower than FP32 on a CPU.
    """
    own = getattr(_module(runtime), "order", None)
    if own is not None:
        return tuple(own(asked, int8_for_cpu))
    if asked != "auto":
        return (asked,)
    return ("int8", "fp32", "fp16", "int8-fp16") if int8_for_cpu else ("fp32", "fp16", "int8", "int8-fp16")


def _module(name: str):
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
