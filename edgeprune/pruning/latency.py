"""A latency model of a network, for budgets in milliseconds.

The model is a sum of a few features, each with one coefficient for the whole network. It is fitted to the times of
about thirty random pruned architectures: whole networks, each timed against the unpruned one on the given runtime. The
features are the multiply-accumulates by type of layer, the values written and read, the weights read, and a constant.
All are linear in the channel counts on each side of a layer, so the fit is a cost model (cost.py), and the budget is
solved like one in MACs.

The model ignores effects that are not linear in a count, such as the computation of channels in blocks of 8, 16 or 32.
`error_median` is the resulting error on held-out architectures.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from edgeprune_device.errors import InputError
from edgeprune_device.option import named
from edgeprune_device.progress import Progress, silent
from edgeprune_device.size import Size
from torch import nn

from edgeprune.exporting.to_onnx import OPSET, trace
from edgeprune.model.prepare import prepare
from edgeprune.pruning import budget, cost, surgery, timing
from edgeprune.pruning.budget import Budget
from edgeprune.pruning.channels import Channels
from edgeprune.pruning.cost import CostModel
from edgeprune.pruning.layers import Floats, Ints
from edgeprune.pruning.plan import PrunePlan
from edgeprune.pruning.timing import Clock

#: The features. MACs of 1 x 1 convolutions, of larger ones, and of those whose input is not followed (the first
#: convolution, depthwise ones); values of output and input maps; weights; 1 for the network itself.
FEATURES = ("macs_1x1", "macs_kxk", "macs_narrow", "written", "read", "weights", "fixed")
#: Folds of the cross-validation.
_FOLDS = 3
#: The weight of the unpruned network, in architectures, because a budget is a share of its latency.
_UNCUT = 5.0


@dataclass(frozen=True)
class Latency:
    """A fitted latency model.

    Attributes:
        coefficients: Feature -> milliseconds per unit at the traced size.
        unused: Layers that are not in the exported network.
        imgsz: The side of a square input, or (height, width), px.
        full_ms: The measured latency of the unpruned network.
        error_median: Median relative error on held-out architectures in a cross-validation, without the unpruned one.
        error_p90: 90th percentile of the same errors.
        architectures: The number of timed architectures, including the unpruned one.
        runtime: The runtime and the machine, as text.
    """

    coefficients: dict[str, float]
    unused: tuple[str, ...]
    imgsz: Size
    full_ms: float
    error_median: float
    error_p90: float
    architectures: int
    runtime: str

    def cost(self, channels: Channels) -> CostModel:
        """The cost model in milliseconds, also for a network that was pruned from the fitted one."""
        parts = zip(self.coefficients.values(), _features(channels, self.unused))
        pair, out, inp = np.sum([[c * side for side in part] for c, part in parts], axis=0)
        return cost.bilinear(channels, pair, out, inp, fixed=self.coefficients["fixed"])

    def to_json(self) -> dict[str, Any]:
        """The fields as a dictionary."""
        return {**asdict(self), "imgsz": self.imgsz.to_json()}


def to_budget(latency: Latency, ms: float) -> Budget:
    """The budget of `ms` milliseconds per image.

    Raises:
        InputError: `ms` is not above zero, or the unpruned network meets it.
    """
    if ms >= latency.full_ms:
        raise InputError(
            f"{named('latency_ms', f'{ms:g}')}: nothing to prune; the network takes {latency.full_ms:.1f} ms without "
            f"pruning ({latency.runtime})"
        )
    return Budget("latency", ms / latency.full_ms)


def fit(
    model: nn.Module,
    channels: Channels,
    imgsz: int | Sequence[int],
    *,
    architectures: int = 30,
    multiple: int = 8,
    seed: int = 0,
    measure: Clock | None = None,
    progress: Progress = silent,
) -> Latency:
    """Prune, export and time `architectures` networks, and fit the model to their times.

    Args:
        model: The network.
        channels: Its channels.
        imgsz: The side of a square input, or (height, width), px.
        architectures: The number of architectures; below about 20 the coefficients are unreliable.
        multiple: Kept counts are multiples of it if the full width is, as in the later plans.
        seed: The seed of the random architectures.
        measure: The clock (timing/); None takes ONNX Runtime on this machine. YOLOv8n at 512 px took 78 s of processor
            time.
        progress: Receives the fraction done and a line of text.
    """
    clock = timing.load(timing.DEFAULT) if measure is None else measure
    counts = sample(channels, architectures, multiple=multiple, seed=seed)
    files = {}
    for i, kept in enumerate(counts):
        progress(0.4 * i / len(counts), f"latency: exporting architecture {i + 1} of {len(counts)}")
        files[f"{i:03d}"] = onnx(model, channels, kept, imgsz)
    progress(0.4, f"latency: timing {len(counts)} architectures alternately")
    times = clock(files)
    ms = np.array([times[name] for name in files])
    unused = _unused(model, channels, imgsz)
    table = _table(channels, unused, counts)
    error = _unseen(table, ms, seed)
    coefficients = dict(zip(FEATURES, _solve(table, ms).tolist()))
    return Latency(
        coefficients, unused, Size.of(imgsz), float(ms[0]), float(np.median(error)), float(np.percentile(error, 90)),
        len(counts), clock.description,
    )  # fmt: skip


def sample(channels: Channels, architectures: int, *, multiple: int, seed: int = 0) -> Floats:
    """Draw random kept counts within the floors and the rounding.

    The draws alternate between three methods: every unit separately around a common share; the solution of the MACs
    solver for random scores; and the same with scores that rise or fall with depth, so that the solver prunes mostly
    early or mostly late layers.

    Args:
        channels: The channels of the network.
        architectures: The number of draws.
        multiple: Kept counts are multiples of it where the full width is.
        seed: The seed of the random numbers.

    Returns:
        (1 + architectures, groups) kept counts, the unpruned network first.
    """
    rng = np.random.default_rng(seed)
    units = budget.units(channels, np.zeros(channels.atoms), multiple)
    sizes = np.array([len(g.atoms) for g in channels.groups], dtype=float)
    least = sizes.copy()
    for unit in units:
        least[list(unit.groups)] = unit.options[-1]
    macs = cost.macs(channels)
    floor = float(macs.of(least) / macs.of(sizes))
    rows = [sizes]
    for i in range(architectures):
        if i % 3 == 0:
            rows.append(_around_a_share(sizes, units, rng))
            continue
        slope = 0.0 if i % 3 == 1 else rng.choice([-1, 1]) * rng.uniform(1.0, 3.0)
        scores = _random_scores(channels, sizes, slope, rng)
        asked = Budget("macs", floor + (1 - floor) * rng.uniform(0.1, 0.95))
        keep = budget.choose(channels, scores, asked, multiple=multiple)
        rows.append(np.array([keep[g.atoms].sum() for g in channels.groups], dtype=float))
    return np.array(rows)


def _around_a_share(sizes: Floats, units: list[budget.Unit], rng: np.random.Generator) -> Floats:
    """(groups,) kept counts, drawn for every unit separately around a common share."""
    level = rng.uniform(0.3, 1.0)
    counts: Floats = sizes.copy()
    for unit in units:
        wanted = (level + rng.uniform(-0.4, 0.4)) * unit.options[0, 0]
        counts[list(unit.groups)] = unit.options[np.argmin(np.abs(unit.options[:, 0] - wanted))]
    return counts


def _random_scores(channels: Channels, sizes: Floats, slope: float, rng: np.random.Generator) -> Floats:
    """(atoms,) random scores that rise with depth by `slope`."""
    order = {name: i / len(channels.out) for i, name in enumerate(channels.out)}
    depth = np.array([min([order[p] for p in g.producers], default=0.0) for g in channels.groups])
    level = np.exp(slope * (depth - 0.5) + rng.normal(0, 0.7, len(depth))) / np.sqrt(sizes)
    scores = rng.random(channels.atoms) ** rng.uniform(0.5, 3.0)
    for group, factor in zip(channels.groups, level):
        scores[group.atoms] *= factor
    return scores


def onnx(model: nn.Module, channels: Channels, counts: Ints | Floats, imgsz: int | Sequence[int]) -> bytes:
    """The ONNX file of a network that keeps any `counts` channels of each group.

    The graph is traced but not simplified: ONNX Runtime's optimizer produces the same graph from it as from the
    simplified one, in a third of the time.

    Args:
        model: The network.
        channels: Its channels.
        counts: (groups,) kept counts.
        imgsz: The side of a square input, or (height, width), px.

    Returns:
        The bytes of the file.
    """
    keep, size = np.zeros(channels.atoms, dtype=bool), Size.of(imgsz)
    for group, count in zip(channels.groups, counts):
        keep[group.atoms[: int(count)]] = True
    cut = surgery.apply(PrunePlan.of(channels, keep, budget="any", criterion="any"), model, channels)
    file: bytes = trace(prepare(cut, size), size.height, size.width, OPSET).SerializeToString()
    return file


# -- features ----------------------------------------------------------------------------------------------------------
def _features(channels: Channels, unused: tuple[str, ...]) -> list[tuple[Floats, Floats, Floats]]:
    """The parts (pair, out, inp), each (convolutions,), of the cost model of each feature, in the order of FEATURES
    without the constant.

    They refer to maps of the traced size; the coefficients absorb the difference in size.
    """
    names = list(channels.positions)
    used = np.array([name not in unused for name in names], dtype=float)
    positions = used * np.array([channels.positions[n] for n in names])
    taps = np.array([channels.taps[n] for n in names], dtype=float)
    followed = np.array([n in channels.inp for n in names])
    none = np.zeros(len(names))
    kinds = (followed & (taps == 1), followed & (taps > 1), ~followed)
    macs = [(positions * taps * kind, none, none) for kind in kinds]
    return [*macs, (none, positions, none), (none, none, positions * followed), (used * taps, none, none)]


def _table(channels: Channels, unused: tuple[str, ...], counts: Floats) -> Floats:
    """(architectures, features)."""
    parts = _features(channels, unused)
    columns = [cost.bilinear(channels, pair, out, inp).of(counts) for pair, out, inp in parts]
    return np.stack([*columns, np.ones(len(counts))], axis=1)


def _unused(model: nn.Module, channels: Channels, imgsz: int | Sequence[int]) -> tuple[str, ...]:
    """Layers of the branch that the export drops from a head with two branches. Other layers are fused, not dropped."""
    kept = dict(prepare(model, Size.of(imgsz)).named_modules())
    blocks = list(model.get_submodule("model").children())
    head = f"model.{len(blocks) - 1}."
    return tuple(name for name in channels.positions if name.startswith(head) and name not in kept)


# -- the fit -----------------------------------------------------------------------------------------------------------
def _solve(table: Floats, ms: Floats) -> Floats:
    """(features,) non-negative coefficients with the least squared relative error; the first row is the unpruned
    network.
    """
    weight = np.where(np.arange(len(ms)) == 0, _UNCUT**0.5, 1.0)
    scale = np.maximum(table[0], 1e-30)
    solution: Floats = _nnls(weight[:, None] * table / scale / ms[:, None], weight) / scale
    return solution


def _unseen(table: Floats, ms: Floats, seed: int) -> Floats:
    """(architectures,) relative error of each pruned architecture, predicted by a fit to the other folds."""
    rows = np.random.default_rng(seed).permutation(np.arange(1, len(ms)))
    error = np.empty(len(ms))
    for held in np.array_split(rows, _FOLDS):
        fitted = np.setdiff1d(np.arange(len(ms)), held)
        error[held] = np.abs(table[held] @ _solve(table[fitted], ms[fitted]) / ms[held] - 1)
    return error[1:]


def _nnls(a: Floats, b: Floats) -> Floats:
    """argmin over x >= 0 of |a x - b|.

    The solution is the plain least-squares solution over its non-zero columns. With so few columns every subset can be
    tried.
    """
    best, least = np.zeros(a.shape[1]), float(b @ b)
    for subset in itertools.product((False, True), repeat=a.shape[1]):
        x = np.zeros(a.shape[1])
        x[list(subset)] = np.linalg.lstsq(a[:, subset], b, rcond=None)[0]
        residual = float(np.square(a @ x - b).sum())
        if (x >= 0).all() and residual < least:
            best, least = x, residual
    return best
