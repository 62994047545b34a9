"""Which channels of a network belong together: found by following them through one traced forward pass.

Every tensor in flight carries one *atom* per channel. A convolution makes new atoms; batch norm, activations, pooling,
upsampling and depthwise convolutions pass them on; an addition makes two atoms one; a concatenation appends; a split
takes a part; anything that is not understood freezes the atoms it touches. What is left is, per layer, the atom of each
input and output channel, and removing a channel is removing an atom everywhere at once.

Example: in a C2f with a shortcut, `cv1` makes atoms 0..31; its second half (16..31) meets the bottleneck's `cv2` in an
addition, so the atoms of that `cv2` *are* 16..31. The next `cv2` reads [0..31, 16..31]. Removing atom 20 takes one
filter of `cv1`, one of the bottleneck's `cv2`, and two input channels of the next convolution.

Knows nothing of YOLO, of module names or of which channels are worth keeping.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import torch
from edgeprune_device.errors import InputError
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

#: Operators that map every channel to itself and read no other channel. f(0) = 0 holds for those that matter: the
#: oracle (a masked channel equals a removed one) needs it only where a bias-free consumer reads the channel, and the
#: mask is applied after the activation as well.
_POINTWISE = {
    "silu", "silu_", "relu", "relu_", "leaky_relu", "leaky_relu_", "hardswish", "hardswish_", "sigmoid", "sigmoid_",
    "gelu", "tanh", "hardsigmoid", "mish", "elu", "relu6", "hardtanh", "hardtanh_", "clone", "detach", "contiguous",
    "_to_copy", "alias", "dropout", "native_dropout", "lift_fresh",
}  # fmt: skip
_SPATIAL = {
    "max_pool2d_with_indices", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d",
    "upsample_nearest2d", "upsample_bilinear2d", "constant_pad_nd",
}  # fmt: skip
_NORMS = {"native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "cudnn_batch_norm"}
#: Modules of Ultralytics that reshape by the channel count of their input: it cannot change by parts.
_READ_THEIR_WIDTH = {"Attention", "AAttn"}
#: Operators that look at a tensor's kind (dtype, device), not at its values.
_BLIND = {"new_full", "new_empty", "new_zeros", "new_ones", "empty_like", "zeros_like", "ones_like", "full_like"}
_BINARY = {"add", "add_", "mul", "mul_", "sub", "sub_", "div", "div_"}


class Atoms:
    """Union-find over channels, with the flag *frozen* kept per class."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._frozen: list[bool] = []

    def new(self, count: int) -> np.ndarray:
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        self._frozen.extend([False] * count)
        return np.arange(first, first + count)

    def find(self, atom: int) -> int:
        while self._parent[atom] != atom:
            self._parent[atom] = self._parent[self._parent[atom]]
            atom = self._parent[atom]
        return atom

    def union(self, a: np.ndarray, b: np.ndarray) -> None:
        for left, right in zip(a, b):
            low, high = sorted((self.find(int(left)), self.find(int(right))))
            self._parent[high] = low
            self._frozen[low] |= self._frozen[high]

    def freeze(self, atoms: np.ndarray) -> None:
        for atom in atoms:
            self._frozen[self.find(int(atom))] = True

    def is_frozen(self, atom: int) -> bool:
        return self._frozen[self.find(int(atom))]


@dataclass(frozen=True)
class Group:
    """Atoms that are made and read by exactly the same layers; kept or removed one by one, counted together.

    Example: the hidden width of a bottleneck: `atoms` = 16 atoms, `producers` = ("model.2.m.0.cv1.conv",),
    `consumers` = ("model.2.m.0.cv2.conv",).
    """

    atoms: np.ndarray
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    frozen: bool


