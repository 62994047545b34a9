"""Parse an ONNX file and build its engine, in this process, with the installed release of TensorRT.

Callers use `process.build`, so that a crash or the out-of-memory killer inside the native library does not end them.
Calibrators, implicit batch and bindings by number are not used, because some releases lack them and none is needed.
"""

from __future__ import annotations

import hashlib
import re
import time
from typing import Any, Collection, Dict, List, Mapping, Optional, Sequence, Tuple

from edgeprune_device import onnx_file
from edgeprune_device.engine import Engine, Request, library, refusal
from edgeprune_device.errors import GateError, InputError
from edgeprune_device.progress import Progress, silent

__all__ = ["build"]

# Layers without computation: they have no precision, or their output type is their function.
_TYPELESS = ("CAST", "CONSTANT", "DEQUANTIZE", "IDENTITY", "QUANTIZE", "SHAPE")
_MOST_WARNINGS = 20


def build(
    trt: Any,
    request: Request,
    *,
    pools: Optional[Mapping[str, int]] = None,
    timing_cache: bytes = b"",
    progress: Progress = silent,
) -> Tuple[Engine, bytes]:
    """Parse an ONNX file and build its engine.

    Args:
        trt: NVIDIA's Python module.
        request: The engine to build.
        pools: {name of a memory pool: bytes}; pools that this release does not have are ignored.
        timing_cache: Content of the timing cache to use, or nothing.
        progress: Receives the progress, from the library's own threads.

    Returns:
        (the engine with its plan, the timing cache to keep, possibly empty).

    Raises:
        InputError: This release cannot build the precision or for the architecture, or the model is not completely
            inside its file.
        GateError: TensorRT's parser or builder does not accept the file.
    """
    onnx_file.refuse_outside(request.data, request.name)
    work, sizes = _Build(trt, request), dict(pools or {})
    began = time.perf_counter()
    work.parse()
    parsed = time.perf_counter()
    work.configure(sizes, timing_cache, progress)
    plan = work.plan()
    built = time.perf_counter()
    engine = Engine(
        builder=work.title,
        onnx_sha256=hashlib.sha256(work.onnx).hexdigest(),
        precision=request.precision,
        flags=tuple(work.flags),
        workspace_bytes=sizes.get("WORKSPACE", 0),
        parse_seconds=parsed - began,
        build_seconds=built - parsed,
        size_bytes=len(plan),
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        compute=request.compute,
        fp32_layers=work.kept,
        warnings=tuple(dict.fromkeys([*work.warnings, *work.log.warnings]))[:_MOST_WARNINGS],
        plan=plan,
    )
    return engine, b"" if request.compute else _timing_cache(work.config)


