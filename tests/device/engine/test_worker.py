"""Tests of the process that builds, with the fakes of TensorRT: its memory, its end and its output."""

import os
import subprocess
import sys
import time

from edgeprune_device.engine import Request, process
from fakes import fake_tensorrt as fake
from fakes import models


def test_process_builds_with_the_free_memory(fake_tensorrt, builds, monkeypatch):
    fake_tensorrt("10.3.0")
    seen = []
    request = Request(models.detector("fp16"), "fp16", cuda="ctypes")
    engine = process.build(request, progress=lambda share, what: seen.append(what))
    assert engine.size_bytes == len(engine.plan) and engine.onnx_sha256 == request.onnx_sha256
    assert "Building engine" in seen
    (built,) = builds()
    # The fake GPU is integrated, like a Jetson's, so this machine's available memory counts.
    assert built["pools"]["WORKSPACE"] == engine.workspace_bytes >= 128 << 20
    engine = process.build(Request(models.detector(), "fp32", cuda="ctypes", workspace_bytes=300 << 20))
    assert builds()[1]["pools"]["WORKSPACE"] == engine.workspace_bytes == 300 << 20


CALLER = """
from edgeprune_device.engine import Request, process
import pathlib, subprocess, sys
start = subprocess.Popen
def tell(*given, **more):
    worker = start(*given, **more)
    print(worker.pid, flush=True)
    return worker
process.subprocess.Popen = tell
process.build(Request(pathlib.Path(sys.argv[1]), "fp32", cuda="ctypes"))
"""


def test_killed_caller_leaves_no_builder(fake_tensorrt, monkeypatch, tmp_path):
    fake_tensorrt("10.3.0")
    monkeypatch.setenv("FAKE_TENSORRT_BUILD", "hang")
    (tmp_path / "m.onnx").write_bytes(models.detector())
    command = [sys.executable, "-c", CALLER, str(tmp_path / "m.onnx")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as caller:
        worker = int(caller.stdout.readline())
        os.kill(worker, 0)  # the process exists
        caller.kill()
    deadline = time.monotonic() + 30
    while running(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(worker)


def running(pid):
    """Whether a process runs and is not a zombie, which a container may never reap."""
    try:
        with open(f"/proc/{pid}/stat") as stream:
            return stream.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_output_of_the_library_does_not_disturb_the_messages(fake_tensorrt, tmp_path, monkeypatch, capfd):
    fake_tensorrt("10.3.0")
    noisy = tmp_path / "noisy"
    noisy.mkdir()
    (noisy / "tensorrt.py").write_text(
        f"import os, sys\nsys.path.append({str(fake.HERE)!r})\nos.write(1, b'hello from C\\n{{}}\\n')\n"
        "import fake_tensorrt\nsys.modules[__name__] = fake_tensorrt.module('10.3.0')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(noisy))
    assert process.build(Request(models.detector(), "fp32", cuda="ctypes")).size_bytes > 0
    assert capfd.readouterr() == ("", "")
