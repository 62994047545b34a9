"""ONNX Runtime: on the CPU, and what its other providers share (`ort_cuda`, `ort_tensorrt`).

One session uses `threads` threads inside an operator and runs operators one after another. `options` is the only place
that makes session options, here and on the host: it says how the threads wait for each other. By the library's default
they spin, and where another program keeps one core busy they burn the others. Here they yield; `bench` alone spins, as
it asks how fast a quiet board is.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from pathlib import Path
from typing import Any, List, Optional, Sequence, Tuple

import numpy as np

from edgeprune_device.errors import DeviceError, InputError, RuntimeUnavailable
from edgeprune_device.runtimes import Session

AUTOMATIC = 50
CPU = "CPUExecutionProvider"
_ON_GPU = "install onnxruntime-gpu in place of onnxruntime (pip; on a Jetson NVIDIA's own wheel of it)"
_BUILT_FOR = "install the CUDA, cuDNN and TensorRT that it was built for"
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def available() -> Optional[str]:
    """None when onnxruntime is installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "onnxruntime is not installed: pip install onnxruntime"
    return None


def open(model, settings) -> Session:
    """A session on the CPU; InputError when ONNX Runtime refuses the file."""
    return OrtSession(model, settings.threads, spinning=settings.spinning)


def options(threads: Optional[int] = None, *, spinning: Optional[bool] = None, as_written: bool = False) -> Any:
    """onnxruntime.SessionOptions for `threads` threads (None: its own choice); `spinning`: see `Settings`.

    `as_written`: QuantizeLinear and DequantizeLinear are computed one by one, and not turned into integer kernels.
    RuntimeUnavailable: onnxruntime does not load.
    """
    made = _library().SessionOptions()
    made.log_severity_level = 3  # errors only; they come as exceptions
    made.inter_op_num_threads = 1
    if threads:
        made.intra_op_num_threads = threads
    for pool in ("intra_op", "inter_op"):
        made.add_session_config_entry(f"session.{pool}.allow_spinning", "1" if _spins(spinning) else "0")
    if as_written:
        made.add_session_config_entry("session.disable_quant_qdq", "1")
    return made


def _spins(asked: Optional[bool]) -> bool:
    """OpenMP's variable is not read by ONNX Runtime itself; who sets it means all threads."""
    return os.environ.get("OMP_WAIT_POLICY", "").strip().upper() == "ACTIVE" if asked is None else asked


def missing(provider: str) -> Optional[str]:
    """Why a session on this GPU provider cannot be here; None where ONNX Runtime was built with it. Whether the
    provider then loads shows only when a session is opened."""
    if importlib.util.find_spec("onnxruntime") is None:
        return f"onnxruntime is not installed: {_ON_GPU}"
    try:
        found = _library().get_available_providers()
    except RuntimeUnavailable as error:
        return str(error)
    return None if provider in found else f"the onnxruntime that is installed has no {provider}: {_ON_GPU}"


def order_on_gpu(asked: str) -> Tuple[str, ...]:
    """The precisions to try on a GPU provider: "auto" is FP32, which each of them computes as written."""
    return (asked,) if asked != "auto" else ("fp32", "fp16", "int8", "int8-fp16")


def warnings_on_gpu(precision: str) -> Tuple[str, ...]:
    """What to know of figures from a GPU provider."""
    if precision == "fp32" and os.environ.get("NVIDIA_TF32_OVERRIDE") != "0":
        return (
            "FP32 runs as TF32 where the GPU has it, by its libraries' default: NVIDIA_TF32_OVERRIDE=0 turns it off",
        )
    return ()


