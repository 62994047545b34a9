"""The device that PyTorch computes on: the CPU, one GPU, or several GPUs for training.

Importance statistics, compensation, training and the evaluation of .pt files run on this device. ONNX files run on
the CPU.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from edgeprune_device.errors import InputError
from edgeprune_device.option import named
from torch import nn

from edgeprune.model.threads import use_all_cores

__all__ = ["Device", "beside", "choose", "exact"]

_GIB = 1 << 30
_DEVICE = re.compile(r"cpu|[0-9]+(,[0-9]+)*")


@dataclass(frozen=True)
class Device:
    """A device that exists on this machine.

    Attributes:
        text: The device in Ultralytics' form: `cpu`, the number of a GPU (`0`), or of several (`0,1`).
        description: One line for the user, e.g. "GPU 0, NVIDIA H200, 138.2 of 139.8 GiB free".
    """

    text: str
    description: str

    @property
    def torch(self) -> torch.device:
        """The device of statistics and evaluation: the first GPU, or the CPU."""
        return torch.device("cpu" if self.text == "cpu" else f"cuda:{self.text.split(',')[0]}")


def choose(device: str) -> Device:
    """Choose the device of the option `device`, and check that it exists before any long step.

    Args:
        device: `auto` (the GPU with the most free memory, or the CPU if there is no GPU), `cpu`, or numbers of GPUs.

    Raises:
        InputError: The device is invalid or does not exist, or a package for several GPUs is missing.
    """
    # Ultralytics accepts more names (mps, tpu, intel:…, -1), for the CPU or for devices that edgeprune cannot use.
    text = device.removeprefix("cuda:")
    if text != "auto" and not _DEVICE.fullmatch(text):
        raise InputError(
            f"{named('device', device)}: invalid device (expected auto, cpu, or GPU numbers such as 0 or 0,1)"
        )
    from ultralytics.utils.torch_utils import select_device

    count = torch.cuda.device_count()
    if text == "auto":
        text = str(max(range(count), key=_free_bytes)) if count else "cpu"
    try:
        select_device(text, verbose=False)  # type: ignore[no-untyped-call]  # Ultralytics has no types here
        use_all_cores()
    except (ValueError, RuntimeError, AssertionError) as error:
        cause = str(error).strip().splitlines()[0]
        raise InputError(f"{named('device', device)}: not available on this machine ({cause})") from error
    if "," in text and importlib.util.find_spec("cloudpickle") is None:  # otherwise Ultralytics would install it
        raise InputError(
            f"{named('device', device)}: several GPUs need the package cloudpickle; run pip install cloudpickle"
        )
    return Device(text, "CPU" if text == "cpu" else "; ".join(_described(int(i)) for i in text.split(",")))


def _free_bytes(gpu: int) -> int:
    return int(torch.cuda.mem_get_info(gpu)[0])


def _described(gpu: int) -> str:
    free, total = torch.cuda.mem_get_info(gpu)
    return f"GPU {gpu}, {torch.cuda.get_device_name(gpu)}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free"


def beside(model: nn.Module, tensor: torch.Tensor) -> nn.Module:
    """`model` on the device of `tensor`: the model itself if it is already on that device, else a copy."""
    there = next(model.parameters()).device == tensor.device
    return model if there else copy.deepcopy(model).to(tensor.device)


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Disable TF32 within the block, so that GPUs compute FP32 at full precision.

    By default cuDNN rounds the inputs of convolutions to TF32 (10 bits of mantissa), which would change Gram matrices,
    solutions and mAP.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
