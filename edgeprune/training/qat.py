"""Quantization-aware training: the network is trained with the rounding of its INT8 file.

    scheme = plan(model, imgsz, images)     the places and steps of the rounding, from the file itself
    with rounded(model, scheme): …            every forward pass rounds; gradients pass straight through

The model is not changed: function calls are intercepted instead. Checkpoints therefore hold stock classes only, and
EMA, several GPUs and resumption work as usual. A tensor is rounded where a convolution or an addition reads it, with
the scale of the tensor that the file reads there. Operators that only move values (Concat, Split, MaxPool, Resize) need
no rounding: their inputs and outputs share a scale in the file, and rounding before or after a move is the same.

In the file, batch norm is folded into the weights; here it is separate. The result is the same: weights have one scale
per output channel, symmetric around zero, and folding multiplies a channel and its scale by the same number. The
statistics, however, must be the folded ones, so batch norm is trained in eval mode.

The scales of activations come from calibration and stay fixed; the weights' scales follow the weights.

No gain was found if calibration alone already passes the gate. YOLOv8n COCO at 320 px, trained on one half of coco128
and evaluated on the other, mAP50-95 of the INT8 file: 0.387 calibrated, 0.390 after one or two epochs of this training,
0.388 after two epochs of the same training without rounding (also with frozen batch norm; not frozen: 0.360).

Branches that are missing in the file (the other head of YOLOv10 and 26) are trained in float.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx
import torch
from edgeprune_device.errors import EdgepruneError, InputError
from edgeprune_device.option import named
from edgeprune_device.size import Size
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from edgeprune import quantize as q
from edgeprune.data import samples
from edgeprune.data.dataset import Dataset
from edgeprune.exporting.to_onnx import to_onnx
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.quantize.graph import Graph, layer_of

#: The learning rate as a fraction of fine-tuning's, because this training starts from a tuned network.
LR_SHARE = 0.1
#: The key under which a checkpoint keeps its thresholds. Stock Ultralytics ignores it.
KEY = "edgeprune_qat"

_ADDITIONS = (torch.add, torch.Tensor.add)  # `a + b` calls the second
_Entry = TypeVar("_Entry")


@dataclass(frozen=True)
class Scheme:
    """The places and steps of the rounding of a network's activations. Tensors have their names in the exported graph.

    Example: `Scheme({"model.0.conv": ["images"]}, {}, {"images": 0.0079}, {"images": 1.0})`.

    Attributes:
        convolutions: Layer -> the tensor that it reads, for each call.
        additions: Layer -> the tensors of both sides for each `+` of two activations in it, or None if it adds floats.
        steps: Tensor -> the scale of its grid.
        thresholds: Measured tensor -> the |x| at which it is clipped, for `Ranges.fixed`, without tensors of moved
            values.
    """

    convolutions: dict[str, list[str]]
    additions: dict[str, list[list[str] | None]]
    steps: dict[str, float]
    thresholds: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """The fields as a dictionary."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Scheme:
        """Make the scheme from a dictionary that `to_json` returned."""
        return cls(**content)


def plan(
    model: nn.Module, imgsz: int | Sequence[int], pictures: Iterable[npt.NDArray[np.float32]], *, method: str = "mse"
) -> Scheme:
    """The scheme of the INT8 file that `model` would become now.

    Args:
        model: The network.
        imgsz: The side of a square input, or (height, width), px.
        pictures: Calibration images, each (1, 3, H, W) float32, RGB in 0..1.
        method: The calibration method.

    Raises:
        InputError: An operator of the file is not one module of the model (RepVGG-like blocks, which export merges).
    """
    exported = check(model, imgsz)
    return of_graph(exported, q.calibrate(exported, pictures), method=method)


def check(model: nn.Module, imgsz: int | Sequence[int]) -> onnx.ModelProto:
    """Export the network, and check that each convolution of the file is a convolution of the model.

    Raises:
        InputError: A convolution of the file is not in the model.
    """
    exported = to_onnx(model, Size.of(imgsz))
    modules = dict(model.named_modules())
    for layer in map(layer_of, Graph(exported).body_convolutions()):
        if not isinstance(modules.get(layer), nn.Conv2d):
            raise InputError(
                f"{named('qat')}: layer {layer} of the exported network is not one convolution in the checkpoint"
            )
    return exported


