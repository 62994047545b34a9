"""A fake of pycuda.driver: the part that edgeprune calls, on top of the fake libcudart.

Names, signatures and exceptions equal those of pycuda 2026.1; test_pycuda.py compares them if it is installed. As in
the real package, a forgotten object frees its resource, nothing works without a current context, and an error is a
subclass of `Error` with only a text ("cuMemAlloc failed: out of memory"). A primary context that is forgotten before it
is detached gives a warning on standard error, and one that is still current at the end aborts the process.
"""

import atexit
import ctypes
import os
import sys
from types import ModuleType, SimpleNamespace

import numpy as np


class Error(Exception):
    pass


class MemoryError(Error):
    pass


class LogicError(Error):
    pass


class LaunchError(Error):
    pass


class RuntimeError(Error):
    pass


_KINDS = {2: MemoryError, 100: RuntimeError, 600: RuntimeError, 719: LaunchError, 999: Error}  # all others: LogicError


def build(library):
    """The module's members, on top of the fake libcudart `library`."""
    library.cudaGetErrorString.restype = ctypes.c_char_p
    contexts = []

    def check(call, code):
        if code:
            words = library.cudaGetErrorString(code).decode()
            raise _KINDS.get(code, LogicError)(f"{call} failed: {words}")

    def do(call, function, *arguments, context=True):
        if context and not contexts:
            raise LogicError(f"{call} failed: invalid device context")
        arguments = [ctypes.c_void_p(a) if isinstance(a, int) else a for a in arguments]
        check(call, getattr(library, function)(*arguments))

    def made(call, function, *arguments, context=True):
        pointer = ctypes.c_void_p()
        do(call, function, ctypes.byref(pointer), *arguments, context=context)
        return pointer.value

    def number(call, function, *arguments):
        value = ctypes.c_int()
        do(call, function, ctypes.byref(value), *arguments, context=False)
        return value.value

    def init(flags=0):
        number("cuInit", "cudaGetDeviceCount")

    def get_version():
        return (12, 6, 0)

    def get_driver_version():
        return number("cuDriverGetVersion", "cudaDriverGetVersion")

    def mem_get_info():
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        do("cuMemGetInfo", "cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def end():
        if contexts:
            print("PyCUDA ERROR: The context stack was not empty upon module cleanup.", file=sys.stderr)
            os.abort()

    atexit.register(end)

    class Context:
        _attached = True

        def push(self):
            contexts.append(self)

        def detach(self):
            self._attached = False

        def __del__(self):
            if self._attached:
                print("PyCUDA WARNING: a clean-up operation failed (dead context maybe?)", file=sys.stderr)

        @staticmethod
        def pop():
            if not contexts:
                raise LogicError("context::pop failed: invalid device context - cannot pop non-current context")
            contexts.pop()

    class Device:
        def __init__(self, number):
            self._number = number

        def name(self):
            name = ctypes.create_string_buffer(256)
            check("cuDeviceGetName", library.cuDeviceGetName(name, 256, self._number))
            return name.value.decode()

        def compute_capability(self):
            return tuple(number("cuDeviceGetAttribute", "cudaDeviceGetAttribute", a, self._number) for a in (75, 76))

        def get_attribute(self, attr):
            return number("cuDeviceGetAttribute", "cudaDeviceGetAttribute", attr.value, self._number)

        def retain_primary_context(self):
            number("cuDevicePrimaryCtxRetain", "cudaDeviceGetAttribute", 75, self._number)
            do("cuDevicePrimaryCtxRetain", "cudaSetDevice", self._number, context=False)
            return Context()

    class Freed:
        """A resource that `free` or the garbage collector frees, in its own context if none is current."""

        def __init__(self, call, function, pointer):
            self._call, self._function, self._pointer = call, function, pointer

        def free(self):
            if self._pointer is None:
                raise LogicError(f"{self._call} failed: invalid resource handle")
            pointer, self._pointer = self._pointer, None
            do(self._call, self._function, pointer, context=False)

        def __del__(self):
            if self._pointer is not None:
                self.free()

    class DeviceAllocation(Freed):
        def __int__(self):
            return self._pointer

    class PagelockedHostAllocation(Freed):
        pass

    def mem_alloc(bytes):
        return DeviceAllocation("cuMemFree", "cudaFree", made("cuMemAlloc", "cudaMalloc", bytes))

    def pagelocked_empty(shape, dtype, order="C", mem_flags=0):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        pointer = made("cuMemHostAlloc", "cudaHostAlloc", size, mem_flags)
        allocation = PagelockedHostAllocation("cuMemFreeHost", "cudaFreeHost", pointer)
        allocation.__array_interface__ = {
            "version": 3,
            "shape": tuple(np.atleast_1d(shape).tolist()),
            "typestr": np.dtype(dtype).str,
            "data": (pointer, False),
        }
        return np.asarray(allocation)

    class Stream:
        def __init__(self, flags=0):
            self.handle = made("cuStreamCreate", "cudaStreamCreateWithFlags", flags)

        def synchronize(self):
            do("cuStreamSynchronize", "cudaStreamSynchronize", self.handle)

        def __del__(self):
            if "handle" in self.__dict__:
                do("cuStreamDestroy", "cudaStreamDestroy", self.handle, context=False)

    class Event:
        def __init__(self, flags=0):
            self._handle = made("cuEventCreate", "cudaEventCreate")

        def record(self, stream=None):
            do("cuEventRecord", "cudaEventRecord", self._handle, stream.handle if stream else 0)
            return self

        def time_since(self, event):
            value = ctypes.c_float()
            do("cuEventElapsedTime", "cudaEventElapsedTime", ctypes.byref(value), event._handle, self._handle)
            return value.value

        def __del__(self):
            if "_handle" in self.__dict__:
                do("cuEventDestroy", "cudaEventDestroy", self._handle, context=False)

    def copy(call, target, source, array, kind, stream):
        do(call, "cudaMemcpyAsync", target, source, array.nbytes, kind, stream.handle if stream else 0)

    def memcpy_htod_async(dest, src, stream=None):
        copy("cuMemcpyHtoDAsync", dest, src.ctypes.data, src, 1, stream)

    def memcpy_dtoh_async(dest, src, stream=None):
        copy("cuMemcpyDtoHAsync", dest.ctypes.data, src, dest, 2, stream)

    device_attribute = SimpleNamespace(
        INTEGRATED=SimpleNamespace(value=18), MULTIPROCESSOR_COUNT=SimpleNamespace(value=16)
    )
    names = {name: thing for name, thing in locals().items() if not name.startswith("_")}
    for hidden in ("library", "check", "do", "made", "number", "copy", "end", "Freed"):
        del names[hidden]
    return {**names, **{kind.__name__: kind for kind in (Error, MemoryError, LogicError, LaunchError, RuntimeError)}}


def install(monkeypatch, library):
    """Make `pycuda.driver` importable. Only the fake has `contexts`, the stack of current contexts."""
    package, driver = ModuleType("pycuda"), ModuleType("pycuda.driver")
    package.VERSION_TEXT, package.driver = "2026.1", driver
    driver.__dict__.update(build(library))
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    return driver
