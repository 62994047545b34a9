"""ONNX Runtime on its TensorRT provider, which builds engines inside the library.

Operators that TensorRT does not support run on CUDA. No GPU was available when this was written: opening and refusing a
model were tested, running one was not.
The provider names its engine files after the graph and not the weights (onnxruntime issue 6455), so two trainings of
one network would share them. Each ONNX file and each onnxruntime version therefore has a separate folder, inside the
folder of the engines. The provider loads these files unverified, and a loaded engine runs code, so a folder that others
can write to is not used.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any, Dict, Optional, Tuple, Union

from edgeprune_device.engine import Request, cache, process
from edgeprune_device.errors import InputError, reason
from edgeprune_device.runtimes import Model, RuntimeSettings, Session, ort

AUTOMATIC = 0  # as in ort_cuda; also, only runtime trt can keep single layers in FP32
PROVIDER = "TensorrtExecutionProvider"
BUILD_S = process.TIMEOUT_S  # it builds its engines while it opens a model


def available() -> Optional[str]:
    """None if onnxruntime has the provider, else the reason."""
    return ort.missing(PROVIDER)


def order(asked: str, int8_for_cpu: bool) -> Tuple[str, ...]:
    """The precisions to try, best first; see `edgeprune_device.runtimes.order`."""
    return ort.order_on_gpu(asked)


def open(model: Model, settings: RuntimeSettings) -> Session:
    """Open a session on device 0.

    Raises:
        RuntimeUnavailable: The provider does not load.
    """
    options: Dict[str, Any] = {
        "trt_fp16_enable": settings.precision != "fp32",
        # The file contains the scales, so no calibration table is needed.
        "trt_int8_enable": settings.precision.startswith("int8"),
    }
    warnings = [*ort.warnings_on_gpu(settings.precision)]
    if settings.precision != "fp32":
        warnings.append(
            "ONNX Runtime cannot tell TensorRT which layers must stay FP32; compare the accuracy with the host's"
        )
    if settings.workspace_bytes:
        options["trt_max_workspace_size"] = settings.workspace_bytes
    folder, why = _folder(Path(model) if isinstance(model, str) else model, settings.precision)
    if folder is None:
        warnings.append(f"the engine of ONNX Runtime is not cached: {why}")
    else:
        # The timing cache is stored beside the engines; older releases refuse an option for its path.
        options.update(trt_engine_cache_enable=True, trt_engine_cache_path=str(folder), trt_timing_cache_enable=True)
    providers = [(PROVIDER, options), "CUDAExecutionProvider"]
    return ort.OrtSession(
        model,
        settings.threads,
        name="ort-tensorrt",
        providers=providers,
        spinning=settings.spinning,
        warnings=tuple(warnings),
    )


def _folder(model: Union[bytes, Path], precision: str) -> Tuple[Optional[Path], Optional[str]]:
    """Return (the folder for the engines of this file, None), or (None, the reason why there is none)."""
    import onnxruntime

    version = re.sub(r"[^A-Za-z0-9.+-]", "_", onnxruntime.__version__)
    try:
        top = cache.Cache().folder
        path = top / "onnxruntime" / f"{Request(model, precision).onnx_sha256}-{version}"
        for each in (top, path.parent, path):
            each.mkdir(exist_ok=True, mode=0o700)
            state = os.lstat(str(each))
            if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid() or state.st_mode & 0o022:
                return (
                    None,
                    f"other users may write to {each}; run chmod 700 {each}, or set EDGEPRUNE_ENGINES to another "
                    "folder",
                )
    except InputError as error:
        return None, str(error)
    except OSError as error:
        return None, f"{error.filename}: {reason(error)}"
    return path, None
