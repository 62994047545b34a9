"""Plans that an Ultralytics YAML can express, so that stock `YOLO("pruned.pt").train()` keeps the size and the weights.

Stock training rebuilds the network from `model.yaml` and copies the weights that fit. A YAML gives one width for each
row (`args[0]`) and the hidden widths of some blocks (`e`, `c3`, `c4`, `npr`); the constructors derive every other
width. This dependence is observed, not modelled: the network is built on the meta device with a reduced width, and the
widths of its convolutions show the changed groups of channels and by how much they change. Widths that only change
together (a shortcut, `assert c1 == c2`) are one `Dial`, and a dial is one `budget.Unit`: the plan is the best that a
YAML can express.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from edgeprune_device.errors import GateError, InputError
from edgeprune_device.option import named
from torch import nn
from torch.utils._pytree import tree_leaves

from edgeprune.model.checkpoint import safe_load
from edgeprune.pruning import budget, cost
from edgeprune.pruning.channels import Channels
from edgeprune.pruning.layers import Floats, Ints, Mask, layers

#: An Ultralytics YAML, as stored in a network.
Yaml = dict[str, Any]
#: Arguments that set a width, by their names in the module's constructor.
_WIDTHS = {"c2", "c3", "c4", "npr"}
#: parse_model rounds `args[0]` up to a multiple of this.
_ROUND = 8
#: The largest reduction to try, in channels; a width that cannot be built with any smaller reduction stays.
_FARTHEST = 64


@dataclass(frozen=True)
class Knob:
    """A width that a YAML sets.

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
    """Knobs that change together, and the groups that they affect.

    The positions include widths below the floor of `budget`, so that a plan from several rounds is among them.

    Attributes:
        knobs: Indices into `Portable.knobs`.
        widths: (k,) widths of each knob, the full one first.
        groups: Indices into `Channels.groups`.
        options: (k, groups) kept counts.
    """

    knobs: tuple[int, ...]
    widths: tuple[int, ...]
    groups: tuple[int, ...]
    options: Ints


@dataclass(frozen=True)
class Portable:
    """The widths that the YAML of a model can set.

    Attributes:
        yaml: The model's own YAML, with every width and repeat written out.
        knobs: Every width in it.
        dials: The sets of knobs that may be changed.
    """

    yaml: Yaml
    knobs: tuple[Knob, ...]
    dials: tuple[Dial, ...]

    def units(self, channels: Channels, scores: Floats) -> list[budget.Unit]:
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

    def describe(self, channels: Channels, keep: Mask) -> Yaml:
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
            matching = np.flatnonzero((dial.options == counts[list(dial.groups)]).all(1))
            if not len(matching):
                again = named("portable", True)
                raise InputError(f"plan: no Ultralytics YAML can express its widths; make the plan again with {again}")
            for knob in dial.knobs:
                widths[knob] = dial.widths[matching[0]]
        return _written(self.yaml, self.knobs, widths)


def stamp(pruned: nn.Module, yaml: Yaml) -> None:
    """Replace `pruned.yaml` with `yaml`, after a check that it builds the same network.

    Args:
        pruned: The pruned network.
        yaml: The result of `Portable.describe`.

    Raises:
        GateError: The network that stock Ultralytics builds from it has different shapes or outputs.
    """
    stock = _rebuilt(pruned, yaml)
    wrong = _difference(stock.state_dict(), pruned.state_dict())
    if wrong is None:
        picture = torch.linspace(0, 1e4, yaml.get("channels", 3) * 64 * 64, dtype=torch.float64)
        theirs, ours = (_outputs(m, picture.sin().abs().view(1, -1, 64, 64)) for m in (stock, pruned))
        if [t.shape for t in theirs] != [t.shape for t in ours] or not all(map(_close, theirs, ours)):
            wrong = "the outputs differ"
    if wrong is not None:
        raise GateError(
            f"{named('portable', True)}: stock Ultralytics would not rebuild this network from its YAML ({wrong}); "
            "leave the option out"
        )
    network: Any = pruned  # an Ultralytics network has attributes that nn.Module does not declare
    network.yaml = yaml


def read(model: nn.Module, channels: Channels, multiple: int) -> Portable:
    """Find the widths that the YAML of `model` can set.

    Args:
        model: The network.
        channels: Its channels.
        multiple: Kept counts are multiples of it where the full width is, as in `budget.choose`.

    Raises:
        InputError: Its YAML does not describe the model, or none of its widths can be changed.
    """
    network: Any = model  # an Ultralytics network has attributes that nn.Module does not declare
    yaml, knobs = _explicit(network.yaml)
    wrong: str | None = "the YAML cannot be built"
    if _built(yaml) is not None:
        wrong = _difference(_rebuilt(model, yaml).state_dict(), model.state_dict())
    if wrong is not None:
        raise InputError(
            f"{named('portable')}: the YAML in this checkpoint does not describe its network ({wrong}), because it was "
            f"pruned without {named('portable', True)}, fused, or changed by hand; leave the option out"
        )
    dials = _dials(_Trials(yaml, knobs, channels), multiple)
    if not dials:
        raise InputError(
            f"{named('portable')}: no width in the YAML of this model can be reduced; leave the option out"
        )
    return Portable(yaml, knobs, dials)


