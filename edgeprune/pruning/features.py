"""Samples the input patches of convolutions on real images.

The choice of channels (criteria/energy.py) and the compensation (compensate.py) are both least-squares problems in
these patches. They do not use labels.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from edgeprune_device.progress import Progress, silent
from torch import nn

from edgeprune.data.samples import Samples
from edgeprune.model.head import is_end2end
from edgeprune.pruning.layers import convolutions

#: Positions of output maps from `sampled`: images, ys and xs.
Positions = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def sampled(conv: nn.Conv2d, rows: int, batch: int, height: int, width: int, name: str) -> Positions:
    """Output positions at which `conv` is observed; equal for equal layer names and sizes.

    Args:
        conv: The convolution.
        rows: The number of positions over all images; each position is used at most once.
        batch: The number of images.
        height: The height of the output map.
        width: The width of the output map.
        name: The layer's name, which seeds the draw.

    Returns:
        (images, ys, xs), each (rows,) int64.
    """
    total = batch * height * width
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    if total <= 4 * rows:
        flat = torch.randperm(total, generator=generator)[:rows].sort().values
    else:
        flat = torch.unique(torch.randint(total, (rows,), generator=generator))
    flat = flat.to(conv.weight.device)
    return flat // (height * width), flat // width % height, flat % width


def patches(conv: nn.Conv2d, x: torch.Tensor, where: Positions) -> torch.Tensor:
    """Input patches of `conv`, in the layout of its weight.

    Args:
        conv: The convolution.
        x: (N, C_in, H, W) its input.
        where: Output positions from `sampled`.

    Returns:
        (rows, C_in * kh * kw).
    """
    (sh, sw), (dh, dw), (kh, kw) = conv.stride, conv.dilation, conv.kernel_size
    ph, pw = map(int, conv.padding)  # a named padding, such as "same", is not supported
    picture, ys, xs = where
    x = nn.functional.pad(x, (pw, pw, ph, ph))
    taps = [x[picture, :, ys * sh + i * dh, xs * sw + j * dw] for i in range(kh) for j in range(kw)]
    return torch.stack(taps, dim=2).flatten(1)


def rows_for(conv: nn.Conv2d) -> int:
    """The number of observations that is sufficient for the unknowns of a layer."""
    unknowns = conv.weight[0].numel()
    return int(min(max(8 * unknowns, 4096), 16384))


@dataclass(frozen=True)
class Moments:
    """Second moments of the inputs of one convolution.

    Attributes:
        gram: (D, D) float64, centred; D = C_in * kh * kw.
        mean: (D,) float64.
        rows: The number of observations.
    """

    gram: torch.Tensor
    mean: torch.Tensor
    rows: int

    @classmethod
    def of(cls, x: torch.Tensor) -> Moments:
        """The moments of the observations `x`, (rows, D)."""
        mean = x.mean(0)
        centred = x - mean
        return cls((centred.T @ centred).double() / len(x), mean.double(), len(x))


@contextlib.contextmanager
def hooked(
    layers: Mapping[str, nn.Module], make: Callable[[str], Callable[..., None]], *, before: bool = False
) -> Iterator[None]:
    """Within the block, each layer calls the hook that `make(name)` returns.

    Args:
        layers: Name -> layer.
        make: Makes the hook of the layer of that name.
        before: The hook runs before the layer instead of after it.
    """
    hooks = []
    try:
        for name, layer in layers.items():
            register = layer.register_forward_pre_hook if before else layer.register_forward_hook
            hooks.append(register(make(name)))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def moments(model: nn.Module, pictures: torch.Tensor, names: list[str]) -> dict[str, Moments]:
    """{layer name: moments of the layer's input} of the named convolutions. Arguments: see `each_moments`."""
    by_layer: dict[str, Moments] = {}
    each_moments(model, pictures, names, by_layer.__setitem__)
    return by_layer


@torch.no_grad()
def each_moments(
    model: nn.Module, pictures: torch.Tensor, names: list[str], take: Callable[[str, Moments], None]
) -> None:
    """Pass the input moments of each named convolution to `take`, in the order of execution.

    The moments of all layers of a large network would not fit in memory. The images are one batch, so the cost is a
    forward pass and one matrix product per layer.

    Args:
        model: The network.
        pictures: (N, 3, H, W) float32 in [0, 1].
        names: The convolutions to observe.
        take: Called with a layer's name and its moments.
    """
    known = convolutions(model)

    def observe(name: str) -> Callable[..., None]:
        def hook(conv: nn.Conv2d, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            batch, _, height, width = output.shape
            where = sampled(conv, rows_for(conv), batch, height, width, name)
            take(name, Moments.of(patches(conv, inputs[0], where)))

        return hook

    with hooked({name: known[name] for name in names}, observe):
        model.eval()(pictures)


def sensitivity(
    model: nn.Module, samples: Samples, names: list[str], *, at_once: int = 4, progress: Progress = silent
) -> dict[str, torch.Tensor]:
    """The sensitivity of the detection loss to an error in each output channel of the named convolutions.

    Args:
        model: The network.
        samples: Labelled images.
        names: The convolutions to observe.
        at_once: Images per batch.
        progress: Receives the fraction done and a line of text.

    Returns:
        Name -> (C_out,) float64: the mean over images of the summed squared gradient of the loss with respect to the
            channel's map (the diagonal of the empirical Fisher information, Theis et al., arXiv 1801.05787).
    """
    known, images = convolutions(model), len(samples.pictures)
    total = {name: torch.zeros(known[name].out_channels, dtype=torch.float64) for name in names}

    def observe(name: str) -> Callable[..., None]:
        def square(gradient: torch.Tensor) -> None:
            total[name].add_(gradient.double().square().sum((0, 2, 3)).cpu())

        def hook(conv: nn.Conv2d, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            output.register_hook(square)  # type: ignore[no-untyped-call]  # torch leaves it untyped

        return hook

    model.eval()
    with hooked({name: known[name] for name in names}, observe), torch.enable_grad(), default_loss(model) as loss:
        for start in range(0, images, at_once):
            # The loss of a batch is the mean over its images times their number, so each image has the same weight.
            torch.autograd.backward(loss(samples.batch(start, start + at_once)))
            done = min(start + at_once, images)
            progress(done / images, f"gradients {done}/{images} images")
    model.zero_grad(set_to_none=True)
    return {name: value / images for name, value in total.items()}


@contextlib.contextmanager
def default_loss(model: nn.Module) -> Iterator[Callable[[dict[str, torch.Tensor]], torch.Tensor]]:
    """Within the block, `model` computes the loss of the head that is exported, with Ultralytics' default gains.

    A loaded checkpoint has its arguments as a plain dict, but Ultralytics' losses read their gains as attributes.

    Yields:
        The loss of a batch (`Samples.batch`), summed over its parts.
    """
    from ultralytics.utils import DEFAULT_CFG

    network: Any = model  # an Ultralytics network has attributes that nn.Module does not declare
    before = network.args
    network.args = DEFAULT_CFG
    network.criterion = network.init_criterion()
    if hasattr(network.criterion, "o2m"):  # a training begins with 0.8 and 0.2, and ends with 0.1 and 0.9
        end2end = is_end2end(model)
        network.criterion.o2m, network.criterion.o2o = float(not end2end), float(end2end)

    def loss(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        parts: torch.Tensor = network.loss(batch)[0]
        return parts.sum()

    try:
        yield loss
    finally:
        network.args, network.criterion = before, None