class _Build:
    """One build: the library's objects, which must live until the plan is made, and the remarks on it.

    Attributes:
        title: Name and version of the library.
        onnx: Bytes of the ONNX file.
        flags: How the release builds it, see `library.flags_of`.
        kept: Number of layers that stay FP32.
        warnings: Remarks, one line each.
        log: The library's log.
        config: The builder's configuration.
    """

    def __init__(self, trt: Any, request: Request) -> None:
        self._trt, self._request, self.onnx = trt, request, request.data
        self.title, self.log = library.title(trt), library.log_of(trt)
        self.flags = library.flags_of(trt, request.precision, request.fp32_nodes, request.compute)
        self._typed = "STRONGLY_TYPED" in self.flags
        self._builder = trt.Builder(self.log)
        self._network = self._builder.create_network(_creation(trt, self._typed))
        self._parser = trt.OnnxParser(self._network, self.log)  # holds the network's weights
        self.config = self._builder.create_builder_config()
        self.warnings: List[str] = []
        self.kept = 0

    def parse(self) -> None:
        """Parse the file.

        Raises:
            GateError: TensorRT's parser does not accept the file.
        """
        if not self._parser.parse(self.onnx):
            typing = library.has_typing(self._trt)
            why = refusal.of_parser(self._parser, self.log.errors, self.onnx, self._request.precision, typing)
            raise GateError(f"{self._request.name}: refused by {self.title}: {why}")

    def configure(self, pools: Mapping[str, int], timing_cache: bytes, progress: Progress) -> None:
        """Set precisions, memory, the timing cache and the monitor; the arguments are those of `build`.

        Raises:
            InputError: This release cannot build for this architecture.
        """
        trt, config, compute = self._trt, self.config, self._request.compute
        if not self._typed:
            self.kept = self._set_precisions()
        elif self._request.precision == "int8":
            self.warnings.append(
                f"{self.title} has no precision flags, so all parts of this file that are not INT8 stay FP32; the "
                "int8-fp16 model is faster"
            )
        config.clear_flag(trt.BuilderFlag.TF32)
        if compute:
            _set_compute(trt, config, compute, self.title)
        for pool, size in pools.items():
            if hasattr(trt.MemoryPoolType, pool):
                config.set_memory_pool_limit(getattr(trt.MemoryPoolType, pool), size)
        if not compute:  # a build without a GPU times no tactics
            _set_timing_cache(config, timing_cache)
        if progress is not silent and hasattr(config, "progress_monitor"):
            config.progress_monitor = _monitor(trt, progress)

    def plan(self) -> bytes:
        """Build the network.

        Raises:
            GateError: TensorRT's builder does not accept the file.
        """
        plan = self._builder.build_serialized_network(self._network, self.config)
        if plan is None and library.OBEY in self.flags and not refusal.is_of_memory(self.log.errors):
            self._only_prefer_fp32()
            plan = self._builder.build_serialized_network(self._network, self.config)
        if plan is None:
            why = refusal.of_builder(self.log.errors, self._request.precision)
            raise GateError(f"{self._request.name}: {self.title} cannot build an engine from this file: {why}")
        return bytes(memoryview(plan))

    def _only_prefer_fp32(self) -> None:
        """Turn the requirement to keep layers in FP32 into a preference, after the builder found no engine for it.

        An engine that may overflow is better than none, because bench detects an overflow by the accuracy.
        """
        why = refusal.of_builder(self.log.errors, self._request.precision)
        self.warnings.append(
            f"{self.title} finds no engine with all {self.kept} layers in FP32 ({why[:400]}), so FP32 is only "
            "preferred; compare this machine's accuracy with the host's (edgeprune bench)"
        )
        self.flags = [library.PREFER if flag == library.OBEY else flag for flag in self.flags]
        self.config.clear_flag(getattr(self._trt.BuilderFlag, library.OBEY))
        self.config.set_flag(getattr(self._trt.BuilderFlag, library.PREFER))

    def _set_precisions(self) -> int:
        """Allow a weakly typed network the precisions that the file needs, and keep the FP32 layers.

        Returns:
            The number of layers that stay FP32.
        """
        for flag in ("FP16", "INT8", library.OBEY):
            if flag in self.flags:
                self.config.set_flag(getattr(self._trt.BuilderFlag, flag))
        return sum(map(self._keep_fp32, self._fp32_layers())) if "FP16" in self.flags else 0

    def _fp32_layers(self) -> List[Any]:
        """The layers that must stay FP32: those of the request's nodes, and those that are FP32 in an FP16 file."""
        trt, precision, nodes = self._trt, self._request.precision, onnx_file.names(self.onnx)
        layers = [self._network.get_layer(i) for i in range(self._network.num_layers)]
        asked = set(self._request.fp32_nodes)
        asked_layers = {layer.name for layer in layers if _node_of(layer.name, nodes) in asked}
        missing = sorted(asked - {_node_of(name, nodes) for name in asked_layers})
        if missing:
            self.warnings.append(
                f"{len(missing)} nodes that must stay FP32 are missing from the network, e.g. {missing[0]}; compare "
                "this machine's accuracy with the host's (edgeprune bench)"
            )
        kept = [layer for layer in layers if layer.name in asked_layers]
        if precision == "fp16" and any(_has_type(layer, trt.DataType.HALF) for layer in layers):
            kept += [layer for layer in _fp32_in_the_file(trt, layers) if layer.name not in asked_layers]
        elif precision == "fp16" and not asked:
            self.warnings.append(
                "the network has no FP16 tensor, so the layers that must stay FP32 are unknown; compare this machine's "
                "accuracy with the host's (edgeprune bench)"
            )
        return kept

    def _keep_fp32(self, layer: Any) -> bool:
        """Keep a layer in FP32; return False if it has no precision to set."""
        float32 = self._trt.DataType.FLOAT
        floats = [i for i in range(layer.num_outputs) if _is_float(self._trt, layer.get_output(i))]
        if layer.type.name in _TYPELESS or not floats:
            return False
        layer.precision = float32  # computes in FP32 …
        for i in floats:  # … and keeps its result in FP32, because the result overflows
            layer.set_output_type(i, float32)
        return True


