"""TensorRT: builds the engine or takes it from the cache, then runs it on the GPU.

It uses only the named-tensor API (8.5 and later), page-locked host buffers and one stream. The raw output of a device
variant stays on the GPU until it is read. CUDA events time the copy in, the execution and the copies out separately. An
optional CUDA graph contains the execution but not the copies, so that the timing has the same three parts. It saves the
CPU the launches of single kernels.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union, overload

import numpy as np

from edgeprune_device import cuda
from edgeprune_device.engine import Request, cache, library
from edgeprune_device.errors import DeviceError, EdgepruneError, InputError
from edgeprune_device.output import NAMES, check_size
from edgeprune_device.runtimes import AN_IMAGE, Model, RuntimeSettings, Session, converted, is_image

AUTOMATIC = 100
LIBRARY = "tensorrt"

# Keyed by name: trt.nptype fails with numpy 1.24 on TensorRT 8.5, and never has bfloat16.
_TYPES: Dict[str, type] = {
    "FLOAT": np.float32, "HALF": np.float16, "INT8": np.int8, "UINT8": np.uint8, "INT32": np.int32, "INT64": np.int64,
    "BOOL": np.bool_,
}  # fmt: skip


def available() -> Optional[str]:
    """None if TensorRT and a CUDA backend are installed, else the reason."""
    return missing(LIBRARY)


def missing(name: str) -> Optional[str]:
    """The reason why the library `name` cannot run here; None if it can."""
    if importlib.util.find_spec(name) is not None:
        backends = cuda.available()
        if all(backends.values()):  # checked first: loading NVIDIA's library takes 100 MB and would be useless
            return "no usable GPU: " + "; ".join(f"{name}: {why}" for name, why in backends.items())
    return library.reason(name)


def order(asked: str, int8_for_cpu: bool) -> Tuple[str, ...]:
    """The precisions to try, best first; see `edgeprune_device.runtimes.order`."""
    return order_of(LIBRARY, asked, int8_for_cpu)


def order_of(name: str, asked: str, int8_for_cpu: bool) -> Tuple[str, ...]:
    """`order` with the library `name`.

    "int8" selects the better of the two INT8 files that this release supports. TensorRT's parser does not accept the
    unsigned form for CPUs.
    """
    known = library.order(library.load(name))
    if asked == "auto":
        return tuple(p for p in known if not (int8_for_cpu and p == "int8"))
    if asked == "int8":
        return tuple(p for p in ("int8-fp16", "int8") if p in known)
    return (asked,)


def open(model: Model, settings: RuntimeSettings) -> Session:
    """Open a session on device 0.

    The first session for a model builds its engine, which can take many minutes on a Jetson.

    Raises:
        RuntimeUnavailable: TensorRT is not installed or does not load.
        InputError: This release cannot build the precision, or the model's tensors have no fixed shape or common type.
        GateError: TensorRT's parser or builder does not accept the file.
        DeviceError: The builder crashed, or the engine does not load.
    """
    return open_with(LIBRARY, "trt", model, settings)


def open_with(library_name: str, runtime: str, model: Model, settings: RuntimeSettings) -> Session:
    """`open` with one of NVIDIA's two libraries.

    Args:
        library_name: "tensorrt" or "tensorrt_rtx".
        runtime: Name of the runtime, "trt" or "rtx".
        model: Bytes or path of the ONNX file.
        settings: See `RuntimeSettings`.
    """
    trt = library.load(library_name)
    request = Request(
        Path(model) if isinstance(model, str) else model,
        settings.precision,
        fp32_nodes=settings.fp32_nodes,
        workspace_bytes=settings.workspace_bytes,
        library=library_name,
        cuda=settings.cuda,
    )
    try:
        return _session(trt, request, runtime, settings)
    except _BroughtNotLoaded as error:
        # Built elsewhere with the same TensorRT and GPU; other dependencies are discovered only by loading it.
        return _session(trt, request, runtime, settings, why=f"the bundle's engine is not used: {error}")


class _NotLoaded(DeviceError):
    """TensorRT cannot load the plan."""


class _BroughtNotLoaded(_NotLoaded):
    """TensorRT cannot load a plan that came with the bundle."""


def _session(
    trt: Any, request: Request, runtime: str, settings: RuntimeSettings, why: Optional[str] = None
) -> TrtSession:
    """Open a session.

    `why`, if given, is the failure of an earlier attempt; the engine is then always built here.
    """
    gpu = cuda.open(settings.cuda)
    try:
        engine = cache.Cache().engine(
            request, gpu.device(), offers=settings.offers, rebuild=why is not None, progress=settings.progress
        )
        warnings = engine.warnings if why is None else (why, *engine.warnings)
        if engine.adopted_from:
            warnings = (f"the engine is from the bundle, built by {engine.builder} on {engine.device}", *warnings)
        elif not engine.cached:
            seconds = engine.parse_seconds + engine.build_seconds
            warnings = (f"the load time includes building the engine ({seconds:.0f} s)", *warnings)
        try:
            return TrtSession(trt, gpu, engine.plan, runtime=runtime, graph=settings.graph, warnings=warnings)
        except _NotLoaded as error:
            if engine.adopted_from is None:
                raise
            raise _BroughtNotLoaded(str(error)) from error
    except BaseException:
        gpu.close()
        raise


class TrtSession(Session):
    """A deserialized engine and its memory on the device.

    `infer` returns the page-locked buffers themselves, two sets in turn, so an output is valid until the call after the
    next. Copying 8400 x 84 floats each time would take as long as the last layers of a small network. The raw output of
    a device variant is copied when it is read, which must happen before the next call.

    Args:
        trt: NVIDIA's Python module.
        gpu: The CUDA backend; the session owns it and closes it.
        plan: The serialized engine.
        runtime: Name of the runtime.
        graph: Run the network as a CUDA graph, if the backend supports it.
        warnings: See `Session`.

    Raises:
        DeviceError: TensorRT cannot load or prepare the engine.
        InputError: The engine's tensors have no fixed shape or common type, or its input is not one image.
    """

    times_device = True

    def __init__(
        self, trt: Any, gpu: cuda.Cuda, plan: bytes, *, runtime: str, graph: bool, warnings: Tuple[str, ...] = ()
    ):
        self.name, self.warnings = runtime, warnings
        self._gpu, self._ran = gpu, False
        self._graph: Optional[int] = None
        self._log = library.log_of(trt)
        self._engine: Any = None
        self._context: Any = None
        self._runtime: Any = None
        self._input: Optional[np.ndarray] = None
        self._host: List[List[np.ndarray]] = []
        self._calls, self._late = 0, False  # number of inferences; whether the raw output of the last one was copied
        try:
            self._load(trt, plan)
            self._allocate(trt)
            note = self._capture() if graph else ""
            device = gpu.device()
        except BaseException:
            self.close()
            raise
        self.description = f"{library.title(trt)}, {device.name} (SM {device.sm}){note}, {gpu.name}"

    @property
    def device_ms(self) -> Optional[Dict[str, float]]:
        """Times of the last inference from the GPU's clock, {"h2d", "gpu", "d2h"}, ms; None before the first."""
        if not self._ran or self._context is None:
            return None
        pairs = zip(("h2d", "gpu", "d2h"), self._events, self._events[1:])
        times = {name: self._gpu.elapsed_ms(start, end) for name, start, end in pairs}
        if self._late:
            times["d2h"] += self._gpu.elapsed_ms(*self._events[4:])
        return times

    def infer(self, x: np.ndarray) -> Sequence[np.ndarray]:
        """Run the model.

        Returns:
            The outputs, valid until the call after the next; the output `raw` of a device variant must be read before
            the next call.

        Raises:
            InputError: The session is closed, or `x` has another shape or type.
            DeviceError: TensorRT fails.
        """
        if self._context is None or self._input is None:
            raise InputError("session: already closed; open the model again")
        self._check(x)
        np.copyto(self._input, x, casting="unsafe")
        self._host.reverse()
        self._calls, self._late = self._calls + 1, False
        gpu, stream, host = self._gpu, self._stream, self._host[0]
        gpu.record(self._events[0], stream)
        gpu.to_device(self._input_pointer, self._input, stream)
        gpu.record(self._events[1], stream)
        if self._graph is not None:
            gpu.launch(self._graph, stream)
        else:
            self._execute()
        gpu.record(self._events[2], stream)
        for array, pointer in zip(host[: self._copied], self._output_pointers):
            gpu.to_host(array, pointer, stream)
        gpu.record(self._events[3], stream)
        gpu.synchronize(stream)
        self._ran = True
        arrays = [converted(array) for array in host[: self._copied]]
        return arrays if len(arrays) == len(host) else _Outputs(arrays, self._raw(host[-1], self._calls))

    def _raw(self, array: np.ndarray, call: int) -> Callable[[], np.ndarray]:
        """The function that copies the raw output of a call into `array`."""

        def copy() -> np.ndarray:
            if self._context is None or call != self._calls:
                raise InputError("session: the raw output of an earlier inference is gone; read it before the next one")
            gpu, stream = self._gpu, self._stream
            gpu.record(self._events[4], stream)
            gpu.to_host(array, self._output_pointers[-1], stream)
            gpu.record(self._events[5], stream)
            gpu.synchronize(stream)
            self._late = True
            return converted(array)

        return copy

    def close(self) -> None:
        """Free the engine and all memory on the device; a second call has no effect."""
        # Order: context, engine, runtime, and last the memory to which they point.
        self._context = None
        self._engine = None
        self._runtime = None
        # Page-locked memory is freed with its last view, which a caller may still hold.
        self._input, self._host = None, []
        self._gpu.close()

    def _load(self, trt: Any, plan: bytes) -> None:
        self._runtime = trt.Runtime(self._log)
        if hasattr(self._runtime, "engine_host_code_allowed"):
            self._runtime.engine_host_code_allowed = False
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            again = "edgeprune engine --rebuild builds it again"
            raise _NotLoaded(f"{library.title(trt)} cannot load the engine ({self._words()}); {again}")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise DeviceError(f"{library.title(trt)} cannot prepare the engine ({self._words()})")

    def _allocate(self, trt: Any) -> None:
        engine, gpu = self._engine, self._gpu
        inputs: List[Tuple[str, Tuple[int, ...], np.dtype]] = []
        outputs: List[Tuple[str, Tuple[int, ...], np.dtype]] = []
        for i in range(engine.num_io_tensors):
            name = engine.get_tensor_name(i)
            kind = engine.get_tensor_dtype(name).name
            shape = tuple(engine.get_tensor_shape(name))
            check_size(shape, "the model")
            if kind not in _TYPES or any(d < 0 for d in shape):
                raise InputError(
                    f"tensor {name}: unsupported type or shape (found {kind} {shape}, expected a fixed shape)"
                )
            into = inputs if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else outputs
            into.append((name, shape, np.dtype(_TYPES[kind])))
        if len(inputs) != 1 or not is_image(*inputs[0][1:]):
            described = ", ".join(f"{name} {dtype} {shape}" for name, shape, dtype in inputs)
            raise InputError(f"model: wrong inputs (found {described}, expected {AN_IMAGE})")
        self._copied = len(outputs)  # the number of outputs that every inference copies to the host
        if sorted(name for name, _, _ in outputs) == sorted(NAMES):
            outputs.sort(key=lambda tensor: NAMES.index(tensor[0]))
            self._copied -= 1
        self._stream = gpu.stream()
        self._events = [gpu.event() for _ in range(6)]
        pointers = []
        for name, shape, dtype in [*inputs, *outputs]:
            pointers.append(gpu.alloc(int(np.prod(shape)) * dtype.itemsize))
            if not self._context.set_tensor_address(name, pointers[-1]):
                raise DeviceError(f"TensorRT refused the address of tensor {name} ({self._words()})")
        self._input_pointer, self._output_pointers = pointers[0], pointers[1:]
        _, self.input_shape, self.input_type = inputs[0]
        self._input = gpu.pinned(self.input_shape, self.input_type)
        self._host = [[gpu.pinned(shape, dtype) for _, shape, dtype in outputs] for _ in range(2)]

    def _capture(self) -> str:
        """Create the CUDA graph, and return the text for the description. The session also runs without a graph."""
        if not self._gpu.graphs:
            return f", no CUDA graph (not supported by the backend {self._gpu.name})"
        try:
            self._execute()  # the first run finishes TensorRT's deferred work, which a capture forbids
            self._gpu.synchronize(self._stream)
            with self._gpu.capture(self._stream) as captured:
                self._execute()
            self._graph = captured.graph
        except EdgepruneError as error:
            return f", no CUDA graph ({error})"
        return ", CUDA graph"

    def _execute(self) -> None:
        if not self._context.execute_async_v3(self._stream):
            raise DeviceError(f"TensorRT failed while running the model ({self._words()})")

    def _words(self) -> str:
        return str(self._log.errors[-1]) if self._log.errors else "no reason given"


class _Outputs(Sequence[np.ndarray]):
    """The outputs of a device variant, of which the last one is copied from the GPU when it is first read.

    Args:
        arrays: The outputs before the last one.
        fetch: Copies the last one, and returns it.
    """

    def __init__(self, arrays: List[np.ndarray], fetch: Callable[[], np.ndarray]) -> None:
        self._arrays, self._fetch, self._length = arrays, fetch, len(arrays) + 1

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, index: slice) -> List[np.ndarray]: ...

    def __getitem__(self, index: Union[int, slice]) -> Union[np.ndarray, List[np.ndarray]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._length))]
        place = range(self._length)[index]  # raises IndexError, which ends an iteration
        if place == len(self._arrays):
            self._arrays = [*self._arrays, self._fetch()]
        return self._arrays[place]
