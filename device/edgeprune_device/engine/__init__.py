"""ONNX -> TensorRT engine, for TensorRT 8.5 and later and TensorRT for RTX.

    Request   the engine to build     library    NVIDIA's Python module, and the features of its release
    Engine    the built engine        build      parse and build, in this process
    cache     engines on the disk     process    the same in a separate process, for all other modules
    offer     engines of a bundle
    memory    memory limits of a build           refusal    why the parser refused a file, and which node

No module here imports NVIDIA's module before an engine is built.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Dict, Optional, Tuple, Union

from edgeprune_device import schema
from edgeprune_device.errors import InputError
from edgeprune_device.files import sha256
from edgeprune_device.hint import unknown
from edgeprune_device.option import named
from edgeprune_device.options import PRECISIONS

__all__ = ["Engine", "Request"]

LIBRARIES = ("tensorrt", "tensorrt_rtx")


@dataclass(frozen=True)
class Request:
    """The engine to build, e.g. `Request(Path("model.fp16.onnx"), "fp16", fp32_nodes=("/model.22/dfl/conv/Conv",))`.

    Attributes:
        onnx: The ONNX file, or its bytes.
        precision: Precision of the file, one of `options.PRECISIONS`.
        fp32_nodes: ONNX nodes that stay FP32 if flags set the precision; a typed network has its types in the file.
        workspace_bytes: Scratch memory of one layer; None: chosen from the free memory (`memory`).
        compute: None: build for this machine's GPU. Else the architecture to build for without a GPU, e.g. "SM86"
            (TensorRT for RTX only).
        library: "tensorrt" or "tensorrt_rtx".
        cuda: CUDA backend that reports the free memory.
        name: Name of the model in messages.

    Raises:
        InputError: The precision or the library is unknown, or the workspace is too small.
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
            raise InputError(unknown(f"{named('precision')}: unknown precision", self.precision, PRECISIONS))
        if self.library not in LIBRARIES:
            raise InputError(unknown("library: unknown name", self.library, LIBRARIES))
        if self.workspace_bytes is not None and self.workspace_bytes < 10**6:
            raise InputError(
                f"workspace: too small (found {self.workspace_bytes / 10**6:g} MB, expected at least 1 MB)"
            )
        if not self.name:
            name = self.onnx.name if isinstance(self.onnx, Path) else f"the {self.precision} model"
            object.__setattr__(self, "name", name)

    @property
    def data(self) -> bytes:
        """Bytes of the ONNX file."""
        return self.onnx if isinstance(self.onnx, bytes) else self.onnx.read_bytes()

    @property
    def onnx_sha256(self) -> str:
        """SHA-256 of the ONNX file."""
        return hashlib.sha256(self.onnx).hexdigest() if isinstance(self.onnx, bytes) else sha256(self.onnx)


@dataclass(frozen=True)
class Engine:
    """A built engine with its origin.

    An example (shortened):

        Engine(builder="TensorRT 10.3.0", onnx_sha256="2f…", precision="fp16", sm="8.7", device="Orin",
               flags=("STRONGLY_TYPED", "NO_TF32"), size_bytes=7340032, parse_seconds=0.4, build_seconds=212.0, …)

    Attributes:
        builder: Name and version of the library.
        onnx_sha256: SHA-256 of the ONNX file.
        precision: Precision of the file.
        flags: How the release built the engine, see `library.flags_of`.
        workspace_bytes: Scratch memory that a layer was allowed.
        parse_seconds: Time of parsing, s.
        build_seconds: Time of building, s.
        size_bytes: Size of the plan.
        plan_sha256: SHA-256 of the plan.
        sm: Compute capability of the GPU, e.g. "8.7"; None if built without a GPU.
        device: Name of the GPU; None if built without a GPU.
        compute: The architecture for which it was built without a GPU, else None.
        fp32_layers: Number of TensorRT's layers that must stay FP32.
        warnings: Remarks of the build, one line each.
        adopted_from: Fingerprint of the key that signed the bundle from which it came; None: built here.
        schema_version: Version of the schema.
        plan: The serialized engine, without any prefix, so that `trtexec --loadEngine` reads it.
        path: Its file in the cache, else None.
        cached: Whether it came from the cache or a bundle instead of a build.
        key: Its key in the cache.
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
        """Read an engine from a parsed JSON object, without its plan.

        Args:
            data: The object.
            what: Start of the error message.

        Raises:
            InputError: The object does not fit the schema.
        """
        fields = dict(schema.check("engine", data, what))
        fields["flags"], fields["warnings"] = tuple(fields["flags"]), tuple(fields["warnings"])
        return cls(**fields)

    def to_json(self) -> Dict[str, Any]:
        """A JSON object that fits `schema/engine.json`: all fields except the plan and its place in the cache."""
        data = asdict(replace(self, plan=b""))
        for name in ("plan", "path", "cached", "key"):
            del data[name]
        return {**data, "flags": list(self.flags), "warnings": list(self.warnings)}
