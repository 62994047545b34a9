"""Parse an ONNX file and build its engine, in this process, with the installed release of TensorRT.

Callers use `process.build`, so that a crash or the out-of-memory killer inside the native library does not end them.
Calibrators, implicit batch and bindings by number are not used: some releases lack them, and none is needed.
"""

from __future__ import annotations

import hashlib
import re
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

from edgeprune_device.engine import Engine, library, onnx_file, refusal
from edgeprune_device.errors import GateError, InputError

__all__ = ["Progress", "build"]

#: (share done in [0, 1], text)
Progress = Callable[[float, str], None]
# Layers without a computation of their own: they have no precision to set, or their output type is their meaning.
_TYPELESS = ("CAST", "CONSTANT", "DEQUANTIZE", "IDENTITY", "QUANTIZE", "SHAPE")
_MOST_WARNINGS = 20


def build(
    trt: Any,
    onnx: bytes,
    precision: str,
    *,
    name: str = "the model",
    fp32_nodes: Tuple[str, ...] = (),
    pools: Optional[Dict[str, int]] = None,
    compute: Optional[str] = None,
    timing_cache: bytes = b"",
    progress: Optional[Progress] = None,
) -> Tuple[Engine, bytes]:
    """Parse an ONNX file and build its engine.

    Args:
        trt: NVIDIA's Python module.
        onnx: Bytes of the ONNX file.
        precision: Precision of the file.
        name: Name of the model in messages.
        fp32_nodes: See `Request`.
        pools: {name of a memory pool: bytes}; a pool that this release does not have is left out.
        compute: See `Request`.
        timing_cache: Content of the timing cache to use, or nothing.
        progress: Called with (share done in [0, 1], text).

    Returns:
        (the engine with its plan, the timing cache to keep, empty where there is none).

    Raises:
        InputError: This release cannot build this precision, or cannot build for this architecture.
        GateError: NVIDIA's parser or builder refuses the file.
    """
    title, log = library.title(trt), library.log_of(trt)
    flags = library.flags_of(trt, precision, fp32_nodes, compute)
    typed = "STRONGLY_TYPED" in flags
    builder = trt.Builder(log)
    network = builder.create_network(_creation(trt, typed))
    parser = trt.OnnxParser(network, log)
    began = time.perf_counter()
    if not parser.parse(onnx):
        why = refusal.of_parser(parser, log.errors, onnx, precision, library.has_typing(trt))
        raise GateError(f"{name}: {title} refuses it: {why}")
    parsed = time.perf_counter()
    config = builder.create_builder_config()
    warnings: List[str] = []
    kept = 0
    if not typed:
        nodes = onnx_file.names(onnx)
        kept = _set_precisions(trt, network, config, flags, precision, fp32_nodes, nodes, warnings)
    elif precision == "int8":
        warnings.append(
            f"{title} has no precision flags: what is not INT8 in this file stays FP32; the int8-fp16 model is faster"
        )
    config.clear_flag(trt.BuilderFlag.TF32)
    if compute:
        _set_compute(trt, config, compute, title)
    for pool, size in (pools or {}).items():
        if hasattr(trt.MemoryPoolType, pool):
            config.set_memory_pool_limit(getattr(trt.MemoryPoolType, pool), size)
    if not compute:  # a build without a GPU times no tactics
        _set_timing_cache(config, timing_cache)
    if progress is not None and hasattr(config, "progress_monitor"):
        config.progress_monitor = _monitor(trt, progress)
    plan = builder.build_serialized_network(network, config)
    if plan is None and library.OBEY in flags and not refusal.is_of_memory(log.errors):
        # An engine that may overflow is better than none: an overflow shows in the accuracy that bench measures.
        why = refusal.of_builder(log.errors, precision)
        warnings.append(
            f"{title} finds no engine that holds all {kept} layers in FP32 ({why[:400]}): FP32 is only preferred, "
            "so compare this machine's accuracy with the host's (edgeprune bench)"
        )
        flags = [library.PREFER if flag == library.OBEY else flag for flag in flags]
        config.clear_flag(getattr(trt.BuilderFlag, library.OBEY))
        config.set_flag(getattr(trt.BuilderFlag, library.PREFER))
        plan = builder.build_serialized_network(network, config)
    built = time.perf_counter()
    if plan is None:
        raise GateError(f"{name}: {title} cannot build it: {refusal.of_builder(log.errors, precision)}")
    content = bytes(memoryview(plan))
    engine = Engine(
        builder=title,
        onnx_sha256=hashlib.sha256(onnx).hexdigest(),
        precision=precision,
        flags=tuple(flags),
        workspace_bytes=(pools or {}).get("WORKSPACE", 0),
        parse_seconds=parsed - began,
        build_seconds=built - parsed,
        size_bytes=len(content),
        plan_sha256=hashlib.sha256(content).hexdigest(),
        compute=compute,
        fp32_layers=kept,
        warnings=tuple(dict.fromkeys([*warnings, *log.warnings]))[:_MOST_WARNINGS],
        plan=content,
    )
    return engine, b"" if compute else _timing_cache(config)


