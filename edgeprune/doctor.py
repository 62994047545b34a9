"""The checks that `edgeprune doctor` adds to those of the device package on a machine that builds bundles."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable

from edgeprune_device import interpreter
from edgeprune_device.doctor import Check, library

__all__ = ["CHECKS"]

_SLOW_S = 180.0


def torch() -> Check:
    """Check that torch and torchvision import together, which needs matching builds."""
    script = "import torch, torchvision; print(torch.__version__, torchvision.__version__, torch.cuda.is_available())"
    try:
        done = subprocess.run(interpreter.command(script), capture_output=True, text=True, timeout=_SLOW_S)
    except subprocess.TimeoutExpired:
        return Check("torch", "missing", f"import takes more than {_SLOW_S:.0f} s")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        advice = "torch and torchvision must be matching builds: pip install --force-reinstall torch torchvision"
        return Check("torch", "missing", last[:200], advice)
    version, vision, gpu = done.stdout.split()
    return Check("torch", "ok", f"{version}, torchvision {vision}, {'with' if gpu == 'True' else 'no'} GPU")


def ultralytics() -> Check:
    """Check for Ultralytics, which trains and reads checkpoints."""
    return library("Ultralytics", "ultralytics", "pip install ultralytics")


def onnx() -> Check:
    """Check for onnx, which reads and writes ONNX files."""
    return library("onnx", "onnx", "pip install onnx")


def onnxsim() -> Check:
    """Check for onnxsim, which simplifies exported ONNX files."""
    return library("onnxsim", "onnxsim", "pip install onnxsim")


def tensorrt_rtx() -> Check:
    """Check for TensorRT for RTX, whose ONNX parser and builder need no GPU."""
    advice = "pip install tensorrt-rtx-cu13 (x86-64 Linux); its ONNX parser checks the files without a GPU"
    return library("TensorRT for RTX", "tensorrt_rtx", advice, "note")


def ssh() -> Check:
    """Check for the ssh client, which reaches the drones."""
    path = shutil.which("ssh")
    if path is None:
        return Check("ssh", "note", "not found", "needed by setup and collect over SSH: apt install openssh-client")
    version = subprocess.run([path, "-V"], capture_output=True, text=True).stderr.strip()
    return Check("ssh", "ok", version or path)


def drones() -> Check:
    """List the drones whose signed reports this host accepts."""
    from edgeprune_device.trust import keys

    names = sorted(name for name, _ in keys.enrolled().values())
    advice = "" if names else "edgeprune setup user@drone enrols one"
    return Check("enrolled drones", "ok" if names else "note", ", ".join(names) or "none", advice)


CHECKS: list[Callable[[], Check]] = [torch, ultralytics, onnx, onnxsim, tensorrt_rtx, ssh, drones]
