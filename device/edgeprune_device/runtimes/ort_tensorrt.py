"""ONNX Runtime on its TensorRT provider, which builds its own engines inside the library.

Operators that TensorRT does not take go to CUDA. No GPU was available when this was written: opening and refusing were
tested, running was not.

The provider names its engine files by the graph and not by the weights (onnxruntime issue 6455), so two trainings of
one network would share them. Each ONNX file and each onnxruntime version therefore has its own folder, inside the
folder of the engines. The provider loads these files unverified, and loading an engine runs code from it, so a folder
that others can write is not used.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

from edgeprune_device.engine import Request, cache
from edgeprune_device.errors import InputError
from edgeprune_device.runtimes import Session, ort

AUTOMATIC = 0  # as ort_cuda; and only runtime trt can keep single layers in FP32
PROVIDER = "TensorrtExecutionProvider"


def available() -> Optional[str]:
    """None where onnxruntime has the provider, else the reason."""
    return ort.missing(PROVIDER)


def order(asked: str, int8_for_cpu: bool) -> Tuple[str, ...]:
    """The precisions to try, best first; see `edgeprune_device.runtimes.order`."""
    return ort.order_on_gpu(asked)


def open(model, settings) -> Session:
    """Open a session on device 0.

    Raises:
        RuntimeUnavailable: The provider does not load.
    """
    options: Dict[str, Any] = {
        "trt_fp16_enable": settings.precision != "fp32",
        "trt_int8_enable": settings.precision.startswith("int8"),  # the scales are in the file: no calibration table
    }
    warnings = [*ort.warnings_on_gpu(settings.precision)]
    if settings.precision != "fp32":
        warnings.append("ONNX Runtime cannot tell TensorRT which layers must stay FP32: compare the accuracy")
    if settings.workspace_bytes:
        options["trt_max_workspace_size"] = settings.workspace_bytes
    folder, why = _folder(Path(model) if isinstance(model, str) else model, settings.precision)
    if folder is None:
        warnings.append(f"ONNX Runtime's engine is not kept for the next time: {why}")
    else:
        # The timing cache lies beside the engines; its own path is an option that older releases refuse.
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


def _folder(model, precision: str) -> Tuple[Optional[Path], Optional[str]]:
    """(the folder for the engines of this file, None), or (None, why there is none)."""
    import onnxruntime

    version = re.sub(r"[^A-Za-z0-9.+-]", "_", onnxruntime.__version__)
    try:
        top = cache.Cache().folder
        path = top / "onnxruntime" / f"{Request(model, precision).onnx_sha256}-{version}"
        for each in (top, path.parent, path):
            each.mkdir(exist_ok=True, mode=0o700)
            state = os.lstat(str(each))
            if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid() or state.st_mode & 0o022:
                return None, f"{each} can be written by others (chmod 700 it, or set EDGEPRUNE_ENGINES elsewhere)"
    except InputError as error:
        return None, str(error)
    except OSError as error:
        return None, f"{error.filename}: {str(error.strerror).lower()}"
    return path, None
