"""A FAKE of the `tensorrt` module of one release, made from the recorded API of the real one (record_tensorrt.py).

It has the classes, methods, properties and enum members of that release and no others: anything else is an
AttributeError, as with the real module, and existing members that the fake does not implement are a
NotImplementedError. It enforces the requirements of the real module if they are documented or were observed (explicit
batch for the ONNX parser of 8, no precision flags on strongly typed networks, INT8 for Q/DQ on weakly typed ones). It
does not fuse, time or optimize anything: its "plan" holds the ONNX bytes and the settings after a magic, and its
execution context runs them with ONNX Runtime, between the "device pointers" of the fake libcudart and in the order of
its streams. It proves that the calls are correct, not the speed, and not that NVIDIA's builder accepts a file.

    FAKE_TENSORRT=10.3.0      the release, for processes that import `tensorrt` from the folder `modules`
    FAKE_TENSORRT_BUILD=…     segv, kill, hang, exit, refuse, memory: the builder's behaviour instead of building;
                              disobey: builds only if constraints are preferred; late: crashes at the end of
                              the process, after a successful build
    FAKE_TENSORRT_LOG=FILE    one line of JSON per build
"""

from __future__ import annotations

import atexit
import ctypes
import enum
import json
import os
import signal
import sys
import time
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
MAGIC = b"FAKE TENSORRT PLAN\n"
TIMING = b"FAKE TIMING CACHE "
#: Every recorded release, oldest first. "rtx" is TensorRT for RTX.
RELEASES = ("8.5.2", "8.6.1", "10.3.0", "10.12.0.36", "10.13.3.9", "10.16.1.11", "11.4.0.106")
RTX = "rtx"

# The FakeCudart that receives executions (`stream`, function); set by a test.
cudart = None


def surface(release: str) -> dict:
    """The recorded API of a release."""
    name = "tensorrt_rtx-1.7.1.116" if release == RTX else f"tensorrt-{release}"
    return json.loads((HERE / f"{name}.json").read_text())


def module(release: str):
    """The fake module."""
    recorded = surface(release)
    name = "tensorrt_rtx" if release == RTX else "tensorrt"
    trt = types.ModuleType(name, f"A fake, from {recorded['source']}")
    trt.__version__ = recorded["version"]
    trt.__spec__ = ModuleSpec(name, None)
    for kind, members in recorded["enums"].items():
        setattr(trt, kind, enum.IntEnum(kind, members))
    for kind, members in recorded["classes"].items():
        setattr(trt, kind, _limited(kind, members, trt))
    return trt


def _limited(name, members, trt):
    """The implementation below, reduced to the recorded members."""
    implementation = globals()["_" + name]
    body = {k: v for k, v in vars(implementation).items() if k.startswith("_") or k in members}
    body.update({k: v for k, v in vars(implementation).items() if k == "Severity" or k.isupper()})  # of the logger
    body.pop("__dict__", None)
    body.pop("__weakref__", None)
    for member in members:
        if not member.startswith("__") and member not in body:
            body[member] = property(_missing(name, member))
    if "__call__" not in body and not issubclass(implementation, (bytes, str)):
        body["__setattr__"] = _strict
    body["_trt"] = trt
    bases = (trt.ILogger,) if name == "Logger" else implementation.__bases__
    kind = type(name, bases, body)
    kind._kind = kind
    return kind


def _missing(name, member):
    def use(self):
        raise NotImplementedError(f"the fake does not implement {name}.{member}")

    return use


def _strict(self, name, value):
    # Only a subclass written in Python may have more attributes than the bound class.
    if type(self) is self._kind and not name.startswith("_") and not hasattr(type(self), name):
        raise AttributeError(f"'tensorrt.{type(self).__name__}' object has no attribute '{name}'")
    object.__setattr__(self, name, value)


class Refused(Exception):
    """An error of the parser or the builder that will be logged."""


# ---- the part of ONNX that the fake reads ----