def _creation(trt: Any, typed: bool) -> int:
    known = trt.NetworkDefinitionCreationFlag
    # Explicit batch must be requested before TensorRT 10, which has no other mode; 11 has no flag for it.
    names = ["EXPLICIT_BATCH"] if hasattr(known, "EXPLICIT_BATCH") else []
    names += ["STRONGLY_TYPED"] if typed else []
    return sum(1 << int(getattr(known, name)) for name in names)


def _node_of(layer: str, nodes: Collection[str]) -> Optional[str]:
    """The node among `nodes` (all nodes of the file) from which a layer was made.

    TensorRT's parser names a layer after its node, and adds a number for further layers of the same node. A node's own
    name can also end in a number.
    """
    if layer in nodes:
        return layer
    stem = re.sub(r"_[0-9]+$", "", layer)
    return stem if stem in nodes else None


def _fp32_in_the_file(trt: Any, layers: Sequence[Any]) -> List[Any]:
    """The layers of a typed FP16 file that read and write FP32."""
    return [
        layer
        for layer in layers
        if layer.num_inputs and _is_float(trt, layer.get_input(0)) and not _has_type(layer, trt.DataType.HALF)
    ]


def _has_type(layer: Any, kind: Any) -> bool:
    return any(layer.get_output(i).dtype == kind for i in range(layer.num_outputs))


def _is_float(trt: Any, tensor: Any) -> bool:
    return tensor is not None and tensor.dtype == trt.DataType.FLOAT  # an optional input can be None


def _set_compute(trt: Any, config: Any, compute: str, title: str) -> None:
    members = trt.ComputeCapability.__members__ if hasattr(trt, "ComputeCapability") else {}
    known = [name for name in members if name.startswith("SM")]
    if compute not in known:
        raise InputError(
            f"{title}: cannot build for {compute} (supported: {', '.join(known) or 'only the GPU of this machine'})"
        )
    config.num_compute_capabilities = 1
    config.set_compute_capability(members[compute], 0)


def _set_timing_cache(config: Any, content: bytes) -> None:
    """Set the timing cache. A cache that does not fit or is damaged is ignored, because it only saves time."""
    for candidate in (content, b"") if content else (b"",):
        try:
            cache = config.create_timing_cache(candidate)
            if cache is not None and config.set_timing_cache(cache, False):
                return
        except (RuntimeError, TypeError):  # raised by pybind if the native call failed or returned nothing
            continue


def _timing_cache(config: Any) -> bytes:
    cache = config.get_timing_cache()
    content = cache.serialize() if cache is not None else None
    return bytes(memoryview(content)) if content is not None else b""


def _monitor(trt: Any, progress: Progress) -> Any:
    """A progress monitor that computes the overall fraction from TensorRT's nested phases.

    Each phase has a number of steps and may belong to a step of another phase.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # TensorRT has no types
        """Called by the native library from its own threads."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._open: Dict[str, List[Any]] = {}  # name: [parent, steps, done]

        def phase_start(self, phase_name: str, parent_phase: Optional[str], num_steps: int) -> None:
            """Record the start of a phase."""
            self._open[phase_name] = [parent_phase, max(num_steps, 1), 0]
            self._say(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            """Record the end of a step; True lets the build continue."""
            if phase_name in self._open:
                self._open[phase_name][2] = step + 1
                self._say(phase_name)
            return True

        def phase_finish(self, phase_name: str) -> None:
            """Record the end of a phase."""
            self._open.pop(phase_name, None)

        def _say(self, name: str) -> None:
            fraction, at = 0.0, self._open.get(name)
            for _ in range(16):  # deeper than any build; a cycle of phases must not hang
                if at is None:  # no parent, or one that another thread has just finished
                    break
                parent, steps, done = at
                fraction = min((done + fraction) / steps, 1.0)
                at = self._open.get(parent)
            progress(fraction, name)

    return Monitor()