def _creation(trt: Any, typed: bool) -> int:
    known = trt.NetworkDefinitionCreationFlag
    # Explicit batch is the only kind since TensorRT 10 and must be asked for before; 11 has no name for it.
    names = ["EXPLICIT_BATCH"] if hasattr(known, "EXPLICIT_BATCH") else []
    names += ["STRONGLY_TYPED"] if typed else []
    return sum(1 << int(getattr(known, name)) for name in names)


def _set_precisions(trt, network, config, flags, precision, fp32_nodes, nodes, warnings) -> int:
    """Set the precisions of a weakly typed network: allow those that the file needs, and keep FP32 where it must stay.

    Returns:
        The number of layers that stay FP32.
    """
    for flag in ("FP16", "INT8", library.OBEY):
        if flag in flags:
            config.set_flag(getattr(trt.BuilderFlag, flag))
    if "FP16" not in flags:
        return 0
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    asked = set(fp32_nodes)
    found = {layer.name for layer in layers if _node_of(layer.name, nodes) in asked}
    missing = sorted(asked - {_node_of(name, nodes) for name in found})
    if missing:
        warnings.append(f"{len(missing)} nodes that must stay FP32 are not in the network, e.g. {missing[0]}")
    kept = [layer for layer in layers if layer.name in found]
    if precision == "fp16" and any(_has_type(layer, trt.DataType.HALF) for layer in layers):
        kept += [layer for layer in _fp32_in_the_file(trt, layers) if layer.name not in found]
    elif precision == "fp16" and not asked:
        warnings.append("no FP16 tensor shows in the network, so nothing tells which layers must stay FP32")
    count = 0
    for layer in kept:
        floats = [i for i in range(layer.num_outputs) if _is_float(trt, layer.get_output(i))]
        if layer.type.name in _TYPELESS or not floats:
            continue
        layer.precision = trt.DataType.FLOAT  # computes in FP32 …
        for i in floats:  # … and keeps its result in FP32: it is the result that overflows
            layer.set_output_type(i, trt.DataType.FLOAT)
        count += 1
    return count


def _node_of(layer: str, nodes) -> Optional[str]:
    """The node among `nodes` (all nodes of the file) that a layer came from.

    TensorRT's parser names a layer as its node, and later layers of the same node with a number behind. A node's own
    name can end in a number, too.
    """
    if layer in nodes:
        return layer
    stem = re.sub(r"_[0-9]+$", "", layer)
    return stem if stem in nodes else None


def _fp32_in_the_file(trt, layers) -> List[Any]:
    """The layers of a typed FP16 file that read and write FP32: its author kept them so."""
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
        raise InputError(f"{title} cannot build for {compute}; it knows {', '.join(known) or 'only the GPU at hand'}")
    config.num_compute_capabilities = 1
    config.set_compute_capability(members[compute], 0)


def _set_timing_cache(config: Any, content: bytes) -> None:
    """Set the timing cache. A cache that does not fit or is damaged is left out: it only saves time."""
    for candidate in (content, b"") if content else (b"",):
        try:
            cache = config.create_timing_cache(candidate)
            if cache is not None and config.set_timing_cache(cache, False):
                return
        except (RuntimeError, TypeError):  # pybind's way to say that the native call failed or returned nothing
            continue


def _timing_cache(config: Any) -> bytes:
    cache = config.get_timing_cache()
    content = cache.serialize() if cache is not None else None
    return bytes(memoryview(content)) if content is not None else b""


def _monitor(trt: Any, progress: Progress) -> Any:
    """A progress monitor that computes one share of the whole from TensorRT's nested phases.

    Each phase has a number of steps and may lie inside a step of another phase.
    """

    class Monitor(trt.IProgressMonitor):
        """Called by the native library, from its own threads."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._open: Dict[str, List[Any]] = {}  # name: [parent, steps, done]

        def phase_start(self, phase_name: str, parent_phase: Optional[str], num_steps: int) -> None:
            """Note that a phase begins."""
            self._open[phase_name] = [parent_phase, max(num_steps, 1), 0]
            self._say(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            """Note that a step is done; True lets the build go on."""
            if phase_name in self._open:
                self._open[phase_name][2] = step + 1
                self._say(phase_name)
            return True

        def phase_finish(self, phase_name: str) -> None:
            """Note that a phase ends."""
            self._open.pop(phase_name, None)

        def _say(self, name: str) -> None:
            share, at = 0.0, self._open.get(name)
            for _ in range(16):  # deeper than any build goes; phases that name each other must not hang
                if at is None:  # no parent, or one that another thread has just finished
                    break
                parent, steps, done = at
                share = min((done + share) / steps, 1.0)
                at = self._open.get(parent)
            progress(share, name)

    return Monitor()
