"""The inputs of convolutions: their patches, sampled on real images.

Both the choice of channels (criteria/energy.py) and their compensation (compensate.py) are least-squares problems in
these patches. Labels play no part in them.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from edgeprune.data.samples import Samples


def sampled(conv: nn.Conv2d, rows: int, batch: int, height: int, width: int, name: str) -> tuple[torch.Tensor, ...]:
    """Output positions at which `conv` is observed; the same for the same layer name and sizes.

    Args:
        conv: The convolution.
        rows: The number of positions over all images; each position is taken once at most.
        batch: The number of images.
        height: Of the output map.
        width: Of the output map.
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
    return flat // (height * width), flat // width % height, flat % width


def patches(conv: nn.Conv2d, x: torch.Tensor, where: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Input patches of `conv`, in the layout of its weight.

    Args:
        conv: The convolution.
        x: (N, C_in, H, W) its input.
        where: Output positions, as `sampled` returns them.

    Returns:
        (rows, C_in * kh * kw).
    """
    (ph, pw), (sh, sw), (dh, dw), (kh, kw) = conv.padding, conv.stride, conv.dilation, conv.kernel_size
    picture, ys, xs = where
    x = nn.functional.pad(x, (pw, pw, ph, ph))
    taps = [x[picture, :, ys * sh + i * dh, xs * sw + j * dw] for i in range(kh) for j in range(kw)]
    return torch.stack(taps, dim=2).flatten(1)


def rows_for(conv: nn.Conv2d) -> int:
    """The number of observations that determines the unknowns of a layer, without the cost of more."""
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
def hooked(layers: dict[str, nn.Module], make: Callable[[str], Callable], *, before: bool = False):
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
    """Layer name -> the moments of the input of each named convolution. Arguments: see `each_moments`."""
    found: dict[str, Moments] = {}
    each_moments(model, pictures, names, found.__setitem__)
    return found


@torch.no_grad()
def each_moments(
    model: nn.Module, pictures: torch.Tensor, names: list[str], take: Callable[[str, Moments], None]
) -> None:
    """Hand the moments of the input of each named convolution to `take`, in the order in which the convolutions run.

    Those of all layers of a large network would not fit in memory. The images pass in one batch: the cost is a forward
    pass and one matrix product for each layer.

    Args:
        model: The network.
        pictures: (N, 3, H, W) float32 in [0, 1].
        names: The convolutions to observe.
        take: Called with a layer's name and its moments.
    """
    modules = dict(model.named_modules())

    def observe(name):
        def hook(conv, inputs, output):
            batch, _, height, width = output.shape
            where = sampled(conv, rows_for(conv), batch, height, width, name)
            take(name, Moments.of(patches(conv, inputs[0], where)))

        return hook

    with hooked({name: modules[name] for name in names}, observe):
        model.eval()(pictures)


def sensitivity(model: nn.Module, samples: Samples, names: list[str], *, at_once: int = 4) -> dict[str, torch.Tensor]:
    """How strongly the detection loss reacts to an error in each output channel of the named convolutions.

    Args:
        model: The network.
        samples: Labelled images.
        names: The convolutions to observe.
        at_once: Images of one batch.

    Returns:
        Name -> (C_out,) float64: the mean over images of the summed squared gradient of the loss with respect to the
            channel's map (the diagonal of the empirical Fisher information, Theis et al., arXiv 1801.05787).
    """
    modules = dict(model.named_modules())
    total = {name: torch.zeros(modules[name].out_channels, dtype=torch.float64) for name in names}

    def observe(name):
        def square(grad):
            total[name].add_(grad.double().square().sum((0, 2, 3)).cpu())

        return lambda conv, inputs, output: output.register_hook(square) and None

    model.eval()
    with hooked({name: modules[name] for name in names}, observe), torch.enable_grad(), default_loss(model):
        for start in range(0, len(samples.pictures), at_once):
            # The loss of a batch is its mean over images times their number: each image has the same weight.
            loss, _ = model.loss(samples.batch(start, start + at_once))
            loss.sum().backward()
    model.zero_grad(set_to_none=True)
    return {name: value / len(samples.pictures) for name, value in total.items()}


@contextlib.contextmanager
def default_loss(model: nn.Module):
    """Within the block, `model` computes its loss with Ultralytics' default gains.

    A loaded checkpoint carries its arguments as a plain dict; Ultralytics' losses read their gains as attributes.
    """
    from ultralytics.utils import DEFAULT_CFG

    before = model.args
    model.args, model.criterion = DEFAULT_CFG, None
    try:
        yield
    finally:
        model.args, model.criterion = before, None