# -- the YAML --------------------------------------------------------------------------------------------------------
def _explicit(yaml: Yaml) -> tuple[Yaml, tuple[Knob, ...]]:
    """The same network without scales: all widths, repeats and arguments that parse_model derives from the scale are
    explicit.
    """
    yaml = copy.deepcopy(yaml)
    depth, width, most = yaml.pop("depth_multiple", 1.0), yaml.pop("width_multiple", 1.0), math.inf
    scales, scale = yaml.pop("scales", None), yaml.pop("scale", None)
    if scales:
        scale = scale or next(iter(scales))
        depth, width, most = scales[scale]

    def wide(value: int) -> int:
        return int(math.ceil(min(value, most) * width / _ROUND) * _ROUND)

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


def _rows(yaml: Yaml) -> list[list[Any]]:
    return [*yaml["backbone"], *yaml["head"]]


def _arguments(module: str) -> tuple[list[str], dict[str, Any]]:
    """The names of the arguments of a row of this module, and the defaults of its constructor."""
    from ultralytics.nn import tasks

    kind = getattr(tasks, module, None)
    if not isinstance(kind, type):  # nn.Upsample and the like
        return [], {}
    parameters = inspect.signature(kind).parameters
    names = list(parameters)
    if names[:2] == ["c1", "c2"]:  # parse_model inserts c1 before c2, and the repeats after it if the module takes them
        names = ["c2", *names[3 if names[2:3] == ["n"] else 2 :]]
    return names, {n: p.default for n, p in parameters.items()}


def _written(yaml: Yaml, knobs: tuple[Knob, ...], widths: list[int]) -> Yaml:
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
def _built(yaml: Yaml) -> nn.Module | None:
    """The network that stock Ultralytics builds from the YAML, on the meta device; None if the build fails."""
    from ultralytics.nn import tasks

    parse: Any = tasks.parse_model
    whole = nn.Module()
    try:
        with torch.device("meta"):
            whole.model, _ = parse(copy.deepcopy(yaml), yaml.get("channels", 3), verbose=False)
    except Exception:  # a foreign constructor can raise anything
        return None
    return whole


@safe_load()
def _rebuilt(model: nn.Module, yaml: Yaml) -> nn.Module:
    """The network that stock training makes from `model`: a new network from the YAML with the weights that fit.

    Ultralytics' `load` also accepts class towers of another width, which remain after a change of the class count.
    """
    build: Callable[..., Any] = type(model)
    with torch.random.fork_rng(devices=[]):
        stock = build(copy.deepcopy(yaml), ch=yaml.get("channels", 3), nc=yaml["nc"], verbose=False)
        stock.load(copy.deepcopy(model), verbose=False)
    rebuilt: nn.Module = stock
    return rebuilt


def _difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> str | None:
    """The first name or shape that differs, as text, or None."""
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


def _attends(channels: Channels) -> npt.NDArray[np.bool_]:
    """(groups,) whether a group is tied to an attention block, whose widths a YAML sets by another rule."""
    inside = {i for i, group in enumerate(channels.groups) if channels.attending.intersection(group.producers)}
    inside.update(g for tie in channels.ties if inside.intersection(tie) for g in tie)
    return np.isin(np.arange(len(channels.groups)), list(inside))


