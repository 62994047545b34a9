"""A latency model of a network, so that a budget in milliseconds can be solved.

The model is a sum of few features, each with one coefficient for the whole network. It is fitted to the times of some
thirty random pruned architectures: whole networks, each timed against the uncut one on the runtime at hand. The
features are the multiply-accumulates by kind of layer, the values written and read, the weights read, and a constant.
All are linear in the channel counts of either side of a layer, so the fit is a cost model (cost.py), and the budget is
solved as one in MACs is.

The model leaves out effects that are not linear in a count, such as the computation of channels in blocks of 8, 16 or
32. `error_median` is the resulting error on architectures that the fit has not seen.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from edgeprune_device.errors import InputError
from torch import nn

from edgeprune.exporting.to_onnx import OPSET, trace
from edgeprune.model.prepare import prepare
from edgeprune.pruning import budget as budgets
from edgeprune.pruning import cost as costs
from edgeprune.pruning import surgery
from edgeprune.pruning.budget import Budget
from edgeprune.pruning.channels import Channels
from edgeprune.pruning.cost import CostModel
from edgeprune.pruning.plan import PrunePlan
from edgeprune.pruning.timing import Clock

#: The features. MACs: of 1 x 1 convolutions, of larger ones, and of those whose input is not followed (the first
#: convolution, depthwise ones); values of output and input maps; weights; 1 for the network itself.
FEATURES = ("macs_1x1", "macs_kxk", "macs_narrow", "written", "read", "weights", "fixed")
#: Folds of the cross-validation.
_FOLDS = 3
#: The weight of the uncut network, in architectures: a budget is a share of its latency.
_UNCUT = 5.0


@dataclass(frozen=True)
class Latency:
    """A fitted latency model.

    Attributes:
        coefficients: By name in FEATURES, milliseconds a unit at the traced size.
        unused: Layers that are not in the exported network.
        imgsz: The side of the square image, px.
        full_ms: The measured latency of the uncut network.
        error_median: Median relative error on architectures that the fit has not seen, by cross-validation, without the
            uncut one.
        error_p90: 90th percentile of the same errors.
        architectures: The number of timed architectures, including the uncut one.
        runtime: The runtime and the machine, as text.
    """

    coefficients: dict[str, float]
    unused: tuple[str, ...]
    imgsz: int
    full_ms: float
    error_median: float
    error_p90: float
    architectures: int
    runtime: str

    def cost(self, channels: Channels) -> CostModel:
        """The cost model in milliseconds, also for a network that was cut out of the fitted one."""
        parts = _features(channels, self.unused)
        pair, out, inp = (
            sum(c * part[side] for c, part in zip(self.coefficients.values(), parts)) for side in range(3)
        )
        return costs.bilinear(channels, pair, out, inp, fixed=self.coefficients["fixed"])

    def to_json(self) -> dict:
        """The fields as a dictionary."""
        return asdict(self)


def budget(latency: Latency, ms: float) -> Budget:
    """The budget of `ms` milliseconds an image.

    Raises:
        InputError: `ms` is not above zero, or the network is as fast without pruning.
    """
    if not ms > 0:
        raise InputError(f"{ms:g} ms is no latency: give more than 0")
    if ms >= latency.full_ms:
        raise InputError(
            f"nothing to prune: the network takes {latency.full_ms:.1f} ms as it is, {ms:g} ms were asked for "
            f"({latency.runtime})"
        )
    return Budget("latency", ms / latency.full_ms)


def fit(
    model: nn.Module,
    channels: Channels,
    imgsz: int,
    *,
    architectures: int = 30,
    multiple: int = 8,
    seed: int = 0,
    measure: Clock | None = None,
    progress: Callable[[float, str], None] = lambda fraction, what: None,
) -> Latency:
    """Cut, export and time `architectures` networks, and fit the model to their times.

    Args:
        model: The network.
        channels: Its channels.
        imgsz: The side of the square image, px.
        architectures: Fewer than about 20 leave the coefficients to chance.
        multiple: Kept counts are multiples of it where the full width is, as in the plans to come.
        seed: Of the random architectures.
        measure: The clock (timing/); None takes ONNX Runtime on this machine. YOLOv8n at 512 px took 78 s of processor
            time.
        progress: called with the fraction done and a line of text.
    """
    if measure is None:
        from edgeprune.pruning.timing.ort import Ort

        measure = Ort()
    counts = sample(channels, architectures, multiple=multiple, seed=seed)
    files = {}
    for i, kept in enumerate(counts):
        progress(0.4 * i / len(counts), f"latency: exporting architecture {i + 1} of {len(counts)}")
        files[f"{i:03d}"] = onnx(model, channels, kept, imgsz)
    progress(0.4, f"latency: timing {len(counts)} architectures in turns")
    found = measure(files)
    ms = np.array([found[name] for name in files])
    unused = _unused(model, channels, imgsz)
    table = _table(channels, unused, counts)
    error = _unseen(table, ms, seed)
    coefficients = dict(zip(FEATURES, _solve(table, ms).tolist()))
    return Latency(
        coefficients, unused, imgsz, float(ms[0]), float(np.median(error)), float(np.percentile(error, 90)),
        len(counts), measure.description,
    )  # fmt: skip


def sample(channels: Channels, architectures: int, *, multiple: int, seed: int = 0) -> np.ndarray:
    """Draw kept counts within the floors and the rounding.

    The architectures are drawn in three ways, in turns: every unit by itself around a common share; the solution of the
    MACs solver for random scores; and the same with scores that rise or fall with depth, so that the solver cuts mostly
    early or mostly late.

    Args:
        channels: The channels of the network.
        architectures: How many to draw.
        multiple: Kept counts are multiples of it where the full width is.
        seed: Of the random numbers.

    Returns:
        (1 + architectures, groups) kept counts, the uncut network first.
    """
    rng = np.random.default_rng(seed)
    units = budgets.units(channels, np.zeros(channels.atoms), multiple)
    sizes = np.array([len(g.atoms) for g in channels.groups], dtype=float)
    least = sizes.copy()
    for unit in units:
        least[list(unit.groups)] = unit.options[-1]
    macs = costs.macs(channels)
    floor = float(macs.of(least) / macs.of(sizes))
    order = {name: i / len(channels.out) for i, name in enumerate(channels.out)}
    depth = np.array([min([order[p] for p in g.producers], default=0.0) for g in channels.groups])
    rows = [sizes]
    for i in range(architectures):
        if i % 3 == 0:
            level, counts = rng.uniform(0.3, 1.0), sizes.copy()
            for unit in units:
                wanted = (level + rng.uniform(-0.4, 0.4)) * unit.options[0, 0]
                counts[list(unit.groups)] = unit.options[np.argmin(np.abs(unit.options[:, 0] - wanted))]
        else:
            slope = 0.0 if i % 3 == 1 else rng.choice([-1, 1]) * rng.uniform(1.0, 3.0)
            level = np.exp(slope * (depth - 0.5) + rng.normal(0, 0.7, len(depth))) / np.sqrt(sizes)
            scores = rng.random(channels.atoms) ** rng.uniform(0.5, 3.0)
            for group, factor in zip(channels.groups, level):
                scores[group.atoms] *= factor
            asked = Budget("macs", floor + (1 - floor) * rng.uniform(0.1, 0.95))
            keep = budgets.choose(channels, scores, asked, multiple=multiple)
            counts = np.array([keep[g.atoms].sum() for g in channels.groups], dtype=float)
        rows.append(counts)
    return np.array(rows)


def onnx(model: nn.Module, channels: Channels, counts: np.ndarray, imgsz: int) -> bytes:
    """The ONNX file of a network that keeps `counts` channels of each group, whichever they are.

    The graph is traced but not simplified: ONNX Runtime's own optimizer makes the same graph of it as of the simplified
    one, in a third of the time.

    Args:
        model: The network.
        channels: Its channels.
        counts: (groups,) kept counts.
        imgsz: The side of the square image, px.

    Returns:
        The bytes of the file.
    """
    keep = np.zeros(channels.atoms, dtype=bool)
    for group, count in zip(channels.groups, counts):
        keep[group.atoms[: int(count)]] = True
    cut = surgery.apply(PrunePlan.of(channels, keep, budget="any", criterion="any"), model, channels)
    return trace(prepare(cut, (imgsz, imgsz)), imgsz, imgsz, OPSET).SerializeToString()


# -- features ----------------------------------------------------------------------------------------------------------
def _features(channels: Channels, unused: tuple[str, ...]) -> list[tuple[np.ndarray, ...]]:
    """The parts (pair, out, inp), each (convolutions,), of the cost model of each feature, in the order of FEATURES
    without the constant.

    They are those of maps of the traced size; the coefficients absorb the difference in size.
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


