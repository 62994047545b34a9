"""Inference runtimes: `open(model) -> Session`. Code above this folder does not know which one runs.

To add a runtime, add one file here; its name, with "-" for "_", is the value of `--runtime`. A runtime module has the
members of `Runtime`, and imports its library only inside their functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Dict, List, Optional, Protocol, Sequence, Tuple, Union, cast

import numpy as np

from edgeprune_device import onnx_file, plugins
from edgeprune_device.errors import InputError, RuntimeUnavailable, reason
from edgeprune_device.hint import unknown
from edgeprune_device.option import named
from edgeprune_device.progress import Progress, silent

if TYPE_CHECKING:  # signatures and bundles, not needed by a session without engines
    from edgeprune_device.engine.offer import Offer

__all__ = [
    "AN_IMAGE",
    "Model",
    "Runtime",
    "RuntimeSettings",
    "Session",
    "Shapes",
    "available",
    "candidates",
    "choose",
    "converted",
    "is_image",
    "load_limit",
    "names",
    "on_cpu",
    "open",
    "order",
]

#: An ONNX model: its bytes, or its path.
Model = Union[bytes, str, Path]
#: The input of a model, in messages.
AN_IMAGE = "one image: float (1, 3, h, w) or uint8 (1, h, w, 3)"
#: (input shape, output shapes), e.g. ((1, 3, 640, 640), [(1, 84, 8400)]): for runtimes that do not read the model.
Shapes = Tuple[Tuple[int, ...], List[Tuple[int, ...]]]


@dataclass(frozen=True)
class RuntimeSettings:
    """Settings for running a model, e.g. `RuntimeSettings(threads=1)`. Each runtime reads the fields that concern it.

    Attributes:
        threads: CPU threads; None for the library's own choice.
        spinning: Whether threads that wait for each other keep their cores busy (fastest on an idle machine) or yield
            them. None: they yield, unless the user's OMP_WAIT_POLICY is ACTIVE.
        shapes: See `Shapes`; only "null" needs it.
        precision: Precision of the file; TensorRT builds each one differently.
        fp32_nodes: ONNX nodes that stay FP32 if TensorRT gets precisions as flags (from the manifest).
        cuda: Backend for GPU memory, see `edgeprune_device.cuda.names`.
        graph: Run the network as a CUDA graph.
        workspace_bytes: Scratch memory for building an engine; None: chosen from the free memory.
        offers: Engines in the bundle, see `edgeprune_device.engine.offer`.
        progress: Receives the progress of building an engine.

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
    offers: Tuple[Offer, ...] = ()
    progress: Progress = silent

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise InputError(f"threads: invalid value (found {self.threads}, expected at least 1)")


class Session:
    """A model ready to run. Use it as a context manager, or call `close`.

    Attributes:
        name: Name of the runtime, e.g. "ort".
        description: Text for reports, e.g. "onnxruntime 1.32.0, CPUExecutionProvider, 1 thread".
        input_shape: (1, 3, h, w), or (1, h, w, 3) of a uint8 input; None for a dimension that is not fixed.
        input_type: Type of the input; None if any type will do.
        spinning: Whether its CPU threads spin while they wait; None for one thread, or if not known.
        times_device: Whether `device_ms` gives times.
        warnings: Remarks for the reader of this session's figures, one line each.
    """

    name: str = ""
    description: str = ""
    input_shape: Tuple[Optional[int], ...] = ()
    input_type: Optional[np.dtype] = None
    spinning: Optional[bool] = None
    times_device: bool = False
    warnings: Tuple[str, ...] = ()

    @property
    def device_ms(self) -> Optional[Dict[str, float]]:
        """Times of the last inference from the GPU's clock, {"h2d", "gpu", "d2h"}, ms; None without a GPU."""
        return None

    def infer(self, x: np.ndarray) -> Sequence[np.ndarray]:
        """Run the model.

        The arrays may be the runtime's buffers, which are valid until the call after the next. The output `raw` of a
        device variant may stay on the GPU until it is read, by the thread of this call and before the next call.

        Args:
            x: Input in the model's layout: (1, 3, h, w) float32 or (1, h, w, 3) uint8.

        Returns:
            The model's outputs, batch first: float32, or integers as they are.

        Raises:
            InputError: `x` has another shape or type.
        """
        raise NotImplementedError

    def _check(self, x: np.ndarray) -> None:
        """Raise InputError if `x` is not an input of the model: other floats are converted, but pixels are not."""
        shape, wanted = self.input_shape, self.input_type
        if len(x.shape) != len(shape) or any(d is not None and d != s for d, s in zip(shape, x.shape)):
            raise InputError(f"input: wrong shape (found {tuple(x.shape)}, expected {shape})")
        if wanted is not None and (x.dtype.kind == "f") != (wanted.kind == "f"):
            raise InputError(f"input: wrong type (found {x.dtype}, expected {wanted})")

    def close(self) -> None:
        """Free the memory of the session; a second call has no effect."""

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Runtime(Protocol):
    """The module of a runtime.

    A module may have more members. `order(asked, int8_for_cpu)` gives the precisions that it tries, if they differ
    from those of `order`. `BUILD_S` is the longest time of a build, s, of a library that builds engines inside `open`.
    `ON_CPU = True` states that the runtime runs networks on the CPU.

    Attributes:
        AUTOMATIC: Its rank for "auto", highest first; 0: only if selected by name.
    """

    AUTOMATIC: int

    def available(self) -> Optional[str]:
        """None if the runtime can run here, else the reason in a few words."""

    def open(self, model: Model, settings: RuntimeSettings) -> Session:
        """Open a model; see `open`."""


