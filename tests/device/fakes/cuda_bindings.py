"""A fake of NVIDIA's package cuda-python: the part of its runtime API that edgeprune calls, over the fake libcudart.

Signatures and enums equal those of the real package, both as `cuda.cudart` (11.8 to 12.2) and as
`cuda.bindings.runtime` (12.6 to 13.5); test_cuda_python.py compares them if it is installed. As in the real package, an
error is returned and not raised, created objects have their own classes, and an enum argument accepts only members of
the enum (13 is less strict).
"""

import ctypes
import sys
from enum import IntEnum
from types import ModuleType, SimpleNamespace


class cudaError_t(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorStubLibrary = 34
    cudaErrorInsufficientDriver = 35
    cudaErrorDevicesUnavailable = 46
    cudaErrorNoDevice = 100
    cudaErrorInvalidDevice = 101
    cudaErrorInvalidResourceHandle = 400
    cudaErrorIllegalState = 401
    cudaErrorNotReady = 600
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901
    cudaErrorCapturedEvent = 907
    cudaErrorUnknown = 999


class cudaDeviceAttr(IntEnum):
    cudaDevAttrMultiProcessorCount = 16
    cudaDevAttrIntegrated = 18
    cudaDevAttrComputeCapabilityMajor = 75
    cudaDevAttrComputeCapabilityMinor = 76


class cudaMemcpyKind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class cudaStreamCaptureMode(IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1
    cudaStreamCaptureModeRelaxed = 2


ENUMS = (cudaError_t, cudaDeviceAttr, cudaMemcpyKind, cudaStreamCaptureMode)


class Handle:
    """The package's object for a stream, an event or a graph; int() gives the handle."""

    def __init__(self, value):
        self._value = value

    def __int__(self):
        return self._value


def _enum(value, kind):
    if not isinstance(value, kind):
        raise TypeError(f"Argument has incorrect type (expected {kind.__name__}, got {type(value).__name__})")
    return int(value)


def functions(library):
    """The package's functions, on top of the fake libcudart `library`."""

    def plain(function, *arguments):
        arguments = [ctypes.c_void_p(int(a)) if isinstance(a, (int, Handle)) else a for a in arguments]
        return cudaError_t(getattr(library, function)(*arguments))

    def returning(kind, function, *arguments, wrap=lambda value: value, last=False):
        value = kind()
        order = (*arguments, ctypes.byref(value)) if last else (ctypes.byref(value), *arguments)
        code = plain(function, *order)
        return code, None if code else wrap(value.value)

    def cudaGetDeviceCount():
        return returning(ctypes.c_int, "cudaGetDeviceCount")

    def cudaRuntimeGetVersion():
        return returning(ctypes.c_int, "cudaRuntimeGetVersion")

    def cudaDriverGetVersion():
        return returning(ctypes.c_int, "cudaDriverGetVersion")

    def cudaSetDevice(device):
        return (plain("cudaSetDevice", device),)

    def cudaGetLastError():
        return (plain("cudaGetLastError"),)

    def cudaGetErrorString(error):
        library.cudaGetErrorString.restype = ctypes.c_char_p
        return cudaError_t.cudaSuccess, library.cudaGetErrorString(_enum(error, cudaError_t))

    def cudaDeviceGetAttribute(attr, device):
        return returning(ctypes.c_int, "cudaDeviceGetAttribute", _enum(attr, cudaDeviceAttr), device)

    def cudaGetDeviceProperties(device):
        name = ctypes.create_string_buffer(256)
        code = cudaError_t(library.fake_leave_error(library.cuDeviceGetName(name, 256, device)))
        return code, None if code else SimpleNamespace(name=name.raw)

    def cudaMemGetInfo():
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        code = plain("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return code, free.value, total.value

    def cudaMalloc(size):
        return returning(ctypes.c_void_p, "cudaMalloc", size)

    def cudaFree(devPtr):
        return (plain("cudaFree", devPtr),)

    def cudaHostAlloc(size, flags):
        return returning(ctypes.c_void_p, "cudaHostAlloc", size, flags)

    def cudaFreeHost(ptr):
        return (plain("cudaFreeHost", ptr),)

    def cudaMemcpyAsync(dst, src, count, kind, stream):
        return (plain("cudaMemcpyAsync", dst, src, count, _enum(kind, cudaMemcpyKind), stream),)

    def cudaStreamCreateWithFlags(flags):
        return returning(ctypes.c_void_p, "cudaStreamCreateWithFlags", flags, wrap=Handle)

    def cudaStreamDestroy(stream):
        return (plain("cudaStreamDestroy", stream),)

    def cudaStreamSynchronize(stream):
        return (plain("cudaStreamSynchronize", stream),)

    def cudaEventCreate():
        return returning(ctypes.c_void_p, "cudaEventCreate", wrap=Handle)

    def cudaEventDestroy(event):
        return (plain("cudaEventDestroy", event),)

    def cudaEventRecord(event, stream):
        return (plain("cudaEventRecord", event, stream),)

    def cudaEventElapsedTime(start, end):
        return returning(ctypes.c_float, "cudaEventElapsedTime", start, end)

    def cudaStreamBeginCapture(stream, mode):
        return (plain("cudaStreamBeginCapture", stream, _enum(mode, cudaStreamCaptureMode)),)

    def cudaStreamEndCapture(stream):
        return returning(ctypes.c_void_p, "cudaStreamEndCapture", stream, wrap=Handle, last=True)

    def cudaGraphInstantiateWithFlags(graph, flags):
        return returning(ctypes.c_void_p, "cudaGraphInstantiateWithFlags", graph, flags, wrap=Handle)

    def cudaGraphDestroy(graph):
        return (plain("cudaGraphDestroy", graph),)

    def cudaGraphLaunch(graphExec, stream):
        return (plain("cudaGraphLaunch", graphExec, stream),)

    def cudaGraphExecDestroy(graphExec):
        return (plain("cudaGraphExecDestroy", graphExec),)

    return {name: function for name, function in locals().items() if name.startswith("cuda")}


def install(monkeypatch, library, name="cuda.bindings.runtime"):
    """Make `name` importable: "cuda.bindings.runtime", or "cuda.cudart" as up to 12.2. A real package is hidden."""
    for known in [known for known in sys.modules if known.split(".")[0] == "cuda"]:
        monkeypatch.delitem(sys.modules, known)
    parent = None
    for part in name.split("."):
        module = ModuleType(f"{parent.__name__}.{part}" if parent else part)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        if parent:
            setattr(parent, part, module)
        parent = module
    parent.__dict__.update(functions(library), **{enum.__name__: enum for enum in ENUMS})