class OrtSession(Session):
    """An onnxruntime.InferenceSession behind the common interface.

    - `providers`: as onnxruntime takes them; the session runs on the first one or not at all. Single operators that it
      does not have go to the next.
    - `spinning`, `as_written`: see `options`
    """

    def __init__(
        self,
        model,
        threads: Optional[int] = None,
        *,
        name: str = "ort",
        providers: Sequence[Any] = (CPU,),
        spinning: Optional[bool] = None,
        as_written: bool = False,
        warnings: Tuple[str, ...] = (),
    ):
        self.name, self.warnings = name, warnings
        onnxruntime = _library()
        provider = providers[0] if isinstance(providers[0], str) else providers[0][0]
        self._failure = InputError if provider == CPU else DeviceError
        self.spinning = None if threads == 1 else _spins(spinning)
        what = "the model" if isinstance(model, bytes) else str(model)
        source = model if isinstance(model, bytes) else str(Path(model))
        try:
            # Without its own fallback, where the release lets it be turned off: it would go on with the CPU.
            self._session = onnxruntime.InferenceSession(
                source,
                options(threads, spinning=spinning, as_written=as_written),
                providers=[*providers, *(() if provider == CPU else (CPU,))],
                enable_fallback=0,
            )
        except Exception as error:  # its own exceptions derive from Exception alone, some from RuntimeError
            kind, where = (InputError, "") if provider == CPU else (RuntimeUnavailable, f" on {provider}")
            absent = _absent(onnxruntime, provider)
            why = f"({absent}): {_BUILT_FOR}" if absent else f"({_one_line(error)})"
            raise kind(f"{what}: onnxruntime cannot load it{where} {why}") from error
        running = self._session.get_providers()
        if running[0] != provider:  # a provider whose library does not load is left out without an exception
            raise RuntimeUnavailable(
                f"runtime {name}: onnxruntime {onnxruntime.__version__} does not load {provider} and would run on "
                f"{running[0]} ({_absent(onnxruntime, provider) or 'its own message says why'}): {_BUILT_FOR}"
            )
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in _TYPES or len(inputs[0].shape) != 4:
            found = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
            raise InputError(f"{what}: a detector has one float input (1, 3, h, w); this model has: {found}")
        self._input, self._dtype = inputs[0].name, _TYPES[inputs[0].type]
        self.input_shape = tuple(d if isinstance(d, int) else None for d in inputs[0].shape)
        self.description = f"onnxruntime {onnxruntime.__version__}, {provider}"
        if provider == CPU:
            count = "default threads" if not threads else f"{threads} thread{'s' if threads > 1 else ''}"
            self.description += f", {count}{', yielding' if self.spinning is False else ''}"

    def infer(self, x: np.ndarray) -> List[np.ndarray]:
        """Runs the model; types are converted to what it takes, and its outputs to float32."""
        if self._session is None:
            raise InputError("this session is closed")
        if len(x.shape) != 4 or any(d is not None and d != s for d, s in zip(self.input_shape, x.shape)):
            raise InputError(f"the model takes {self.input_shape}, not {tuple(x.shape)}")
        try:
            outputs = self._session.run(None, {self._input: x.astype(self._dtype, copy=False)})
        except Exception as error:
            raise self._failure(f"onnxruntime failed while running the model ({_one_line(error)})") from error
        return [output.astype(np.float32, copy=False) for output in outputs]

    def close(self) -> None:
        """Drops the session; its memory is freed with it."""
        self._session = None


def _library() -> Any:
    try:
        import onnxruntime
    except Exception as error:  # of another numpy, or with a shared library missing: whatever a broken install raises
        raise RuntimeUnavailable(f"onnxruntime does not load here: {_one_line(error)}") from error
    return onnxruntime


def _absent(onnxruntime: Any, provider: str) -> Optional[str]:
    """Which shared library the provider's own does not find, in the loader's words; None where that is not it."""
    name = f"libonnxruntime_providers_{provider.replace('ExecutionProvider', '').lower()}.so"
    path = Path(onnxruntime.__file__).parent / "capi" / name
    try:
        if path.is_file():
            ctypes.CDLL(str(path))
    except OSError as error:
        return _one_line(error) if "cannot open shared object file" in str(error) else None
    return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