def _table(channels: Channels, unused: tuple[str, ...], counts: np.ndarray) -> np.ndarray:
    """(architectures, features)."""
    columns = [costs.bilinear(channels, *part).of(counts) for part in _features(channels, unused)]
    return np.stack([*columns, np.ones(len(counts))], axis=1)


def _unused(model: nn.Module, channels: Channels, imgsz: int) -> tuple[str, ...]:
    """Layers of the branch that the export drops from a head with two. Elsewhere layers are fused, not dropped."""
    kept = dict(prepare(model, (imgsz, imgsz)).named_modules())
    head = f"model.{len(model.model) - 1}."
    return tuple(name for name in channels.positions if name.startswith(head) and name not in kept)


# -- the fit -----------------------------------------------------------------------------------------------------------
def _solve(table: np.ndarray, ms: np.ndarray) -> np.ndarray:
    """(features,) non-negative coefficients of least squared relative error; the first row is the uncut network."""
    weight = np.where(np.arange(len(ms)) == 0, _UNCUT**0.5, 1.0)
    scale = np.maximum(table[0], 1e-30)
    return _nnls(weight[:, None] * table / scale / ms[:, None], weight) / scale


def _unseen(table: np.ndarray, ms: np.ndarray, seed: int) -> np.ndarray:
    """(architectures,) relative error of each architecture but the uncut one, predicted by a fit to the other folds."""
    rows = np.random.default_rng(seed).permutation(np.arange(1, len(ms)))
    error = np.empty(len(ms))
    for held in np.array_split(rows, _FOLDS):
        fitted = np.setdiff1d(np.arange(len(ms)), held)
        error[held] = np.abs(table[held] @ _solve(table[fitted], ms[fitted]) / ms[held] - 1)
    return error[1:]


def _nnls(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """argmin over x >= 0 of |a x - b|.

    It is the plain least-squares solution over the columns where it is not zero. With so few columns every subset can
    be tried.
    """
    best, least = np.zeros(a.shape[1]), float(b @ b)
    for subset in itertools.product((False, True), repeat=a.shape[1]):
        x = np.zeros(a.shape[1])
        x[list(subset)] = np.linalg.lstsq(a[:, subset], b, rcond=None)[0]
        residual = float(np.square(a @ x - b).sum())
        if (x >= 0).all() and residual < least:
            best, least = x, residual
    return best
