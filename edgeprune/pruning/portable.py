"""Plans that an Ultralytics YAML can state, so that stock `YOLO("pruned.pt").train()` keeps the size and the weights.

Stock training rebuilds the network from `model.yaml` and copies the weights that fit. A YAML states one width for each
row (`args[0]`) and the hidden widths of some blocks (`e`, `c3`, `c4`, `npr`); every other width follows from those by
the constructors. This dependence is not modelled here but observed. The network is built on the meta device with a
width turned down, and the widths of its convolutions tell which groups of channels moved, and how far. Widths that only
move together (a shortcut, `assert c1 == c2`) are one `Dial`, and a dial is one `budget.Unit`: the plan is the best that
can be stated.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from edgeprune_device.errors import GateError, InputError
from torch import nn
from torch.utils._pytree import tree_leaves

from edgeprune.model.checkpoint import safe_load
from edgeprune.pruning import budget, cost
from edgeprune.pruning.channels import Channels

#: Arguments that state a width, by their names in the module's constructor.
_WIDTHS = {"c2", "c3", "c4", "npr"}
#: parse_model rounds `args[0]` up to a multiple of this.
_ROUND = 8
#: The largest reduction that is tried, in channels: a width that cannot be built with less of a reduction stays.
_FARTHEST = 64


@dataclass(frozen=True)
class Knob:
    """A width that a YAML states.

    Attributes:
        row: The row, counted over backbone and head.
        at: The index of the argument in the row's arguments.
        width: The full width, channels.
        share: The width is written as a fraction (`e`) of `args[0]`.
    """

    row: int
    at: int
    width: int
    share: bool


@dataclass(frozen=True)
class Dial:
    """Knobs that turn together, and the groups that they move.

    The positions go below the floor of `budget`, so that a plan made in several rounds is found among them.

    Attributes:
        knobs: Indices into `Portable.knobs`.
        widths: (k,) widths of each knob, the full one first.
        groups: Indices into `Channels.groups`.
        options: (k, groups) kept counts.
    """

    knobs: tuple[int, ...]
    widths: tuple[int, ...]
    groups: tuple[int, ...]
    options: np.ndarray


@dataclass(frozen=True)
class Portable:
    """The widths that the YAML of a model can state.

    Attributes:
        yaml: The model's own YAML, with every width and repeat written out.
        knobs: Every width in it.
        dials: The sets of knobs that may be turned.
    """

    yaml: dict
    knobs: tuple[Knob, ...]
    dials: tuple[Dial, ...]

    def units(self, channels: Channels, scores: np.ndarray) -> list[budget.Unit]:
        """The decisions for `budget.solve`.

        Args:
            channels: The channels of the network.
            scores: (atoms,) cost of removing each atom.
        """
        units = []
        for dial in self.dials:
            loss = budget.losses(channels, scores, dial.groups, dial.options)
            fit = np.isfinite(loss) & (dial.options >= budget.FLOOR * dial.options[0]).all(1)
            if fit.sum() > 1:
                units.append(budget.Unit(dial.groups, dial.options[fit], loss[fit]))
        return units

    def describe(self, channels: Channels, keep: np.ndarray) -> dict:
        """The YAML of the network that keeps the channels of `keep`.

        Args:
            channels: The channels of the network.
            keep: (atoms,) bool, True = keep.

        Raises:
            InputError: `keep` was not chosen from `units`.
        """
        counts = np.array([keep[g.atoms].sum() for g in channels.groups])
        widths = [knob.width for knob in self.knobs]
        for dial in self.dials:
            found = np.flatnonzero((dial.options == counts[list(dial.groups)]).all(1))
            if not len(found):
                raise InputError("no Ultralytics YAML has the widths of this plan; draw it again with --portable")
            for knob in dial.knobs:
                widths[knob] = dial.widths[found[0]]
        return _written(self.yaml, self.knobs, widths)


def stamp(pruned: nn.Module, yaml: dict) -> None:
    """Replace `pruned.yaml` by `yaml`, after building the network from it.

    Args:
        pruned: The pruned network.
        yaml: As `Portable.describe` returned it.

    Raises:
        GateError: The network that stock Ultralytics builds from it has other shapes or other outputs.
    """
    stock = _rebuilt(pruned, yaml)
    wrong = _difference(stock.state_dict(), pruned.state_dict())
    if wrong is None:
        picture = torch.linspace(0, 1e4, yaml.get("channels", 3) * 64 * 64, dtype=torch.float64)
        theirs, ours = (_outputs(m, picture.sin().abs().view(1, -1, 64, 64)) for m in (stock, pruned))
        if [t.shape for t in theirs] != [t.shape for t in ours] or not all(map(_close, theirs, ours)):
            wrong = "the outputs differ"
    if wrong is not None:
        raise GateError(f"stock Ultralytics would not rebuild this network from its YAML: {wrong}; drop --portable")
    pruned.yaml = yaml


def read(model: nn.Module, channels: Channels, multiple: int) -> Portable:
    """Find the widths that the YAML of `model` can state.

    Args:
        model: The network.
        channels: Its channels.
        multiple: Kept counts are multiples of it where the full width is, as in `budget.choose`.

    Raises:
        InputError: Its YAML does not describe the model, or none of its widths can be changed.
    """
    yaml, knobs = _explicit(model.yaml)
    wrong = "it cannot be built"
    if _built(yaml) is not None:
        wrong = _difference(_rebuilt(model, yaml).state_dict(), model.state_dict())
    if wrong is not None:
        raise InputError(
            f"--portable: the YAML in this checkpoint does not describe its network ({wrong}): it was pruned without "
            "--portable, or fused, or changed by hand"
        )
    dials = _dials(_Trials(yaml, knobs, channels), multiple)
    if not dials:
        raise InputError("--portable: no width in the YAML of this model can be reduced")
    return Portable(yaml, knobs, dials)


# -- the YAML --------------------------------------------------------------------------------------------------------
def _explicit(yaml: dict) -> tuple[dict, tuple[Knob, ...]]:
    """The same network without scales: all widths, repeats and arguments that parse_model adds by the scale's letter
    are written out.
    """
    yaml = copy.deepcopy(yaml)
    depth, width, most = yaml.pop("depth_multiple", 1.0), yaml.pop("width_multiple", 1.0), math.inf
    scales, scale = yaml.pop("scales", None), yaml.pop("scale", None)
    if scales:
        scale = scale or next(iter(scales))
        depth, width, most = scales[scale]

    def wide(value: int) -> int:
        return math.ceil(min(value, most) * width / _ROUND) * _ROUND

    knobs = []
    for i, (_, repeats, name, args) in enumerate(_rows(yaml)):
        names, defaults = _arguments(name)
        _rows(yaml)[i][1] = max(round(repeats * depth), 1) if repeats > 1 else repeats
        scaled = [at for at, n in enumerate(names[: len(args)]) if n in ("c2", "npr") and type(args[at]) is int]
        for at in scaled:
            args[at] = wide(args[at])
        if name == "C3k2" and scale in {"m", "l", "x"}:
            args[1:2] = [True]
        if name == "A2C2f" and scale in {"l", "x"}:
            args.extend((True, 1.2))
        if "e" in names and scaled:
            args.extend(defaults[n] for n in names[len(args) : names.index("e") + 1])
        for at, n in enumerate(names[: len(args)]):
            if n in _WIDTHS and type(args[at]) is int:
                knobs.append(Knob(i, at, args[at], False))
            elif n == "e" and scaled:
                knobs.append(Knob(i, at, int(args[0] * args[at]), True))
    return yaml, tuple(knobs)


def _rows(yaml: dict) -> list[list]:
    return yaml["backbone"] + yaml["head"]


def _arguments(module: str) -> tuple[list[str], dict]:
    """The names of the arguments of a row of this module, and the defaults of its constructor."""
    from ultralytics.nn import tasks

    kind = getattr(tasks, module, None)
    if not isinstance(kind, type):  # nn.Upsample and the like
        return [], {}
    parameters = inspect.signature(kind).parameters
    names = list(parameters)
    if names[:2] == ["c1", "c2"]:  # parse_model inserts c1 before c2, and the repeats after it where they are taken
        names = ["c2", *names[3 if names[2:3] == ["n"] else 2 :]]
    return names, {n: p.default for n, p in parameters.items()}


def _written(yaml: dict, knobs: tuple[Knob, ...], widths: list[int]) -> dict:
    """The YAML with these widths of its knobs. In a row, `args[0]` comes before its share `e`."""
    yaml = copy.deepcopy(yaml)
    for knob, width in zip(knobs, widths):
        args = _rows(yaml)[knob.row][3]
        args[knob.at] = _share(width, args[0]) if knob.share else width
    return yaml


def _share(width: int, of: int) -> float:
    """The fraction e for which int(of * e) equals `width` in floating point as well."""
    return width / of if int(of * (width / of)) == width else (width + 0.5) / of


@safe_load()
def _built(yaml: dict) -> nn.Module | None:
    """The network that stock Ultralytics builds from the YAML, on the meta device; None where it refuses the YAML."""
    from ultralytics.nn import tasks

    whole = nn.Module()
    try:
        with torch.device("meta"):
            whole.model, _ = tasks.parse_model(copy.deepcopy(yaml), yaml.get("channels", 3), verbose=False)
    except Exception:  # a foreign constructor can raise anything
        return None
    return whole


@safe_load()
def _rebuilt(model: nn.Module, yaml: dict) -> nn.Module:
    """The network that stock training makes of `model`: a new network of the YAML with the weights that fit.

    Ultralytics' own `load` also takes over class towers of another width, which a change of the class count leaves
    behind.
    """
    with torch.random.fork_rng(devices=[]):
        stock = type(model)(copy.deepcopy(yaml), ch=yaml.get("channels", 3), nc=yaml["nc"], verbose=False)
        stock.load(copy.deepcopy(model), verbose=False)
    return stock


def _difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> str | None:
    """The first name or shape that differs, as text; None where all agree."""
    for name in (*theirs, *ours):
        shapes = [tuple(d[name].shape) if name in d else "missing" for d in (ours, theirs)]
        if shapes[0] != shapes[1]:
            return f"{name}: {shapes[0]} against {shapes[1]}"
    return None


def _outputs(model: nn.Module, picture: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        leaves = tree_leaves(copy.deepcopy(model).double().eval()(picture))
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-9, atol=1e-9)


# -- the groups that a width moves -----------------------------------------------------------------------------------
class _Trials:
    """Builds of the YAML with some knobs turned, and the counts of the groups in them.

    A layer's width is the sum of the counts of the groups that it makes or reads; those equations are solved for the
    counts. A build that contradicts them (only one side of a shortcut was turned) has no counts.
    """

    def __init__(self, yaml: dict, knobs: tuple[Knob, ...], channels: Channels) -> None:
        self.yaml, self.knobs = yaml, knobs
        table = cost.params(channels)
        self.made, self.names = table.made, list(channels.positions)
        self._readers = [i for i, name in enumerate(self.names) if name in channels.inp]
        self.full = np.array([len(g.atoms) for g in channels.groups])
        ties = [(g, tie[0]) for tie in channels.ties for g in tie[1:]]
        equal = np.zeros((len(ties), len(self.full)))
        for row, (a, b) in enumerate(ties):
            equal[row, [a, b]] = 1, -1
        self._equations = np.concatenate([table.made, table.read[self._readers], equal])
        self._solution = np.linalg.pinv(self._equations)
        determined = np.isclose(self._solution @ self._equations, np.eye(len(self.full)), atol=1e-6).all(1)
        self.stays = np.array([g.frozen for g in channels.groups]) | ~determined
        self._seen: dict[tuple, np.ndarray | None] = {}

    def widths(self, turned: dict[int, int]) -> np.ndarray | None:
        """(layers + readers,) widths of the outputs, then of the inputs, with the knobs of `turned` (index -> width)
        turned.
        """
        key = tuple(sorted(turned.items()))
        if key not in self._seen:
            built = _built(_written(self.yaml, self.knobs, [turned.get(i, k.width) for i, k in enumerate(self.knobs)]))
            self._seen[key] = None if built is None else self._widths(dict(built.named_modules()))
        return self._seen[key]

    def _widths(self, modules: dict[str, nn.Module]) -> np.ndarray:
        linear = [isinstance(modules[name], nn.Linear) for name in self.names]
        layers = [(modules[name], kind) for name, kind in zip(self.names, linear)]
        outs = [m.out_features if is_linear else m.out_channels for m, is_linear in layers]
        ins = [m.in_features if is_linear else m.in_channels for m, is_linear in layers]
        return np.array([*outs, *(ins[i] for i in self._readers)])

    def touched(self, turned: dict[int, int]) -> set[int] | None:
        """Groups of the layers whose output width moves; None where the network cannot be built."""
        widths = self.widths(turned)
        if widths is None:
            return None
        moved = (widths != self.widths({}))[: len(self.names)]
        return set(np.flatnonzero(self.made[moved].any(0)).tolist())

    def counts(self, turned: dict[int, int]) -> np.ndarray | None:
        """(groups,) int; None where the network cannot be built, or its widths contradict each other."""
        widths = self.widths(turned)
        if widths is None:
            return None
        change = np.zeros(len(self._equations))  # of the YAML's own network, whose class towers may have other widths
        change[: len(widths)] = widths - self.widths({})
        moved = np.rint(self._solution @ change).astype(np.int64)
        return self.full + moved if np.array_equal(np.rint(self._equations @ moved), change) else None


def _dials(trials: _Trials, multiple: int) -> tuple[Dial, ...]:
    """Every set of knobs that turns together and moves prunable channels only, with all its positions."""
    low = np.minimum(multiple, trials.full)
    step, dials, taken = math.lcm(multiple, _ROUND), [], set()

    def allowed(counts: np.ndarray, groups: np.ndarray) -> bool:
        left, full = counts[groups], trials.full[groups]
        return bool(((left >= low[groups]) & ((left % multiple == 0) | (full % multiple != 0))).all())

    for knobs in _together(trials):
        full = trials.knobs[knobs[0]].width
        if any(trials.knobs[k].width != full for k in knobs):
            continue
        for down in range(step, full, step):  # the dependent widths may need a longer step
            counts = trials.counts(dict.fromkeys(knobs, full - down))
            groups = np.flatnonzero(counts != trials.full) if counts is not None else np.array([], dtype=np.int64)
            if trials.stays[groups].any() or not taken.isdisjoint(groups.tolist()):
                break
            if len(groups) and allowed(counts, groups):
                taken.update(groups.tolist())
                dials.append((knobs, groups, range(full, 0, -down), [trials.full[groups]], [full]))
                break

    # Dials move different groups, so one build shows a position of each of them.
    for i in range(1, max((len(widths) for _, _, widths, *_ in dials), default=0)):
        going = [d for d in dials if i < len(d[2])]
        all_at_once = trials.counts({k: widths[i] for knobs, _, widths, *_ in going for k in knobs})
        for knobs, groups, widths, options, at in going:
            alone = all_at_once is None
            counts = trials.counts(dict.fromkeys(knobs, widths[i])) if alone else all_at_once
            if counts is not None and allowed(counts, groups):
                options.append(counts[groups])
                at.append(widths[i])
    return tuple(
        Dial(tuple(knobs), tuple(at), tuple(groups.tolist()), np.array(options))
        for knobs, groups, _, options, at in dials
    )


def _together(trials: _Trials) -> list[list[int]]:
    """Sets of knobs that have to turn together: they make channels of one group, or the network cannot be built
    otherwise.
    """
    parent, joined, first = list(range(len(trials.knobs))), set(), {}

    def find(k: int) -> int:
        while parent[k] != k:
            k = parent[k]
        return k

    for k in reversed(range(len(trials.knobs))):
        if k in joined:
            continue
        for together, touched in _smallest_turn(trials, k):
            joined.update(together)
            for other in (*together, *(first.setdefault(g, k) for g in touched)):
                parent[find(other)] = find(k)
    classes = defaultdict(list)
    for k in range(len(trials.knobs)):
        classes[find(k)].append(k)
    return list(classes.values())


def _smallest_turn(trials: _Trials, k: int) -> list[tuple[list[int], set[int]]]:
    """The knobs and the groups that move with knob `k` at the smallest turn that can be built.

    The knob turns alone, or with the row that it reads: attention blocks have as many outputs as inputs. Empty where no
    turn can be built.
    """
    knob, whole = trials.knobs[k], []
    if knob.at == 0:
        source = _rows(trials.yaml)[knob.row][0]
        row = knob.row + source if isinstance(source, int) and source < 0 else source
        whole = [j for j, o in enumerate(trials.knobs) if (o.row, o.at, o.width) == (row, 0, knob.width)]
    for down in range(_ROUND, min(_FARTHEST, knob.width - 1) + 1, _ROUND):
        for together in ([k], [k, *whole])[: 1 + bool(whole)]:
            touched = trials.touched(dict.fromkeys(together, knob.width - down))
            if touched is not None:
                return [(together, touched)]
    return []