def of_graph(exported: onnx.ModelProto, ranges: q.Ranges, *, method: str = "mse") -> Scheme:
    """The scheme of `quantize.to_int8(exported, ranges, method=method)`.

    Args:
        exported: The FP32 file.
        ranges: Its measured ranges.
        method: The calibration method.
    """
    _, grids = q.signed_grids(exported, ranges, method=method)
    thresholds = {name: grid.scale * 127 for name, grid in grids.items() if name in ranges.tensors}
    # Computed again from the thresholds, because the file will be written with exactly these values.
    reads, grids = q.signed_grids(exported, ranges.fixed(thresholds))
    graph = Graph(exported)

    convolutions: dict[str, list[str]] = {}
    for node in _as_called(graph.body_convolutions()):
        convolutions.setdefault(layer_of(node), []).append(node.input[0])
    additions: dict[str, list[list[str] | None]] = {}
    for node in _as_called(n for n in graph.nodes if n.op_type == "Add" and len(graph.activations(n)) == 2):
        read = all(node.output[0] in reads.get(name, ()) for name in node.input)
        additions.setdefault(layer_of(node), []).append(list(node.input) if read else None)
    additions = {layer: pairs for layer, pairs in additions.items() if any(pairs)}
    steps = {name: float(np.float32(grid.scale)) for name, grid in grids.items()}
    return Scheme(convolutions, additions, steps, thresholds)


