"""ONNX -> TensorRT engine, for every TensorRT from 8.5 on and TensorRT for RTX.

    Request   what to build           library    NVIDIA's Python module, and what this release of it can
    Engine    what was built          build      parse and build, in this process
    cache     engines on the disk     process    the same in a process of its own: what everybody calls
    offer     engines of a bundle
    memory    how much building may take         refusal, onnx_file   why the parser refused, and which node

Nothing here imports NVIDIA's module before something is built.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Dict, Optional, Tuple, Union

from edgeprune_device import schema
from edgeprune_device.errors import InputError
from edgeprune_device.files import sha256

__all__ = ["PRECISIONS", "Engine", "Request"]

PRECISIONS = ("fp32", "fp16", "int8", "int8-fp16")
LIBRARIES = ("tensorrt", "tensorrt_rtx")


@dataclass(frozen=True)
class Request:
    """What to build. E.g. `Request(Path("model.fp16.onnx"), "fp16", fp32_nodes=("/model.22/dfl/conv/Conv",))`.

    - `onnx`: the file, or its bytes; `name`: what messages call it
    - `fp32_nodes`: ONNX nodes that stay FP32 where the precision is set by flags; a typed network has it in the file
    - `workspace_bytes`: scratch memory of one layer; None: by what is free (`memory`)
    - `compute`: None: for this machine's GPU; else ahead of time, without one, e.g. "SM86" (TensorRT for RTX only)
    - `library`: "tensorrt" or "tensorrt_rtx"; `cuda`: the backend that is asked for the free memory
    """

    onnx: Union[bytes, Path]
    precision: str
    fp32_nodes: Tuple[str, ...] = ()
    workspace_bytes: Optional[int] = None
    compute: Optional[str] = None
    library: str = "tensorrt"
    cuda: str = "auto"
    name: str = ""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(f"unknown precision {self.precision!r}; known: {', '.join(PRECISIONS)}")
        if self.library not in LIBRARIES:
            raise InputError(f"unknown library {self.library!r}; known: {', '.join(LIBRARIES)}")
        if self.workspace_bytes is not None and self.workspace_bytes < 10**6:
            raise InputError(f"a workspace of {self.workspace_bytes} bytes is too small: give at least 1 MB")
        if not self.name:
            name = self.onnx.name if isinstance(self.onnx, Path) else f"the {self.precision} model"
            object.__setattr__(self, "name", name)

    @property
    def onnx_sha256(self) -> str:
        """Of the ONNX file's bytes."""
        return hashlib.sha256(self.onnx).hexdigest() if isinstance(self.onnx, bytes) else sha256(self.onnx)


@dataclass(frozen=True)
class Engine:
    """What was built, by what, from what, for what. E.g. (shortened)

        Engine(builder="TensorRT 10.3.0", onnx_sha256="2f…", precision="fp16", sm="8.7", device="Orin",
               flags=("STRONGLY_TYPED", "NO_TF32"), size_bytes=7340032, parse_seconds=0.4, build_seconds=212.0, …)

    - `plan`: raw, without any prefix, so that `trtexec --loadEngine` reads it
    - `path`: where the cache keeps it, else None; `cached`: it was not built now; `key`: of the cache
    - `adopted_from`: fingerprint of the key that signed the bundle which brought it; None: it was built here
    - `sm`, `device`: None where it was built ahead of time; then `compute` says for what
    - `fp32_layers`: how many of TensorRT's layers were told to stay FP32
    """

    builder: str
    onnx_sha256: str
    precision: str
    flags: Tuple[str, ...]
    workspace_bytes: int
    parse_seconds: float
    build_seconds: float
    size_bytes: int
    plan_sha256: str
    sm: Optional[str] = None
    device: Optional[str] = None
    compute: Optional[str] = None
    fp32_layers: int = 0
    warnings: Tuple[str, ...] = ()
    adopted_from: Optional[str] = None
    schema_version: int = 1
    plan: bytes = field(default=b"", repr=False, compare=False)
    path: Optional[Path] = field(default=None, compare=False)
    cached: bool = field(default=False, compare=False)
    key: Optional[str] = field(default=None, compare=False)

    @classmethod
    def from_json(cls, data: Any, what: str = "engine") -> Engine:
        """From a parsed JSON object, without the plan; `what` begins the InputError."""
        fields = dict(schema.check("engine", data, what))
        fields["flags"], fields["warnings"] = tuple(fields["flags"]), tuple(fields["warnings"])
        return cls(**fields)

    def to_json(self) -> Dict[str, Any]:
        """A JSON object that fits `schema/engine.json`: all but the plan and where it lies in the cache."""
        data = asdict(replace(self, plan=b""))
        for name in ("plan", "path", "cached", "key"):
            del data[name]
        return {**data, "flags": list(self.flags), "warnings": list(self.warnings)}