def names() -> List[str]:
    """All runtimes that edgeprune has, available here or not, best first."""
    runtime_names = [name.replace("_", "-") for name in plugins.names(__path__)]
    return sorted(runtime_names, key=lambda name: (-_module(name).AUTOMATIC, name))


def available() -> Dict[str, Optional[str]]:
    """{name: None if the runtime can run here, else the reason}, best first."""
    return {name: _module(name).available() for name in names()}


def open(
    model: Model,
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
        InputError: The model cannot be read, is not completely inside its file, or has no fixed input.
    """
    if isinstance(model, bytes):
        onnx_file.refuse_outside(model, "the model")
    else:
        onnx_file.refuse_outside(_content(Path(model)), str(model))
    return _module(choose(runtime)).open(model, settings)


def choose(runtime: str = "auto") -> str:
    """The first of `candidates`.

    Raises:
        RuntimeUnavailable: The runtime is unknown or cannot run here, or there is none for "auto".
    """
    return candidates(runtime)[0]


def candidates(runtime: str = "auto") -> List[str]:
    """The runtimes that "auto" may select here, or `runtime` itself if it can run.

    There are several if the best one runs on the CPU and others do too. Then a measurement decides
    (`benchmark/trial.py`).

    Raises:
        RuntimeUnavailable: The runtime is unknown or cannot run here, or "auto" finds none.
    """
    if runtime == "auto":
        automatic = (name for name in names() if _module(name).AUTOMATIC and _module(name).available() is None)
        best = next(automatic, None)
        if best is not None:
            return [best, *(name for name in automatic if on_cpu(best) and on_cpu(name))]
        reasons = "; ".join(f"{name}: {why}" for name, why in available().items() if why)
        raise RuntimeUnavailable(
            f"runtime: none available on this machine ({reasons}); edgeprune doctor shows how to install one"
        )
    if runtime not in names():
        raise RuntimeUnavailable(unknown(f"{named('runtime')}: unknown runtime", runtime, ["auto", *names()]))
    why = _module(runtime).available()
    if why:
        raise RuntimeUnavailable(f"runtime {runtime}: {why}")
    return [runtime]


def is_image(shape: Sequence[object], kind: np.dtype) -> bool:
    """Whether a model's input can be one image: floats as (1, 3, h, w), or uint8 as (1, h, w, 3).

    Args:
        shape: Shape of the input.
        kind: Type of the input.
    """
    return len(shape) == 4 and (kind.kind == "f" or (kind == np.uint8 and shape[3] == 3))


def converted(output: np.ndarray) -> np.ndarray:
    """An output in the form of `Session.infer`: floats as float32, without a copy if they already are."""
    return output.astype(np.float32, copy=False) if output.dtype.kind == "f" else output


def on_cpu(runtime: str) -> bool:
    """Whether a runtime runs networks on the CPU."""
    return bool(getattr(_module(runtime), "ON_CPU", False))


def order(runtime: str, asked: str = "auto", int8_for_cpu: bool = False) -> Tuple[str, ...]:
    """The precisions to try on a runtime, best first.

    Args:
        runtime: Name of the runtime.
        asked: The requested precision, or "auto".
        int8_for_cpu: Whether the bundle's INT8 has the form for CPUs. TensorRT does not accept that form, and the form
            for TensorRT is slower than FP32 on a CPU.
    """
    own = getattr(_module(runtime), "order", None)
    if own is not None:
        return tuple(own(asked, int8_for_cpu))
    if asked != "auto":
        return (asked,)
    return ("int8", "fp32", "fp16", "int8-fp16") if int8_for_cpu else ("fp32", "fp16", "int8", "int8-fp16")


def load_limit(runtime: str, limit_s: float) -> float:
    """The longest time to load a model, s.

    Args:
        runtime: Name of the runtime.
        limit_s: The limit of a runtime that builds no engine while it loads.
    """
    return max(limit_s, float(getattr(_module(runtime), "BUILD_S", 0.0)))


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise InputError(f"{path}: no such model file; check the path")
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason(error)})") from error


def _module(name: str) -> Runtime:
    return cast(Runtime, plugins.load(__name__, name))