@dataclass(frozen=True)
class Channels:
    """The atoms of every layer.

    out: layer name -> (C_out,) atom of each output channel (convolutions, norms, linear layers)
    inp: layer name -> (C_in,) atom of each input channel; absent where the input is not followed
    groups: every atom is in exactly one
    ties: groups (by index) that must keep equal counts: halves of a chunk
    positions: convolution name -> positions of its output map, H*W, at the traced size (for relative MACs)
    taps: convolution name -> weights per pair of an input and an output channel (kh*kw; with an input that is not
        followed, its whole fan-in)
    norm_of: convolution name -> the batch norm that reads its output first
    """

    out: dict[str, np.ndarray]
    inp: dict[str, np.ndarray]
    groups: tuple[Group, ...]
    ties: tuple[tuple[int, ...], ...]
    positions: dict[str, int] = field(default_factory=dict)
    taps: dict[str, int] = field(default_factory=dict)
    norm_of: dict[str, str] = field(default_factory=dict)

    @property
    def atoms(self) -> int:
        return sum(len(g.atoms) for g in self.groups)

    @property
    def prunable(self) -> int:
        """The number that `--ratio` is a fraction of."""
        return sum(len(g.atoms) for g in self.groups if not g.frozen)


class _Tracer(TorchDispatchMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.atoms = Atoms()
        self.labels: dict[int, np.ndarray] = {}  # id(tensor) -> atoms of dimension 1
        self.alive: list[torch.Tensor] = []  # ids are only unique among living objects
        self.out: dict[str, np.ndarray] = {}
        self.inp: dict[str, np.ndarray] = {}
        self.positions: dict[str, int] = {}
        self.taps: dict[str, int] = {}
        self.norm_of: dict[str, str] = {}
        self.made_by: dict[int, str] = {}  # id(tensor) -> the convolution whose output it is
        self.sections: list[list[np.ndarray]] = []
        self.owner = {}
        for name, module in model.named_modules():
            for parameter in module.parameters(recurse=False):
                self.owner[id(parameter)] = (name, module)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.__name__.split(".")[0]
        self.alive.extend(t for t in _tensors(result))
        handler = getattr(self, f"_{name}", None) if name in _HANDLED else None
        if handler is not None:
            handler(result, *args, **(kwargs or {}))
        elif name in _POINTWISE or name in _SPATIAL:
            self._pass_on(result, args[0])
        elif name in _NORMS:
            self._norm(result, *args)
        elif name in _BINARY:
            self._binary(result, args[0], args[1])
        elif name not in _BLIND:
            self._freeze_all(args, kwargs)
        return result

    # -- what is known of a tensor -------------------------------------------------------------------------------
    def _of(self, tensor) -> np.ndarray | None:
        return self.labels.get(id(tensor)) if isinstance(tensor, torch.Tensor) else None

    def _set(self, tensor: torch.Tensor, atoms: np.ndarray | None) -> None:
        if atoms is None:
            self.labels.pop(id(tensor), None)
        else:
            self.labels[id(tensor)] = atoms

    def _freeze_all(self, *values) -> None:
        for tensor in _tensors(values):
            atoms = self._of(tensor)
            if atoms is not None:
                self.atoms.freeze(atoms)

    def _bind(self, table: dict[str, np.ndarray], name: str, atoms: np.ndarray) -> np.ndarray:
        """A layer that is called twice has one set of weights: its channels are the same in both calls."""
        if name in table:
            self.atoms.union(table[name], atoms)
        return table.setdefault(name, atoms)

    # -- operators -----------------------------------------------------------------------------------------------
    def _pass_on(self, result, source) -> None:
        atoms = self._of(source)
        first = next(_tensors(result))
        keeps = atoms is not None and first.ndim >= 2 and first.shape[1] == len(atoms)
        if atoms is not None and not keeps:
            self.atoms.freeze(atoms)
        self._set(first, atoms if keeps else None)

    def _norm(self, result, source, weight, *_) -> None:
        atoms = self._of(source)
        owner = self.owner.get(id(weight))
        if owner is not None and id(source) in self.made_by:
            self.norm_of[self.made_by[id(source)]] = owner[0]
        if atoms is not None and owner is not None:
            self._bind(self.out, owner[0], atoms)
        elif atoms is not None:
            self.atoms.freeze(atoms)
        self._set(next(_tensors(result)), atoms)

    def _convolution(self, result, source, weight, bias, stride, padding, dilation, transposed, outpad, groups) -> None:
        atoms = self._of(source)
        owner = self.owner.get(id(weight))
        out_channels, in_channels = result.shape[1], source.shape[1]
        if owner is not None:
            self.made_by[id(result)] = owner[0]
            self.positions[owner[0]] = result.shape[-1] * result.shape[-2]
            followed = groups == 1 and not transposed and atoms is not None
            self.taps[owner[0]] = weight[0, 0].numel() if followed else weight[0].numel()
        if owner is not None and groups == 1 and not transposed:
            if atoms is not None:
                self._bind(self.inp, owner[0], atoms)
            self._set(result, self._bind(self.out, owner[0], self.atoms.new(out_channels)))
        elif owner is not None and groups == in_channels == out_channels and atoms is not None:
            self._set(result, self._bind(self.out, owner[0], atoms))  # depthwise
        else:
            self._freeze_all(source)
            if owner is not None:
                fixed = self._bind(self.out, owner[0], self.atoms.new(out_channels))
                self.atoms.freeze(fixed)
                self._set(result, fixed)

    def _binary(self, result, left, right) -> None:
        a, b = self._of(left), self._of(right)
        if a is not None and b is not None and len(a) == len(b):
            self.atoms.union(a, b)
            self._set(result, a)
            return
        known, other = (a, right) if a is not None else (b, left)
        channelwise = isinstance(other, torch.Tensor) and other.ndim >= 3 and other.shape[-3] != 1
        if known is None:
            self._set(result, None)
        elif channelwise or result.ndim < 2 or result.shape[1] != len(known):
            self._freeze_all(left, right)
            self._set(result, None)
        else:
            self._set(result, known)

    def _cat(self, result, tensors, dim=0) -> None:
        atoms = [self._of(t) for t in tensors]
        if dim % result.ndim == 1 and all(a is not None for a in atoms):
            self._set(result, np.concatenate(atoms))
            return
        self._freeze_all(tensors)
        if dim % result.ndim == 1:  # a followed part beside one that is not: all of it stays
            fixed = self.atoms.new(result.shape[1])
            self.atoms.freeze(fixed)
            self._set(result, fixed)

    def _split(self, result, source, size, dim=0) -> None:
        self._take(result, source, dim)

    def _split_with_sizes(self, result, source, sizes, dim=0) -> None:
        self._take(result, source, dim)

    def _take(self, parts, source, dim) -> None:
        atoms = self._of(source)
        if atoms is None:
            return
        if dim % source.ndim != 1:
            self.atoms.freeze(atoms)
            return
        bounds = np.cumsum([p.shape[1] for p in parts])[:-1]
        pieces = np.split(atoms, bounds)
        for part, piece in zip(parts, pieces):
            self._set(part, piece)
        if len({len(p) for p in pieces}) == 1:
            self.sections.append(pieces)  # equal parts must stay equal: that is what chunk() means
        else:
            self.atoms.freeze(atoms)

    def _slice(self, result, source, dim=0, start=None, end=None, step=1) -> None:
        atoms = self._of(source)
        if atoms is None:
            return
        if dim % source.ndim == 1 and result.shape[1] != source.shape[1]:
            self.atoms.freeze(atoms)
            return
        self._set(result, atoms)


    def _mean(self, result, source, dim=None, *_, **__) -> None:
        over = {d % source.ndim for d in (dim or range(source.ndim))}
        if over & {0, 1}:
            self._freeze_all(source)
        else:
            self._pass_on(result, source)


_HANDLED = {"convolution", "cat", "split", "split_with_sizes", "slice", "mean"}


def _tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        yield from itertools.chain.from_iterable(_tensors(v) for v in value)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def trace(model: nn.Module, imgsz: tuple[int, int] = (64, 64)) -> Channels:
    """Follow the channels of `model` through one forward pass.

    Args:
        model: any network that takes a (1, 3, H, W) float picture; it is run once, in eval mode, and not changed.
        imgsz: (H, W) of the traced picture; it decides `positions` and nothing else.

    Raises:
        InputError: the network has no convolution whose output could be pruned.
    """
    parameter = next(model.parameters())
    training = model.training
    tracer = _Tracer(model)
    picture = torch.zeros(1, 3, *imgsz, dtype=parameter.dtype, device=parameter.device)
    fixed = [m for m in model.modules() if type(m).__name__ in _READ_THEIR_WIDTH]
    hooks = [m.register_forward_pre_hook(lambda _, inputs: tracer._freeze_all(inputs)) for m in fixed]
    try:
        model.eval()
        with torch.no_grad(), tracer:
            result = model(picture)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    # Ultralytics returns (detections, what the loss needs); the features inside the second part are not outputs.
    tracer._freeze_all(result[0] if isinstance(result, (tuple, list)) else result)
    channels = _collect(tracer)
    if not channels.prunable:
        raise InputError("nothing to prune: no channel of this model could be followed from one layer to the next")
    return channels


def _collect(tracer: _Tracer) -> Channels:
    def root(atoms):
        return np.array([tracer.atoms.find(int(a)) for a in atoms], dtype=np.int64)

    out = {name: root(atoms) for name, atoms in tracer.out.items()}
    inp = {name: root(atoms) for name, atoms in tracer.inp.items()}
    sections = [[root(p) for p in pieces] for pieces in tracer.sections]

    # Compact numbering, in the order in which the layers made them.
    seen = itertools.chain.from_iterable(atoms.tolist() for atoms in (*out.values(), *inp.values()))
    order = {atom: i for i, atom in enumerate(dict.fromkeys(seen))}
    frozen = np.array([tracer.atoms.is_frozen(a) for a in order], dtype=bool)

    def compact(atoms):
        return np.array([order[a] for a in atoms.tolist()], dtype=np.int64)

    out = {name: compact(atoms) for name, atoms in out.items()}
    inp = {name: compact(atoms) for name, atoms in inp.items()}
    sections = [[compact(p) for p in pieces] for pieces in sections]

    signature: list[list] = [[] for _ in order]
    producers, consumers = defaultdict(list), defaultdict(list)
    for tag, table, layers in (("o", out, producers), ("i", inp, consumers)):
        for name, atoms in table.items():
            for atom, times in zip(*np.unique(atoms, return_counts=True)):
                signature[atom].append((tag, name, int(times)))
                layers[atom].append(name)
    for i, pieces in enumerate(sections):
        for j, piece in enumerate(pieces):
            for atom in np.unique(piece):
                signature[atom].append(("s", i, j))
    members: dict[tuple, list[int]] = defaultdict(list)
    for atom in range(len(order)):
        members[(bool(frozen[atom]), *signature[atom])].append(atom)

    groups, of = [], np.empty(len(order), dtype=np.int64)
    for key, atoms in members.items():
        of[atoms] = len(groups)
        first = atoms[0]
        groups.append(Group(np.array(atoms), tuple(producers[first]), tuple(consumers[first]), key[0]))
    return _tie(Channels(out, inp, tuple(groups), (), tracer.positions, tracer.taps, tracer.norm_of), sections, of)


def _tie(channels: Channels, sections: list[list[np.ndarray]], of: np.ndarray) -> Channels:
    """Tie the groups of equal parts pairwise; freeze what cannot be tied so (a part that mixes unequal groups)."""
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
    classes: dict[int, list[int]] = defaultdict(list)
    for i in range(len(parent)):
        classes[find(i)].append(i)
    for tied in classes.values():
        if frozen.intersection(tied):
            frozen.update(tied)
    groups = tuple(
        Group(g.atoms, g.producers, g.consumers, g.frozen or i in frozen) for i, g in enumerate(channels.groups)
    )
    ties = tuple(tuple(t) for t in classes.values() if len(t) > 1 and not frozen.intersection(t))
    return Channels(channels.out, channels.inp, groups, ties, channels.positions, channels.taps, channels.norm_of)
