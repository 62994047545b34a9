"""A FAKE onnxruntime that obeys its "model": b"hang at frame 3", b"crash while loading", b"spin for 4 s" …

It has only the members that `edgeprune_device.runtimes.ort` uses. Models are such texts instead of ONNX.
"""

import os
import re
import signal
import threading
import time

import numpy as np

__version__ = "0.0-fake"
ANCHORS = 84


class SessionOptions:
    def add_session_config_entry(self, key, value):
        pass


class _Tensor:
    name, type, shape = "images", "tensor(float)", [1, 3, 64, 64]


class InferenceSession:
    def __init__(self, model, options, providers=(), **_):
        self._words = bytes(model).decode()
        self._frames = 0
        self._act("while loading")

    def get_providers(self):
        return ["CPUExecutionProvider"]

    def get_inputs(self):
        return [_Tensor]

    def get_outputs(self):
        return []

    def run(self, names, inputs):
        self._act(f"at frame {self._frames}")
        self._frames += 1
        out = np.zeros((1, 6, ANCHORS), np.float32)
        out[0, :, 0] = 20, 20, 10, 10, 0.75, 0  # one box of class 0
        return [out]

    def _act(self, when):
        match = re.search(rf"(\w+) {when}\b", self._words)
        what = match[1] if match else ""
        if what == "hang":
            threading.Event().wait()  # like a driver that waits for an interrupt that never comes
        elif what == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif what == "fail":
            raise RuntimeError("CUDA error 700: an illegal memory access was encountered")
        elif what == "spin":
            until = time.monotonic() + 4
            while time.monotonic() < until:
                pass
