"""The coupled channels of a network, found by following channels through one traced forward pass.

Every tensor in flight carries one *atom* per channel. A convolution makes new atoms; batch norm, activations, pooling,
upsampling and depthwise convolutions pass them on; an addition unites two atoms; a concatenation appends; a split takes
a part; an unknown operator freezes the atoms that it touches. The result is, for each layer, the atom of each input and
output channel. Removing a channel is removing its atom from every layer at once.

Example: in a C2f with a shortcut, `cv1` makes atoms 0..31; its second half (16..31) meets the bottleneck's `cv2` in an
addition, so the atoms of that `cv2` *are* 16..31. The next `cv2` reads [0..31, 16..31]. Removing atom 20 removes one
filter of `cv1`, one of the bottleneck's `cv2`, and two input channels of the next convolution.

The module does not depend on YOLO, on module names or on an importance criterion.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from edgeprune_device.errors import InputError
from torch import nn

from edgeprune.pruning import attention
from edgeprune.pruning.attention import Keys
from edgeprune.pruning.layers import Ints, layers
from edgeprune.pruning.tracer import Calls, Tracer


@dataclass(frozen=True)
class Group:
    """Atoms that the same layers make and read. Each is kept or removed separately, and they are counted together.

    Example: the hidden width of a bottleneck: `atoms` = 16 atoms, `producers` = ("model.2.m.0.cv1.conv",), `consumers`
    = ("model.2.m.0.cv2.conv",).

    Attributes:
        atoms: (n,) int64.
        producers: Names of the layers that make these channels.
        consumers: Names of the layers that read these channels.
        frozen: Whether these channels must stay.
    """

    atoms: Ints
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    frozen: bool


@dataclass(frozen=True)
class Channels:
    """The atoms of every layer.

    Attributes:
        out: Layer name -> (C_out,) atom of each output channel (convolutions, norms, linear layers).
        inp: Layer name -> (C_in,) atom of each input channel; absent where the input is not followed.
        groups: Every atom is in exactly one group.
        ties: Groups (by index) that must keep equal shares of their widths, hence equal counts where the widths are
            equal: the parts of a chunk, the heads of an attention block.
        positions: Convolution or linear layer -> the number of uses of each weight at the traced size: H*W of its
            output map, or of its input map if it is transposed. It is used for relative MACs.
        taps: The same layers -> weights per pair of an input and an output channel (kh*kw); the whole fan-in if the
            input is not followed.
        norm_of: Convolution name -> the batch norm that first reads its output.
        scales: Name of a bare parameter with one value per channel (such as A2C2f's gamma) -> its atoms.
        splits: (module name, attribute) -> atoms of each part; the attribute is a list of sizes that the module splits
            by, such as CBLinear's c2s.
        keys: The queries and keys of each attention block that can lose some; no layer reads them.
        attending: The convolutions that make queries, keys and values.
        idle: Layers that the exported network does not have. They cost nothing, and channels that only they make stay.
    """

    out: dict[str, Ints]
    inp: dict[str, Ints]
    groups: tuple[Group, ...]
    ties: tuple[tuple[int, ...], ...]
    positions: dict[str, int] = field(default_factory=dict)
    taps: dict[str, int] = field(default_factory=dict)
    norm_of: dict[str, str] = field(default_factory=dict)
    scales: dict[str, Ints] = field(default_factory=dict)
    splits: dict[tuple[str, str], tuple[Ints, ...]] = field(default_factory=dict)
    keys: tuple[Keys, ...] = ()
    attending: frozenset[str] = frozenset()
    idle: frozenset[str] = frozenset()

    @property
    def atoms(self) -> int:
        """The number of atoms."""
        return sum(len(g.atoms) for g in self.groups)

    @property
    def prunable(self) -> int:
        """The number of atoms that are not frozen; a budget of kind `ratio` is a fraction of it."""
        return sum(len(g.atoms) for g in self.groups if not g.frozen)


def trace(model: nn.Module, imgsz: tuple[int, int] = (64, 64), *, idle: Sequence[str] = ()) -> Channels:
    """Follow the channels of `model` through one forward pass, and through a second one in training mode if some layers
    only train (auxiliary heads).

    Args:
        model: Any network with a (1, 3, H, W) float image as its input. It is not changed.
        imgsz: (H, W) of the traced image, px; only `positions` depends on it.
        idle: Names of modules that the exported network does not have, such as a second head.

    Raises:
        InputError: The network does not run on one image, or no layer's output can be pruned.
    """
    parameter = next(model.parameters(), torch.empty(0))
    picture = torch.zeros(1, 3, *imgsz, dtype=parameter.dtype, device=parameter.device)
    tracer = Tracer(model)
    before = [(module, dict(vars(module))) for module in model.modules()]  # Detect stores the shapes of its inputs
    try:
        keys, attending = attention.followed(model, tracer)
        with torch.no_grad(), Calls(tracer), tracer:
            result = model.eval()(picture)
            # Ultralytics returns (detections, inputs of the loss); the latter include features, which the head reads.
            first, rest = (result[0], result[1:]) if isinstance(result, (tuple, list)) and result else (result, ())
            tracer.freeze_all(first, tracer.unread(rest))
            if layers(model).keys() - tracer.out.keys():
                for module in model.train().modules():
                    if isinstance(module, nn.modules.batchnorm._BatchNorm):
                        module.eval()
                tracer.freeze_all(tracer.unread(model(picture)))
    except Exception as error:  # a foreign forward() can raise anything
        words = " ".join(str(error).split())[:200]
        raise InputError(
            f"{type(model).__name__}: channels cannot be traced ({type(error).__name__}: {words})"
        ) from error
    finally:
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)
    channels = _set_aside(replace(_collect(tracer), keys=keys, attending=attending), idle)
    if not channels.prunable:
        raise InputError(
            f"{type(model).__name__}: nothing to prune; no channel could be traced from one layer to the next"
        )
    return channels


def _set_aside(channels: Channels, modules: Sequence[str]) -> Channels:
    """The channels with the layers of these modules idle, and with the groups that only idle layers make frozen."""
    begins = tuple(f"{module}." for module in modules)
    idle = frozenset(name for name in channels.out if name.startswith(begins)) if begins else frozenset()
    groups = tuple(replace(g, frozen=g.frozen or idle.issuperset(g.producers)) for g in channels.groups)
    ties = tuple(tie for tie in channels.ties if not any(groups[g].frozen for g in tie))
    return replace(channels, groups=groups, ties=ties, idle=idle)


def _collect(tracer: Tracer) -> Channels:
    def root(atoms: Ints) -> Ints:
        return np.array([tracer.atoms.find(int(a)) for a in atoms], dtype=np.int64)

    # Compact numbering, in the order of creation.
    tables = [{name: root(atoms) for name, atoms in table.items()} for table in (tracer.out, tracer.inp)]
    seen = itertools.chain.from_iterable(atoms.tolist() for table in tables for atoms in table.values())
    order = {atom: i for i, atom in enumerate(dict.fromkeys(seen))}
    # An atom that only bare parameters carry is not a layer's channel; atoms that were split together with it stay.
    split = [[root(p) for p in pieces] for pieces in tracer.sections]
    known = [order.keys() >= set(np.concatenate(pieces).tolist()) for pieces in split]
    for pieces in itertools.compress(split, np.logical_not(known)):
        tracer.atoms.freeze(np.concatenate(pieces))
    frozen = np.array([tracer.atoms.is_frozen(a) for a in order], dtype=bool)

    def compact(atoms: Ints) -> Ints:
        return np.array([order[a] for a in root(atoms).tolist()], dtype=np.int64)

    out, inp = ({name: compact(atoms) for name, atoms in table.items()} for table in tables)
    scales = {name: root(atoms) for name, atoms in tracer.scales.items()}
    scales = {name: compact(atoms) for name, atoms in scales.items() if order.keys() >= set(atoms.tolist())}
    splits = {place: tuple(map(compact, pieces)) for place, pieces in tracer.splits.items()}
    sections = [[compact(p) for p in pieces] for pieces in itertools.compress(split, known)]
    shares = [[compact(p) for p in pieces] for pieces in tracer.shares]

    signature: list[list[tuple[str, str | int, int]]] = [[] for _ in order]
    producers: dict[int, list[str]] = defaultdict(list)
    consumers: dict[int, list[str]] = defaultdict(list)
    for tag, table, names in (("o", out, producers), ("i", inp, consumers)):
        for name, atoms in table.items():
            for atom, times in zip(*np.unique(atoms, return_counts=True)):
                signature[atom].append((tag, name, int(times)))
                names[atom].append(name)
    parts: list[Sequence[Ints]] = [*sections, *shares, *splits.values()]
    for i, part in enumerate(parts):
        for j, piece in enumerate(part):
            for atom in np.unique(piece):
                signature[atom].append(("s", i, j))
    members: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for atom in range(len(order)):
        alike = (bool(frozen[atom]), *signature[atom])
        members[alike].append(atom)

    groups: list[Group] = []
    of = np.empty(len(order), dtype=np.int64)
    for joined in members.values():
        first = joined[0]
        of[joined] = len(groups)
        groups.append(Group(np.array(joined), tuple(producers[first]), tuple(consumers[first]), bool(frozen[first])))
    channels = Channels(
        out, inp, tuple(groups), (), tracer.positions, tracer.taps, tracer.norm_of, scales=scales, splits=splits
    )
    return _tie(channels, sections, shares, of)


def _tie(channels: Channels, sections: list[list[Ints]], shares: list[list[Ints]], of: Ints) -> Channels:
    """Tie the groups of equal parts pairwise; freeze the groups that cannot be tied (a part with unequal groups). Parts
    that keep equal shares are tied if each is one group.
    """
    frozen = {i for i, g in enumerate(channels.groups) if g.frozen}
    parent = list(range(len(channels.groups)))

    def find(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for pieces in sections:
        runs = [list(dict.fromkeys(of[p].tolist())) for p in pieces]
        sizes = [[len(channels.groups[g].atoms) for g in run] for run in runs]
        pairwise = all(s == sizes[0] for s in sizes)
        for column in zip(*runs) if pairwise else [tuple(itertools.chain.from_iterable(runs))]:
            if pairwise and not frozen.intersection(column):
                for g in column[1:]:
                    parent[find(g)] = find(column[0])
            else:
                frozen.update(column)
    for pieces in shares:
        runs = [list(dict.fromkeys(of[p].tolist())) for p in pieces]
        column = tuple(itertools.chain.from_iterable(runs))
        if all(len(run) == 1 for run in runs) and not frozen.intersection(column):
            for g in column[1:]:
                parent[find(g)] = find(column[0])
        else:
            frozen.update(column)
    classes: dict[int, list[int]] = defaultdict(list)
    for i in range(len(parent)):
        classes[find(i)].append(i)
    for tied in classes.values():
        if frozen.intersection(tied):
            frozen.update(tied)
    groups = tuple(replace(g, frozen=g.frozen or i in frozen) for i, g in enumerate(channels.groups))
    ties = tuple(tuple(t) for t in classes.values() if len(t) > 1 and not frozen.intersection(t))
    return replace(channels, groups=groups, ties=ties)
