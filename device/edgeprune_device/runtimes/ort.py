"""ONNX Runtime on the CPU, and the functions that its other providers share (`ort_cuda`, `ort_tensorrt`).

One session uses `threads` threads inside an operator and runs operators one after another. `options` is the only
function that creates session options, here and on the host, and sets how the threads wait for each other. By the
library's default they spin. If another program keeps one core busy, spinning threads waste the other cores. Here they
yield; only `bench` lets them spin, because it measures the speed of an idle board.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from pathlib import Path
from typing import Any, List, Optional, Sequence, Tuple, Type

import numpy as np

from edgeprune_device.errors import DeviceError, EdgepruneError, InputError, RuntimeUnavailable
from edgeprune_device.output import check_size
from edgeprune_device.runtimes import AN_IMAGE, Model, RuntimeSettings, Session, converted, is_image

AUTOMATIC = 50
ON_CPU = True
CPU = "CPUExecutionProvider"
_ON_GPU = "install onnxruntime-gpu instead of onnxruntime (with pip; on a Jetson from NVIDIA's wheel)"
_BUILT_FOR = "install the versions of CUDA, cuDNN and TensorRT for which onnxruntime was built"
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


def available() -> Optional[str]:
    """None if onnxruntime is installed, else the reason."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "onnxruntime is not installed; pip install onnxruntime"
    return None


def open(model: Model, settings: RuntimeSettings) -> Session:
    """Open a session on the CPU.

    Raises:
        InputError: ONNX Runtime refuses the file.
    """
    return OrtSession(model, settings.threads, spinning=settings.spinning)


def options(threads: Optional[int] = None, *, spinning: Optional[bool] = None, as_written: bool = False) -> Any:
    """Create onnxruntime.SessionOptions.

    Args:
        threads: Threads inside an operator; None: the library's own choice.
        spinning: See `RuntimeSettings`.
        as_written: Compute QuantizeLinear and DequantizeLinear one by one, instead of turning them into integer
            kernels.

    Raises:
        RuntimeUnavailable: onnxruntime does not load.
    """
    made = _library().SessionOptions()
    made.log_severity_level = 3  # errors only; they are raised as exceptions
    made.inter_op_num_threads = 1
    if threads:
        made.intra_op_num_threads = threads
    for pool in ("intra_op", "inter_op"):
        made.add_session_config_entry(f"session.{pool}.allow_spinning", "1" if _spins(spinning) else "0")
    if as_written:
        made.add_session_config_entry("session.disable_quant_qdq", "1")
    return made


def _spins(asked: Optional[bool]) -> bool:
    """`asked`, else whether OMP_WAIT_POLICY is ACTIVE.

    ONNX Runtime does not read OpenMP's variable itself, but a user who sets it means all threads.
    """
    return os.environ.get("OMP_WAIT_POLICY", "").strip().upper() == "ACTIVE" if asked is None else asked


def missing(provider: str) -> Optional[str]:
    """The reason why a session on a GPU provider cannot run here; None if ONNX Runtime was built with the provider.

    Whether the provider loads is known only when a session is opened.

    Args:
        provider: Name of the provider, e.g. "CUDAExecutionProvider".
    """
    if importlib.util.find_spec("onnxruntime") is None:
        return f"onnxruntime is not installed; {_ON_GPU}"
    try:
        providers = _library().get_available_providers()
    except RuntimeUnavailable as error:
        return str(error)
    return None if provider in providers else f"onnxruntime is installed without {provider}; {_ON_GPU}"


def order_on_gpu(asked: str) -> Tuple[str, ...]:
    """The precisions to try on a GPU provider: "auto" starts with FP32, which each provider computes as written."""
    return (asked,) if asked != "auto" else ("fp32", "fp16", "int8", "int8-fp16")


def warnings_on_gpu(precision: str) -> Tuple[str, ...]:
    """Remarks on figures of this precision from a GPU provider."""
    if precision == "fp32" and os.environ.get("NVIDIA_TF32_OVERRIDE") != "0":
        return ("FP32 runs as TF32 on GPUs with TF32; NVIDIA_TF32_OVERRIDE=0 disables TF32",)
    return ()