def fields(data: bytes):
    """(field number, value) of a protobuf message: int for varints, bytes for length-delimited fields."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
        else:
            size = varint() if key & 7 == 2 else {1: 8, 5: 4}[key & 7]
            if at + size > len(data):
                raise ValueError("truncated")
            yield key >> 3, data[at : at + size]
            at += size


def all_of(data, number):
    """All values of one field."""
    return [value for field, value in fields(data) if field == number]


_ONNX_TYPES = {1: "FLOAT", 2: "UINT8", 3: "INT8", 6: "INT32", 7: "INT64", 9: "BOOL", 10: "HALF"}
_NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT32": np.int32, "INT8": np.int8, "UINT8": np.uint8}


class Graph:
    """Nodes, types and shapes of an ONNX file; types follow the first input, except for Cast and Q/DQ."""

    def __init__(self, data: bytes):
        (graph,) = all_of(data, 7)
        opsets = {b"".join(all_of(o, 1)): max(all_of(o, 2), default=1) for o in all_of(data, 8)}
        self.opset = opsets[b""]
        self.types, self.inputs, self.outputs, self.nodes = {}, [], [], []
        for tensor in all_of(graph, 5):
            self.types[all_of(tensor, 8)[0].decode()] = _ONNX_TYPES[all_of(tensor, 2)[0]]
        for number, into in ((11, self.inputs), (12, self.outputs)):
            for info in all_of(graph, number):
                (kind,) = all_of(all_of(info, 2)[0], 1)
                shape = tuple((all_of(d, 1) or [-1])[0] for d in all_of(all_of(kind, 2)[0], 1))
                into.append((all_of(info, 1)[0].decode(), _ONNX_TYPES[all_of(kind, 1)[0]], shape))
        self.types.update({name: kind for name, kind, _ in self.inputs})
        for node in all_of(graph, 1):
            read, write = ([v.decode() for v in all_of(node, n)] for n in (1, 2))
            name, operator = ((all_of(node, n) or [b""])[0].decode() for n in (3, 4))
            kind = self.types.get(read[0], "FLOAT")
            if operator == "Cast":
                (to,) = (all_of(a, 3)[0] for a in all_of(node, 5) if all_of(a, 1) == [b"to"])
                kind = _ONNX_TYPES[to]
            elif operator == "QuantizeLinear":
                kind = "INT8"
            elif operator == "DequantizeLinear":
                kind = self.types[read[1]]
            self.types.update(dict.fromkeys(write, kind))
            if operator == "TopK":
                self.types[write[1]] = "INT64"
            self.nodes.append((name, operator, read, write))


_LAYERS = {
    "Cast": "CAST",
    "QuantizeLinear": "QUANTIZE",
    "DequantizeLinear": "DEQUANTIZE",
    "ReduceMean": "REDUCE",
    "Mul": "ELEMENTWISE",
    "Add": "ELEMENTWISE",
    "Div": "ELEMENTWISE",
    "Slice": "SLICE",
    "ReduceMax": "REDUCE",
    "TopK": "TOPK",
    "Reshape": "SHUFFLE",
    "Gather": "GATHER",
}


# ---- the classes, each reduced to the members of its release ----


class _ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

    def __init__(self):
        pass

    def log(self, severity, msg):
        raise NotImplementedError


class _Logger(_ILogger):
    def __init__(self, min_severity=_ILogger.Severity.WARNING):
        self._least = min_severity

    def log(self, severity, msg):
        if severity <= self._least:
            print(msg)


def _demand(value, kind, what):
    if not isinstance(value, kind):
        raise TypeError(f"{what}: incompatible function arguments: {value!r}")


class _Builder:
    def __init__(self, logger):
        _demand(logger, self._trt.ILogger, "Builder")
        self._log = logger

    def create_network(self, flags=0):
        known = self._trt.NetworkDefinitionCreationFlag.__members__
        if flags & ~sum(1 << value for value in set(map(int, known.values()))):
            self._log.log(self._log.ERROR, f"createNetworkV2: unknown flags {flags}")
            return None
        network = self._trt.INetworkDefinition()
        asked = {name for name, value in known.items() if flags >> int(value) & 1}
        # Without precision flags, every network is strongly typed.
        network._typed = "STRONGLY_TYPED" in asked or not hasattr(self._trt.BuilderFlag, "FP16")
        network._explicit = "EXPLICIT_BATCH" in asked or "STRONGLY_TYPED" in known
        return network

    def create_builder_config(self):
        return self._trt.IBuilderConfig()

    def build_serialized_network(self, network, config):
        _demand(network, self._trt.INetworkDefinition, "build_serialized_network")
        _demand(config, self._trt.IBuilderConfig, "build_serialized_network")
        config._log = self._log
        try:
            _misbehave(os.environ.get("FAKE_TENSORRT_BUILD"))
            flags = config._names()
            self._check(network, flags)
            if hasattr(config, "progress_monitor"):
                _report(config._monitor)
        except Refused as error:
            self._log.log(self._log.ERROR, f"IBuilder::buildSerializedNetwork: {error}")
            return None
        self._log.log(self._log.WARNING, "Functionality provided through a fake.\nTwo lines.")
        kept = sorted(layer.name for layer in network._layers if layer._precision is not None)
        built = {
            "release": self._trt.__version__,
            "typed": network._typed,
            "flags": sorted(flags),
            "pools": {pool.name: size for pool, size in config._pools.items()},
            "fp32": kept,
            "timed": "cached" if config._cache and config._cache._content else "fresh",
            "compute": [c.name for c in getattr(config, "_computes", [])],
        }
        if config._cache:
            config._cache._content = TIMING + self._trt.__version__.encode()
        if os.environ.get("FAKE_TENSORRT_LOG"):
            with open(os.environ["FAKE_TENSORRT_LOG"], "a") as stream:
                stream.write(json.dumps(built) + "\n")
        return self._trt.IHostMemory(MAGIC + json.dumps(built).encode() + b"\n" + network._onnx)

    def _check(self, network, flags):
        if network._onnx is None:
            raise Refused("the network is empty")
        types_of = {kind for layer in network._layers for kind in layer._out}
        if network._typed:
            if flags & {"FP16", "INT8", "BF16", "FP8"}:
                raise Refused("API Usage Error (precision flags are not allowed on a strongly typed network)")
            if network._misused:
                raise Refused("API Usage Error (layer precision is not allowed on a strongly typed network)")
        else:
            if "INT8" in types_of and "INT8" not in flags:
                raise Refused("API Usage Error (Q/DQ layers need the INT8 builder flag)")
            if "HALF" in types_of and "FP16" not in flags:
                raise Refused("API Usage Error (FP16 tensors need the FP16 builder flag)")
            constrained = [layer.name for layer in network._layers if layer._precision is not None]
            if constrained and not flags & {"OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS"}:
                raise Refused(f"the precision of {constrained[0]} would be ignored")
            if os.environ.get("FAKE_TENSORRT_BUILD") == "disobey" and "OBEY_PRECISION_CONSTRAINTS" in flags:
                raise Refused(f"Error Code 10: Could not find any implementation for node {constrained[0]}.")


def _misbehave(how):
    if how == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "hang":
        time.sleep(600)
    elif how == "exit":
        sys.stderr.write("something\nlibfoo.so: cannot open shared object file\n")
        os._exit(3)
    elif how == "late":
        atexit.register(os.kill, os.getpid(), signal.SIGSEGV)
    elif how == "refuse":
        raise Refused("Error Code 10: Could not find any implementation for node /model.1/Mul.")
    elif how == "memory":
        raise Refused("Error Code 1: Cuda Runtime (out of memory)")


def _report(monitor):
    if monitor is None:
        return
    monitor.phase_start("Building engine", None, 2)
    monitor.phase_start("Timing tactics", "Building engine", 2)
    for step in range(2):
        if not monitor.step_complete("Timing tactics", step):
            raise Refused("cancelled")
    monitor.phase_finish("Timing tactics")
    for step in range(2):
        monitor.step_complete("Building engine", step)
    monitor.phase_finish("Building engine")


class _IBuilderConfig:
    def __init__(self):
        self._flags = 1 << int(self._trt.BuilderFlag.TF32)  # on by default, as in the real module
        self._pools, self._cache, self._monitor, self._computes, self._log = {}, None, None, [], None

    def _names(self):
        members = self._trt.BuilderFlag.__members__
        return {name for name, value in members.items() if self._flags >> int(value) & 1}

    def set_flag(self, flag):
        _demand(flag, self._trt.BuilderFlag, "set_flag")
        self._flags |= 1 << int(flag)

    def clear_flag(self, flag):
        _demand(flag, self._trt.BuilderFlag, "clear_flag")
        self._flags &= ~(1 << int(flag))

    def get_flag(self, flag):
        return bool(self._flags >> int(flag) & 1)

    def set_memory_pool_limit(self, pool, pool_size):
        _demand(pool, self._trt.MemoryPoolType, "set_memory_pool_limit")
        self._pools[pool] = int(pool_size)

    def create_timing_cache(self, serialized_timing_cache):
        content = bytes(serialized_timing_cache)
        if content and not content.startswith(TIMING):
            return None
        cache = self._trt.ITimingCache()
        cache._content = content
        return cache

    def set_timing_cache(self, cache, ignore_mismatch):
        if cache._content and cache._content != TIMING + self._trt.__version__.encode() and not ignore_mismatch:
            return False
        self._cache = cache
        return True

    def get_timing_cache(self):
        return self._cache

    @property
    def progress_monitor(self):
        return self._monitor

    @progress_monitor.setter
    def progress_monitor(self, monitor):
        _demand(monitor, self._trt.IProgressMonitor, "progress_monitor")
        self._monitor = monitor

    @property
    def num_compute_capabilities(self):
        return len(self._computes)

    @num_compute_capabilities.setter
    def num_compute_capabilities(self, count):
        self._computes = [self._trt.ComputeCapability.NONE] * count

    def set_compute_capability(self, compute_capability, index):
        self._computes[index] = compute_capability
        return True


class _INetworkDefinition:
    def __init__(self):
        self._onnx, self._layers, self._misused, self._typed, self._explicit = None, [], False, False, False

    @property
    def num_layers(self):
        return len(self._layers)

    def get_layer(self, index):
        return self._layers[index]


class _ILayer:
    def __init__(self):
        self._network, self._precision, self._types = None, None, {}

    @property
    def name(self):
        return self._name

    @property
    def type(self):
        return self._type

    @property
    def num_inputs(self):
        return len(self._in)

    @property
    def num_outputs(self):
        return len(self._out)

    def get_input(self, index):
        return self._tensor(self._in[index])

    def get_output(self, index):
        return self._tensor(self._out[index])

    def _tensor(self, kind):
        tensor = self._trt.ITensor()
        tensor._dtype = self._trt.DataType[kind]
        return tensor

    @property
    def precision(self):
        return self._precision or self._trt.DataType.FLOAT

    @precision.setter
    def precision(self, kind):
        _demand(kind, self._trt.DataType, "precision")
        self._network._misused |= self._network._typed
        self._precision = kind

    def set_output_type(self, index, dtype):
        if self._type.name == "CAST":
            raise RuntimeError("castLayer.cpp::validate: the output type of a Cast is its own")
        self._types[index] = dtype


class _ITensor:
    def __init__(self):
        self._dtype = None

    @property
    def dtype(self):
        return self._dtype


class _OnnxParser:
    def __init__(self, network, logger):
        _demand(network, self._trt.INetworkDefinition, "OnnxParser")
        _demand(logger, self._trt.ILogger, "OnnxParser")
        self._network, self._log, self._errors = network, logger, []

    @property
    def num_errors(self):
        return len(self._errors)

    def get_error(self, index):
        return self._errors[index]

    def parse(self, model, path=None):
        data = bytes(model)
        if not self._network._explicit:
            return self._fail("UNSUPPORTED_GRAPH", "This version of the ONNX parser only supports explicit batch.")
        try:
            graph = Graph(data)
        except (ValueError, IndexError, KeyError):
            return self._fail("MODEL_DESERIALIZE_FAILED", "Failed to parse ONNX model.\nIs it whole?")
        kinds = self._trt.DataType.__members__
        for i, (name, operator, read, write) in enumerate(graph.nodes):
            # The parsers of TensorRT 8 stop at opset 17.
            if operator == "DequantizeLinear" and graph.opset >= 19 and "STRONGLY_TYPED" not in self._creation():
                text = "Assertion failed: scale must be FLOAT"
                return self._fail("UNSUPPORTED_NODE", text, i, name, operator)
            if operator not in _LAYERS:
                text = f"No importer registered for op: {operator}. Attempting to import as plugin."
                return self._fail("UNSUPPORTED_NODE", text, i, name, operator)
            # TensorRT for RTX 1.7 accepts a uint8 image as the input of a Cast, and nothing else.
            pixels = operator == "Cast" and read[0] in {tensor for tensor, _, _ in graph.inputs}
            if any(graph.types.get(tensor) == "UINT8" for tensor in (*read, *write)) and not pixels:
                return self._fail("INVALID_NODE", "unsupported input type of UINT8", i, name, operator)
            layer = self._trt.ILayer()
            layer._network, layer._type = self._network, self._trt.LayerType[_LAYERS[operator]]
            taken = {other._name for other in self._network._layers}
            layer._name = name if name not in taken else f"{name}_{i}"
            layer._in = [k for k in (graph.types[tensor] for tensor in read) if k in kinds]
            layer._out = [graph.types[tensor] for tensor in write]
            self._network._layers.append(layer)
        self._network._onnx = data
        return True

    def _creation(self):
        return self._trt.NetworkDefinitionCreationFlag.__members__

    def _fail(self, code, text, node=-1, name="", operator=""):
        error = self._trt.ParserError()
        error._code, error._desc, error._node, error._name, error._operator = code, text, node, name, operator
        self._errors.append(error)
        self._log.log(self._log.ERROR, text)
        return False


class _ParserError:
    def __init__(self):
        self._code = self._desc = self._name = self._operator = ""

    def code(self):
        return self._trt.ErrorCode[self._code]

    def desc(self):
        return self._desc

    def node(self):
        return self._node

    def node_name(self):
        return self._name

    def node_operator(self):
        return self._operator


class _Runtime:
    def __init__(self, logger):
        _demand(logger, self._trt.ILogger, "Runtime")
        self._log, self._host_code = logger, False

    @property
    def engine_host_code_allowed(self):
        return self._host_code

    @engine_host_code_allowed.setter
    def engine_host_code_allowed(self, allowed):
        self._host_code = bool(allowed)

    def deserialize_cuda_engine(self, serialized_engine):
        import onnxruntime

        plan = bytes(serialized_engine)
        header, _, model = plan[len(MAGIC) :].partition(b"\n")
        if not plan.startswith(MAGIC) or json.loads(header)["release"] != self._trt.__version__:
            self._log.log(self._log.ERROR, "The engine plan file is not compatible with this version of TensorRT")
            return None
        engine = self._trt.ICudaEngine()
        engine._log, engine._graph = self._log, Graph(model)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        engine._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return engine


class _ICudaEngine:
    @property
    def num_io_tensors(self):
        return len(self._io())

    def get_tensor_name(self, index):
        return self._io()[index][0]

    def get_tensor_mode(self, name):
        mode = "INPUT" if name in {tensor[0] for tensor in self._graph.inputs} else "OUTPUT"
        return self._trt.TensorIOMode[mode]

    def get_tensor_dtype(self, name):
        return self._trt.DataType[self._find(name)[1]]

    def get_tensor_shape(self, name):
        return self._find(name)[2]

    def create_execution_context(self):
        context = self._trt.IExecutionContext()
        context._engine, context._addresses = self, {}
        return context

    def _io(self):
        return [*self._graph.inputs, *self._graph.outputs]

    def _find(self, name):
        return next(tensor for tensor in self._io() if tensor[0] == name)


class _IExecutionContext:
    def set_tensor_address(self, name, memory):
        if name not in {tensor[0] for tensor in self._engine._io()}:
            return False
        self._addresses[name] = int(memory)
        return True

    def execute_async_v3(self, stream_handle):
        missing = [name for name, _, _ in self._engine._io() if not self._addresses.get(name)]
        if missing:
            self._engine._log.log(
                self._engine._log.ERROR, f"enqueueV3: Address is not set for tensor {missing[0]}. Call setTensorAddress"
            )
            return False
        cudart.record(stream_handle, self._run)
        return True

    def _run(self):
        feed = {}
        for name, kind, shape in self._engine._graph.inputs:
            size = int(np.prod(shape)) * np.dtype(_NUMPY[kind]).itemsize
            feed[name] = np.frombuffer(ctypes.string_at(self._addresses[name], size), _NUMPY[kind]).reshape(shape)
        outputs = self._engine._session.run(None, feed)
        for (name, _, _), array in zip(self._engine._graph.outputs, outputs):
            array = np.ascontiguousarray(array)
            ctypes.memmove(self._addresses[name], array.ctypes.data, array.nbytes)


class _IProgressMonitor:
    def __init__(self):
        pass


class _ITimingCache:
    def __init__(self):
        self._content = b""

    def serialize(self):
        return self._trt.IHostMemory(self._content)


class _IHostMemory(bytes):
    @property
    def nbytes(self):
        return len(self)
