"""A failed CUDA call in one line: the call, CUDA's name and message, and a remedy."""

from __future__ import annotations

from edgeprune_device.errors import DeviceError

__all__ = ["ABSENT", "USUAL", "CudaFailure"]

# {CUDA's number: (its message, the remedy)}. Numbers and messages are the same in the runtime API (since CUDA 10.1)
# and in the driver API.
USUAL = {
    2: ("out of memory", "free memory, or use a smaller model, image or workspace"),
    34: ("CUDA driver is a stub library", "remove CUDA's stubs folder from LD_LIBRARY_PATH"),
    35: (
        "CUDA driver version is insufficient for CUDA runtime version",
        "install or update the NVIDIA driver, or use an older CUDA",
    ),
    46: (
        "CUDA-capable device(s) is/are busy or unavailable",
        "another process uses the GPU exclusively; end that process",
    ),
    100: (
        "no CUDA-capable device is detected",
        "check the GPU's nodes in /dev, the container's options and CUDA_VISIBLE_DEVICES",
    ),
    600: ("device not ready", "synchronize the stream first"),
    700: ("an illegal memory access was encountered", "this process can no longer use the GPU; restart the program"),
    719: ("unspecified launch failure", "this process can no longer use the GPU; restart the program"),
    802: ("system not yet initialized", "the driver is still starting; try again in a moment"),
    803: (
        "system has unsupported display driver / cuda driver combination",
        "the versions of the driver's library and kernel module differ; restart the machine, or reinstall the driver",
    ),
    804: (
        "forward compatibility was attempted on non supported HW",
        "remove CUDA's compat folder from LD_LIBRARY_PATH",
    ),
}
# The errors of a machine without a usable GPU or driver; all others mean that the GPU fails.
ABSENT = frozenset({34, 35, 100})


class CudaFailure(DeviceError):
    """A failed CUDA call, e.g. "cudaMalloc failed: cudaErrorMemoryAllocation, out of memory (free memory, …)".

    Args:
        call: Name of the call.
        code: CUDA's number of the error, 0 if the library does not give it.
        name: CUDA's name of the error.
        words: CUDA's message.

    Attributes:
        code: See above.
        why: The message and the remedy, without the call.
    """

    def __init__(self, call: str, code: int, name: str, words: str) -> None:
        self.code = code
        self.why = words + (f" ({USUAL[code][1]})" if code in USUAL else "")
        super().__init__(f"{call} failed: {name}, {self.why}")