class OrtSession(Session):
    """An onnxruntime.InferenceSession behind the common interface.

    Args:
        model: Bytes or path of the model.
        threads: See `options`.
        name: Name of the runtime.
        providers: Providers in onnxruntime's form. The session runs on the first one or fails; single operators that
            it does not support run on the next.
        spinning: See `options`.
        as_written: See `options`.
        warnings: See `Session`.

    Raises:
        InputError: The CPU provider does not accept the file, or the model's input is not one image.
        RuntimeUnavailable: The GPU provider does not load, or does not accept the file.
    """

    def __init__(
        self,
        model: Model,
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
        self._failure: Type[EdgepruneError] = InputError if provider == CPU else DeviceError
        self.spinning = None if threads == 1 else _spins(spinning)
        what = "the model" if isinstance(model, bytes) else str(model)
        source = model if isinstance(model, bytes) else str(Path(model))
        try:
            # The library's fallback to the CPU is disabled, if the release permits it.
            self._session: Any = onnxruntime.InferenceSession(
                source,
                options(threads, spinning=spinning, as_written=as_written),
                providers=[*providers, *(() if provider == CPU else (CPU,))],
                enable_fallback=0,
            )
        except Exception as error:  # some of its exceptions derive directly from Exception
            kind, where = (InputError, "") if provider == CPU else (RuntimeUnavailable, f" on {provider}")
            absent = _absent(onnxruntime, provider)
            why = f"({absent}): {_BUILT_FOR}" if absent else f"({_one_line(error)})"
            raise kind(f"{what}: cannot be loaded by onnxruntime{where} {why}") from error
        running = self._session.get_providers()
        if running[0] != provider:  # a provider whose library does not load is skipped without an exception
            raise RuntimeUnavailable(
                f"runtime {name}: onnxruntime {onnxruntime.__version__} does not load {provider} and would run on "
                f"{running[0]} ({_absent(onnxruntime, provider) or 'see the message of onnxruntime'}): {_BUILT_FOR}"
            )
        inputs = self._session.get_inputs()
        kinds = [np.dtype(_TYPES.get(i.type, np.void)) for i in inputs]
        if len(inputs) != 1 or not is_image(inputs[0].shape, kinds[0]):
            described = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
            raise InputError(f"{what}: wrong inputs (found {described}, expected {AN_IMAGE})")
        for output in self._session.get_outputs():
            check_size(output.shape, what)
        self._input, self.input_type = inputs[0].name, kinds[0]
        self.input_shape = tuple(d if isinstance(d, int) else None for d in inputs[0].shape)
        self.description = f"onnxruntime {onnxruntime.__version__}, {provider}"
        if provider == CPU:
            count = "default threads" if not threads else f"{threads} thread{'s' if threads > 1 else ''}"
            self.description += f", {count}{', yielding' if self.spinning is False else ''}"

    def infer(self, x: np.ndarray) -> List[np.ndarray]:
        """Run the model; inputs are converted to the model's type, outputs as in `Session.infer`.

        Raises:
            InputError: The session is closed, `x` has another shape or type, or the CPU provider fails.
            DeviceError: A GPU provider fails.
        """
        if self._session is None:
            raise InputError("session: already closed; open the model again")
        self._check(x)
        try:
            outputs = self._session.run(None, {self._input: x.astype(self.input_type, copy=False)})
        except Exception as error:
            raise self._failure(f"onnxruntime failed while running the model ({_one_line(error)})") from error
        return [converted(output) for output in outputs]

    def close(self) -> None:
        """Free the session and its memory."""
        self._session = None


def _library() -> Any:
    try:
        import onnxruntime
    except (
        Exception
    ) as error:  # built for another numpy, or a shared library is missing: a broken installation raises any error
        raise RuntimeUnavailable(f"onnxruntime cannot be loaded ({_one_line(error)})") from error
    return onnxruntime


def _absent(onnxruntime: Any, provider: str) -> Optional[str]:
    """The loader's message about a missing shared library of the provider; None if none is missing."""
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