# -- the groups that a width affects ---------------------------------------------------------------------------------
class _Trials:
    """Builds of the YAML with some changed knobs, and the counts of the groups in them.

    A layer's width is the sum of the counts of the groups that it makes or reads; these equations are solved for the
    counts. A build that contradicts them (only one side of a shortcut was changed) has no counts.
    """

    def __init__(self, yaml: Yaml, knobs: tuple[Knob, ...], channels: Channels) -> None:
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
        self.stays = np.array([g.frozen for g in channels.groups]) | ~determined | _attends(channels)
        self._unturned = self._widths_of(_written(yaml, knobs, [knob.width for knob in knobs]))
        self._seen: dict[tuple[tuple[int, int], ...], Ints | None] = {}

    def moved(self, turned: dict[int, int]) -> Ints | None:
        """The change of every width with the knobs of `turned` (index -> width).

        Returns:
            (layers + readers,) changes of the outputs, then of the inputs; None if the network cannot be built.
        """
        key = tuple(sorted(turned.items()))
        if key not in self._seen:
            turns = [turned.get(i, k.width) for i, k in enumerate(self.knobs)]
            self._seen[key] = self._widths_of(_written(self.yaml, self.knobs, turns))
        widths = self._seen[key]
        return None if widths is None or self._unturned is None else widths - self._unturned

    def _widths_of(self, yaml: Yaml) -> Ints | None:
        built = _built(yaml)
        if built is None:
            return None
        known = layers(built)
        convs = {name: layer for name, layer in known.items() if isinstance(layer, nn.modules.conv._ConvNd)}
        linear = {name: layer for name, layer in known.items() if isinstance(layer, nn.Linear)}
        outs = [linear[n].out_features if n in linear else convs[n].out_channels for n in self.names]
        ins = [linear[n].in_features if n in linear else convs[n].in_channels for n in self.names]
        return np.array([*outs, *(ins[i] for i in self._readers)])

    def touched(self, turned: dict[int, int]) -> set[int] | None:
        """Groups of the layers whose output width changes; None if the network cannot be built."""
        change = self.moved(turned)
        if change is None:
            return None
        made = self.made[change[: len(self.names)] != 0]
        return set(np.flatnonzero(made.any(0)).tolist())

    def counts(self, turned: dict[int, int]) -> Ints | None:
        """(groups,) int; None if the network cannot be built, or its widths contradict each other."""
        moved = self.moved(turned)
        if moved is None:
            return None
        change = np.zeros(len(self._equations))  # in the YAML's own network, whose class towers may have other widths
        change[: len(moved)] = moved
        steps: Ints = np.rint(self._solution @ change).astype(np.int64)
        return self.full + steps if np.array_equal(np.rint(self._equations @ steps), change) else None


@dataclass
class _Draft:
    """A dial whose positions are being built.

    Attributes:
        knobs: The knobs of the dial.
        groups: The groups that it affects.
        tries: The widths to build, the full one first.
        widths: The allowed widths that were built.
        options: The kept counts at each width.
    """

    knobs: list[int]
    groups: Ints
    tries: range
    widths: list[int]
    options: list[Ints]


def _dials(trials: _Trials, multiple: int) -> tuple[Dial, ...]:
    """Every set of knobs that changes together and affects prunable channels only, with all its positions."""
    low = np.minimum(multiple, trials.full)
    step = math.lcm(multiple, _ROUND)
    drafts: list[_Draft] = []
    taken: set[int] = set()

    def allowed(counts: Ints, groups: Ints) -> bool:
        left, full = counts[groups], trials.full[groups]
        return bool(((left >= low[groups]) & ((left % multiple == 0) | (full % multiple != 0))).all())

    for knobs in _together(trials):
        full = trials.knobs[knobs[0]].width
        if any(trials.knobs[k].width != full for k in knobs):
            continue
        for down in range(step, full, step):  # the dependent widths may need a larger step
            counts = trials.counts(dict.fromkeys(knobs, full - down))
            if counts is None:
                continue
            groups = np.flatnonzero(counts != trials.full)
            if trials.stays[groups].any() or not taken.isdisjoint(groups.tolist()):
                break
            if len(groups) and allowed(counts, groups):
                taken.update(groups.tolist())
                drafts.append(_Draft(knobs, groups, range(full, 0, -down), [full], [trials.full[groups]]))
                break

    # Dials affect different groups, so one build shows one position of each dial.
    for i in range(1, max((len(draft.tries) for draft in drafts), default=0)):
        going = [draft for draft in drafts if i < len(draft.tries)]
        all_at_once = trials.counts({k: draft.tries[i] for draft in going for k in draft.knobs})
        for draft in going:
            alone = all_at_once is None
            counts = trials.counts(dict.fromkeys(draft.knobs, draft.tries[i])) if alone else all_at_once
            if counts is not None and allowed(counts, draft.groups):
                draft.options.append(counts[draft.groups])
                draft.widths.append(draft.tries[i])
    return tuple(
        Dial(tuple(draft.knobs), tuple(draft.widths), tuple(draft.groups.tolist()), np.array(draft.options))
        for draft in drafts
    )


def _together(trials: _Trials) -> list[list[int]]:
    """Sets of knobs that must change together: they make channels of one group, or the network cannot be built
    otherwise.
    """
    parent = list(range(len(trials.knobs)))
    joined: set[int] = set()
    first: dict[int, int] = {}

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
    classes: dict[int, list[int]] = defaultdict(list)
    for k in range(len(trials.knobs)):
        classes[find(k)].append(k)
    return list(classes.values())


def _smallest_turn(trials: _Trials, k: int) -> list[tuple[list[int], set[int]]]:
    """The knobs and the groups that change with knob `k` at the smallest reduction that can be built.

    The knob changes alone, or with the row that it reads, because attention blocks have as many outputs as inputs.
    Empty if no reduction can be built.
    """
    knob = trials.knobs[k]
    whole: list[int] = []
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