def _as_called(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Nodes of one type in the order of the layers' calls: Add, Add_1, Add_2. The simplifier may have reordered
    them.
    """

    def number(node: onnx.NodeProto) -> int:
        match = re.search(r"_(\d+)$", node.name)
        return int(match[1]) if match else 0

    return sorted(nodes, key=number)


@contextlib.contextmanager
def rounded(model: nn.Module, scheme: Scheme) -> Iterator[None]:
    """Within the block, round by the scheme in every forward pass of `model`, but not in other networks.

    Args:
        model: The network.
        scheme: Its scheme.

    Raises:
        EdgepruneError: A forward pass did not make the calls of the scheme, which belongs to another network.
    """
    calls = _Calls({id(module): name for name, module in model.named_modules()}, scheme)
    hooks = [
        register_module_forward_pre_hook(lambda module, _: calls.enter(module)),
        register_module_forward_hook(lambda module, _, result: calls.leave(module, result), always_call=True),
    ]
    try:
        with calls:
            yield
    finally:
        for hook in hooks:
            hook.remove()


class _Calls(TorchFunctionMode):
    """Intercepts convolutions and additions; the stack of running modules gives the layer of a call."""

    def __init__(self, names: dict[int, str], scheme: Scheme) -> None:
        super().__init__()
        self._names, self._scheme = names, scheme
        self._running: list[str] = []
        self._seen: Counter[tuple[str, str]] = Counter()

    def enter(self, module: nn.Module) -> None:
        name = self._names.get(id(module))
        if name == "":
            self._running, self._seen = [], Counter()
        if name is not None:
            self._running.append(name)

    def leave(self, module: nn.Module, result: object) -> None:
        name = self._names.get(id(module))
        if name is None:
            return
        self._running.pop()
        if name == "" and result is not None:  # None: the forward pass failed with its own error
            self._check()

    def _check(self) -> None:
        for what, expected in (("conv", self._scheme.convolutions), ("add", self._scheme.additions)):
            for layer, steps in expected.items():
                if self._seen[what, layer] != len(steps):
                    raise EdgepruneError(
                        f"scheme: does not match the network (layer {layer}: {len(steps)} {what} in the scheme, "
                        f"{self._seen[what, layer]} in the network)"
                    )

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self._running:
            if func is torch.conv2d:
                args = self._convolution(*args)
            elif func in _ADDITIONS and len(args) == 2 and all(_is_activation(x) for x in args):
                args = self._addition(*args)
        return func(*args, **(kwargs or {}))

    def _next(self, what: str, schemes: Mapping[str, Sequence[_Entry]]) -> _Entry | None:
        """The entry for this call of the running layer, or None."""
        layer = self._running[-1]
        if layer not in schemes:
            return None
        place = self._seen[what, layer]
        self._seen[what, layer] += 1
        return schemes[layer][place] if place < len(schemes[layer]) else None

    def _convolution(self, x: torch.Tensor, weight: torch.Tensor, *more: Any) -> tuple[Any, ...]:
        tensor = self._next("conv", self._scheme.convolutions)
        return (x, weight, *more) if tensor is None else (self._round(x, tensor), round_weight(weight), *more)

    def _addition(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
        tensors = self._next("add", self._scheme.additions)
        return (a, b) if tensors is None else tuple(map(self._round, (a, b), tensors))

    def _round(self, x: torch.Tensor, tensor: str) -> torch.Tensor:
        """QuantizeLinear and DequantizeLinear of an activation; the gradient passes if the value is not clipped."""
        return torch.fake_quantize_per_tensor_affine(x, self._scheme.steps[tensor], 0, -128, 127)


def _is_activation(x: object) -> bool:
    return isinstance(x, torch.Tensor) and not isinstance(x, nn.Parameter) and x.is_floating_point() and x.ndim > 1


def round_weight(weight: torch.Tensor) -> torch.Tensor:
    """The weight rounded as in the file: int8, symmetric, one scale per output channel (`int8._Writer._weight`)."""
    amax = weight.detach().abs().flatten(1).amax(1)
    scale = torch.where(amax > 0, amax, 1.0) / 127
    zero = torch.zeros(len(scale), dtype=torch.int32, device=scale.device)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -127, 127)


def freeze_statistics(model: nn.Module) -> None:
    """Put batch norm into eval mode, because it will be folded: scale and shift are trained, the statistics stay."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def carried(scheme: Scheme) -> dict[str, dict[str, Any]]:
    """The values of the scheme that a checkpoint stores (`checkpoint.save(extra=)`)."""
    return {KEY: {"method": "qat", "thresholds": dict(scheme.thresholds)}}


def thresholds(source: Checkpoint) -> dict[str, float] | None:
    """The thresholds that a checkpoint was trained with, for `precisions.make`, or None.

    Raises:
        InputError: The checkpoint's entry under that key is malformed.
    """
    content = source.extra.get(KEY)
    if content is None:
        return None
    stored = content.get("thresholds") if isinstance(content, dict) else None
    good = isinstance(stored, dict) and all(
        isinstance(k, str) and isinstance(v, float) and math.isfinite(v) and v > 0 for k, v in stored.items()
    )
    if not good or not stored:
        raise InputError(f"{source.path}: the quantization scales are damaged; copy the file again")
    return dict(stored)


def int8(source: Checkpoint, dataset: Dataset, imgsz: int | Sequence[int]) -> onnx.ModelProto:
    """A checkpoint as signed INT8, with its own thresholds or else calibrated with mse and corrected biases.

    Args:
        source: The checkpoint.
        dataset: The data set with the training images for the calibration.
        imgsz: The side of a square input, or (height, width), px.
    """
    exported = to_onnx(source.model, Size.of(imgsz))
    pictures = calibration(dataset, imgsz)
    ranges, given = q.calibrate(exported, pictures), thresholds(source)
    if given is not None:
        return q.to_int8(exported, ranges.fixed(given))
    return q.correct_bias(exported, q.to_int8(exported, ranges), pictures[:16])


def calibration(dataset: Dataset, imgsz: int | Sequence[int]) -> list[npt.NDArray[np.float32]]:
    """Training images to calibrate with, each (1, 3, H, W) float32, RGB in 0..1."""
    solve, _ = samples.split(dataset.train, imgsz)
    return [x[None].numpy() for x in samples.read(dataset, solve, imgsz).pictures]
