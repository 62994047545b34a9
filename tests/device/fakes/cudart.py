"""A fake libcudart, compiled from cudart.c beside this file, which describes what it imitates."""

import ctypes
import os
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("cudart.c")
HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def compile_cudart(folder, *options):
    """Compile the fake library with gcc into `folder`, as libcudart.so.12 and libcuda.so.1."""
    library = folder / "libcudart.so.12"
    command = ["gcc", "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*command, *options, "-o", str(library), str(SOURCE)], check=True)
    os.symlink(library.name, str(folder / "libcuda.so.1"))
    return library


class FakeCudart:
    """The test's handle of the library that the backend under test has loaded from `path`."""

    def __init__(self, path):
        self.path = path
        self.library = ctypes.CDLL(str(path))
        self.library.fake_fail.argtypes = [ctypes.c_char_p, ctypes.c_int]
        self.library.fake_limit.argtypes = [ctypes.c_size_t]
        self.library.fake_live.argtypes = [ctypes.c_char_p]
        self.library.fake_record_host_function.argtypes = [ctypes.c_void_p, HOST_FUNCTION, ctypes.c_void_p]
        self._recorded = []  # a graph may call them again until `forget`
        self._errors = []

    def live(self):
        """The number of live objects of each kind, without zeros, e.g. {"memory": 2, "streams": 1}."""
        kinds = ("memory", "pinned", "streams", "events", "graphs", "executables")
        counts = {kind: self.library.fake_live(kind.encode()) for kind in kinds}
        return {kind: count for kind, count in counts.items() if count}

    def fail(self, function, code):
        """Let `function` return the error `code` from now on; 0: no error."""
        self.library.fake_fail(function.encode(), code)

    def limit(self, size_bytes):
        """Set the size of device and pinned memory together, initially 1 GiB."""
        self.library.fake_limit(size_bytes)

    def devices(self, count):
        """Set the number of GPUs, initially 1."""
        self.library.fake_devices(count)

    def driver(self, version):
        """Set the CUDA version of the driver, initially 12040; 0: no driver is installed."""
        self.library.fake_driver(version)

    def defer(self, on=True):
        """Let streams do nothing until they are synchronized, which reveals a caller that forgets it."""
        self.library.fake_defer(int(on))

    def last_error(self):
        """The error that cudaGetLastError would return, without clearing it."""
        return self.library.fake_last_error()

    def record(self, stream, function):
        """Put a Python function without arguments on `stream`; during a capture the graph records it."""

        def call(argument):
            try:
                function()
            except BaseException as error:  # ctypes would print it and continue
                self._errors.append(error)

        callback = HOST_FUNCTION(call)
        self._recorded.append(callback)
        code = self.library.fake_record_host_function(stream, callback, None)
        assert code == 0, f"the fake libcudart refused a host function: {code}"
        self.check()

    def check(self):
        """Raise the error of a recorded function."""
        if self._errors:
            raise self._errors.pop(0)

    def forget(self):
        """Release the recorded functions and the arrays that they use; no graph may call them any more."""
        self._recorded.clear()
