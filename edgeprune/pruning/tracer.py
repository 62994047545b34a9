"""Following channels through a forward pass that runs: one label per tensor, one rule per operator.

`Tracer`, a dispatch mode, sees the operators below Python. Two things never reach them: that `view(b, 64, -1)` was
written with a number, and that a width was read from one tensor's shape to reshape another. `Calls`, a function mode,
sees them where Python calls torch.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

#: Layers that surgery can cut.
LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm)

#: Operators that map every value by itself, and zero to zero: a masked channel stays zero.
_POINTWISE = {
    "silu", "silu_", "relu", "relu_", "leaky_relu", "leaky_relu_", "hardswish", "hardswish_", "gelu", "tanh", "mish",
    "elu", "relu6", "hardtanh", "hardtanh_", "neg", "clone", "detach", "contiguous", "_to_copy", "alias", "dropout",
    "native_dropout", "lift_fresh",
}  # fmt: skip
#: The same, but zero becomes something else.
_LOUD = {"sigmoid", "sigmoid_", "hardsigmoid", "hardsigmoid_", "exp"}
#: Operators over the last two dimensions.
_SPATIAL = {
    "max_pool2d_with_indices", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d",
    "upsample_nearest2d", "upsample_bilinear2d", "constant_pad_nd",
}  # fmt: skip
_RESHAPES = {"view", "_unsafe_view", "_reshape_alias", "squeeze", "unsqueeze"}
_NORMS = {"native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "cudnn_batch_norm"}
#: Operators that read a tensor's dtype and device, not its values.
_BLIND = {"new_full", "new_empty", "new_zeros", "new_ones", "empty_like", "zeros_like", "ones_like", "full_like"}
_BINARY = {"add", "add_", "mul", "mul_", "sub", "sub_", "div", "div_"}


class Atoms:
    """Union-find over channels, with the flag *frozen* for each class."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._frozen: list[bool] = []

    def new(self, count: int) -> np.ndarray:
        """Make `count` new atoms, each a class of its own."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        self._frozen.extend([False] * count)
        return np.arange(first, first + count)

    def find(self, atom: int) -> int:
        """The root of an atom's class."""
        while self._parent[atom] != atom:
            self._parent[atom] = self._parent[self._parent[atom]]
            atom = self._parent[atom]
        return atom

    def union(self, a: np.ndarray, b: np.ndarray) -> None:
        """Unite the atoms of `a` and `b` pairwise; a class is frozen if either part was."""
        for left, right in zip(a, b):
            low, high = sorted((self.find(int(left)), self.find(int(right))))
            self._parent[high] = low
            self._frozen[low] |= self._frozen[high]

    def freeze(self, atoms: np.ndarray) -> None:
        """Freeze the classes of these atoms."""
        for atom in atoms:
            self._frozen[self.find(int(atom))] = True

    def is_frozen(self, atom: int) -> bool:
        """Whether the class of an atom is frozen."""
        return self._frozen[self.find(int(atom))]


class Label(NamedTuple):
    """The knowledge about a tensor.

    Attributes:
        atoms: (n,) int64, the atom of each entry along the followed dimension.
        dim: The followed dimension.
        quiet: The tensor is zero wherever an atom is masked.
    """

    atoms: np.ndarray
    dim: int
    quiet: bool = True


class Width(int):
    """The length of a followed dimension, as read from a shape. A calculation with it freezes it: the result is a
    number that will not follow.
    """

    def __new__(cls, label: Label, atoms: Atoms) -> Width:
        self = super().__new__(cls, len(label.atoms))
        self.atoms, self.freeze = label.atoms, lambda: atoms.freeze(label.atoms)
        return self


def _freezing(operator: str):
    def method(self, *others):
        self.freeze()
        return getattr(int, operator)(self, *others)

    return method


for _name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "pow"):
    setattr(Width, f"__{_name}__", _freezing(f"__{_name}__"))
    setattr(Width, f"__r{_name}__", _freezing(f"__r{_name}__"))
Width.__float__ = _freezing("__float__")


class Calls(TorchFunctionMode):
    """Handles the calls that Python makes to torch, where they tell more than the operators that follow from them.

    Args:
        tracer: The tracer of the same forward pass.
    """

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, tracer = kwargs or {}, self.tracer
        name = getattr(func, "__name__", "")
        if name == "__get__":
            return self._shape(func(*args), args[0]) if func.__self__ is torch.Tensor.shape else func(*args)
        if name == "size":
            return self._shape(func(*args, **kwargs), *args, **kwargs)
        if func is nn.functional.linear:
            return tracer.linear(*args, **kwargs)
        if name in ("split", "split_with_sizes", "chunk"):
            sizes = None if name == "chunk" else args[1] if len(args) > 1 else next(iter(kwargs.values()), 0)
            tracer.sizes = sizes
        result = func(*args, **kwargs)
        used = [w for w in flat((args, kwargs)) if isinstance(w, Width)]
        label = tracer.of(result) if name in ("view", "reshape") else None
        if label is not None:
            sizes = [s for s in flat((args[1:], kwargs)) if not isinstance(s, torch.Tensor)]
            size = sizes[label.dim] if len(sizes) == result.ndim else None
            if isinstance(size, Width) and np.array_equal(size.atoms, label.atoms):
                used.remove(size)
            elif type(size) is not int or size != -1:
                tracer.atoms.freeze(label.atoms)  # written as a number
        for width in used:
            width.freeze()
        return result

    def _shape(self, shape, tensor, dim=None):
        label = self.tracer.of(tensor)
        if label is None:
            return shape
        width = Width(label, self.tracer.atoms)
        if isinstance(shape, int):
            return width if dim % tensor.ndim == label.dim else shape
        return torch.Size([*shape[: label.dim], width, *shape[label.dim + 1 :]])


class Tracer(TorchDispatchMode):
    """Follows the channels of a model through every operator of a forward pass.

    Args:
        model: The network.

    Attributes:
        atoms: The atoms made so far.
        labels: id(tensor) -> its label.
        out: See `channels.Channels`, as are `inp`, `scales`, `splits`, `positions`, `taps` and `norm_of`.
        sections: The parts of each chunk, as atoms.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.atoms = Atoms()
        self.labels: dict[int, Label] = {}  # by id(tensor)
        self.alive: list[torch.Tensor] = []  # ids are only unique among living objects
        self.read: set[int] = set()  # ids of the tensors that an operator has taken
        self.out: dict[str, np.ndarray] = {}
        self.inp: dict[str, np.ndarray] = {}
        self.scales: dict[str, np.ndarray] = {}
        self.splits: dict[tuple[str, str], list[np.ndarray]] = {}
        self.positions: dict[str, int] = {}
        self.taps: dict[str, int] = {}
        self.norm_of: dict[str, str] = {}
        self.made_by: dict[int, str] = {}  # id(tensor) -> the convolution whose output it is
        self.sections: list[list[np.ndarray]] = []
        self.sizes = None  # the sizes given to the split under way; None: a chunk
        self.asleep = False
        self.owner: dict[int, tuple[str, nn.Module, str] | None] = {}  # None: shared by several, which cannot be cut
        self.lists: dict[int, list[tuple[str, str]]] = defaultdict(list)
        for name, module in model.named_modules():
            for key, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
                known = id(parameter) in self.owner
                self.owner[id(parameter)] = None if known else (name, module, key)
            for key, value in vars(module).items():
                if type(value) is list:
                    self.lists[id(value)].append((name, key))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if self.asleep:
            return result
        name = func.__name__.split(".")[0]
        self.alive.extend(t for t in flat(result) if isinstance(t, torch.Tensor))
        self.read.update(id(t) for t in flat((args, kwargs)) if isinstance(t, torch.Tensor))
        handler = getattr(self, f"_on_{name}", None)
        if handler is not None:
            handler(result, *args, **(kwargs or {}))
        elif name in _POINTWISE or name in _LOUD:
            self._pass_on(result, args[0], loud=name in _LOUD)
        elif name in _SPATIAL:
            self._spatial(result, *args)
        elif name in _RESHAPES:
            self._reshape(result, args[0])
        elif name in _NORMS:
            self._norm(result, *args)
        elif name in _BINARY:
            self._binary(name.strip("_"), result, args[0], args[1])
        elif name not in _BLIND:
            self.freeze_all(args, kwargs)
        return result

    # -- labels --------------------------------------------------------------------------------------------------
    def of(self, tensor) -> Label | None:
        """The label of a tensor; None where it has none. A bare scale (one value per channel) gets its label here."""
        if id(tensor) not in self.labels and isinstance(tensor, nn.Parameter) and len(tensor.shape) == 1 < len(tensor):
            owner = self.owner.get(id(tensor))
            if owner is not None and not isinstance(owner[1], LAYERS):  # a bare scale, one value per channel
                name = f"{owner[0]}.{owner[2]}".lstrip(".")
                self.labels[id(tensor)] = Label(self._bind(self.scales, name, self.atoms.new(len(tensor))), 0)
        return self.labels.get(id(tensor)) if isinstance(tensor, torch.Tensor) else None

    def _set(self, tensor: torch.Tensor, label: Label | None) -> None:
        """Give a tensor its label. A label that does not fit the tensor freezes its atoms."""
        if label is not None and not (label.dim < tensor.ndim and tensor.shape[label.dim] == len(label.atoms)):
            self.atoms.freeze(label.atoms)
            label = None
        if label is None:
            self.labels.pop(id(tensor), None)
        else:
            self.labels[id(tensor)] = label

    def freeze_all(self, *values) -> None:
        """Freeze the atoms of all tensors in these values."""
        for tensor in flat(values):
            if id(tensor) in self.labels:
                self.atoms.freeze(self.labels[id(tensor)].atoms)

    def unread(self, result) -> list[torch.Tensor]:
        """The tensors of a result that no operator has read."""
        return [t for t in flat(result) if isinstance(t, torch.Tensor) and id(t) not in self.read]

    def _bind(self, table: dict[str, np.ndarray], name: str, atoms: np.ndarray) -> np.ndarray:
        """Enter a layer's atoms in a table. A layer that is called twice has one set of weights: its channels are the
        same in both calls.
        """
        if name in table:
            self.atoms.union(table[name], atoms)
        return table.setdefault(name, atoms)

    def _layer(self, weight) -> str | None:
        """The name of the layer that surgery would cut."""
        owner = self.owner.get(id(weight))
        return owner[0] if owner is not None and isinstance(owner[1], LAYERS) else None

    def _unite(self, labels: list[Label | None]) -> Label | None:
        """One label for tensors that are combined elementwise."""
        known = [label for label in labels if label is not None]
        if len(known) == len(labels) and len({(label.dim, len(label.atoms)) for label in known}) == 1:
            for label in known[1:]:
                self.atoms.union(known[0].atoms, label.atoms)
            return known[0]._replace(quiet=all(label.quiet for label in known))
        for label in known:
            self.atoms.freeze(label.atoms)
        return None

    # -- operators -----------------------------------------------------------------------------------------------
    def _pass_on(self, result, source, loud=False) -> None:
        label = self.of(source)
        self._set(next(flat(result)), label and label._replace(quiet=label.quiet and not loud))

    def _spatial(self, result, source, *args) -> None:
        label = self.of(source)
        if label is not None and label.dim != source.ndim - 3:
            self.freeze_all(source)
            label = None
        first = next(flat(result))
        padded = len(args) == 2 and isinstance(args[1], (int, float)) and args[1] != 0  # constant_pad_nd with a value
        self._set(first, label and label._replace(quiet=label.quiet and not padded))

    def _reshape(self, result, source) -> None:
        """The dimension stays whole if as many values stand before it as before; the other dimensions do not matter."""
        label = self.of(source)
        if label is None:
            return
        before = math.prod(source.shape[: label.dim])
        for dim, size in enumerate(result.shape):
            if size == len(label.atoms) and math.prod(result.shape[:dim]) == before:
                self._set(result, label._replace(dim=dim))
                return
        self.freeze_all(source)

    def _on_permute(self, result, source, dims) -> None:
        label = self.of(source)
        self._set(result, label and label._replace(dim=[d % source.ndim for d in dims].index(label.dim)))

    def _on_transpose(self, result, source, a, b) -> None:
        order = list(range(source.ndim))
        order[a], order[b] = order[b], order[a]
        self._on_permute(result, source, order)

    def _norm(self, result, source, weight, *_) -> None:
        label, name = self.of(source), self._layer(weight)
        if name is not None and id(source) in self.made_by:
            self.norm_of[self.made_by[id(source)]] = name
        if label is not None and (name is None or label.dim != 1):
            self.freeze_all(source)
            label = None
        first = next(flat(result))
        self._set(first, label and Label(self._bind(self.out, name, label.atoms), 1))

    def _on_convolution(
        self, result, source, weight, bias, stride, padding, dilation, transposed, outpad, groups
    ) -> None:
        label, name = self.of(source), self._layer(weight)
        if name is None:
            self.freeze_all(source)
            return
        self.made_by[id(result)] = name
        self.positions[name] = (source if transposed else result).shape[2:].numel()
        if groups == 1:
            self._made(name, weight, result, 1, label if label is not None and label.dim == 1 else None, source)
            return
        self.taps[name] = weight.numel() // result.shape[1]
        if label is not None and label.dim == 1 and groups == source.shape[1] == result.shape[1] and not transposed:
            self._set(result, Label(self._bind(self.out, name, label.atoms), 1))  # depthwise
            return
        self.freeze_all(source)
        fixed = self._bind(self.out, name, self.atoms.new(result.shape[1]))
        self.atoms.freeze(fixed)
        self._set(result, Label(fixed, 1))

    def linear(self, source, weight, bias=None):
        """Compute a linear layer, in place of the product that it becomes.

        Args:
            source: (..., C_in) its input.
            weight: (C_out, C_in).
            bias: (C_out,) or None.
        """
        label, name = self.of(source), self._layer(weight)
        self.asleep = True
        try:
            result = nn.functional.linear(source, weight, bias)
        finally:
            self.asleep = False
        self.alive.append(result)
        self.read.update((id(source), id(weight)))
        if name is None:
            self.freeze_all(source, weight)
            return result
        last = source.ndim - 1
        self.positions[name] = result.numel() // result.shape[-1]
        self._made(name, weight, result, last, label if label is not None and label.dim == last else None, source)
        return result

    def _made(self, name: str, weight, result, dim: int, label: Label | None, source) -> None:
        """Label the output of a layer whose every output channel reads every input channel. `label` is that of the
        input, if followed.
        """
        width = result.shape[dim]
        self.taps[name] = weight.numel() // (width * (1 if label is None else len(label.atoms)))
        if label is not None:
            self._bind(self.inp, name, label.atoms)
        if label is None or not label.quiet:
            self.freeze_all(source)
        self._set(result, Label(self._bind(self.out, name, self.atoms.new(width)), dim))

    def _binary(self, name: str, result, left, right) -> None:
        a, b = self.of(left), self.of(right)
        if a is not None and b is not None and len(a.atoms) != len(b.atoms):  # one channel over many: a mask
            narrow = left if len(a.atoms) == 1 else right
            self.freeze_all(narrow)
            a, b = (None, b) if narrow is left else (a, None)
        if b is not None and (name == "div" or (a is not None and a.dim - left.ndim != b.dim - right.ndim)):
            self.freeze_all(left, right)  # a division by a masked channel has no defined result
            self._set(result, None)
        elif a is not None and b is not None:
            dim = result.ndim + a.dim - left.ndim
            label = self._unite([a._replace(dim=dim), b._replace(dim=dim)])
            quiet = a.quiet or b.quiet if name == "mul" else a.quiet and b.quiet
            self._set(result, label and label._replace(quiet=quiet))
        elif a is not None or b is not None:
            known, tensor, other = (a, left, right) if a is not None else (b, right, left)
            back = known.dim - tensor.ndim  # counted from the end, as broadcasting does
            if isinstance(other, torch.Tensor) and other.ndim >= -back and other.shape[back] != 1:
                self.freeze_all(left, right)  # a value for each channel that surgery cannot see
                self._set(result, None)
                return
            scales = name in ("mul", "div") or _is_zero(other)
            self._set(result, known._replace(dim=result.ndim + back, quiet=known.quiet and scales))

    def _on_cat(self, result, tensors, dim=0) -> None:
        labels, dim = [self.of(t) for t in tensors], dim % result.ndim
        if all(label is not None and label.dim == dim for label in labels):
            atoms = np.concatenate([label.atoms for label in labels])
            self._set(result, Label(atoms, dim, all(label.quiet for label in labels)))
        elif any(label is not None and label.dim == dim for label in labels):
            self.freeze_all(tensors)
        else:
            self._set(result, self._unite(labels))

    def _on_stack(self, result, tensors, dim=0) -> None:
        label = self._unite([self.of(t) for t in tensors])
        self._set(result, label and label._replace(dim=label.dim + (dim % result.ndim <= label.dim)))

    def _on_split(self, result, source, size, dim=0) -> None:
        label, sizes, self.sizes = self.of(source), self.sizes, None
        if label is None:
            return
        if dim % source.ndim != label.dim:
            for part in result:
                self._set(part, label)
            return
        pieces = np.split(label.atoms, np.cumsum([p.shape[label.dim] for p in result])[:-1])
        for part, piece in zip(result, pieces):
            self._set(part, label._replace(atoms=piece))
        if sizes is None and len({len(p) for p in pieces}) == 1:
            self.sections.append(pieces)  # equal parts must stay equal, as chunk() makes them
        elif sizes is not None and id(sizes) in self.lists:
            for place in self.lists[id(sizes)]:
                for known, piece in zip(self.splits.setdefault(place, pieces), pieces):
                    self.atoms.union(known, piece)
        else:
            self.atoms.freeze(label.atoms)

    _on_split_with_sizes = _on_split

    def _on_slice(self, result, source, dim=0, start=None, end=None, step=1) -> None:
        self._set(result, self.of(source))  # a part of the followed dimension does not fit the label

    def _on_mean(self, result, source, dim=None, keepdim=False, **_) -> None:
        label = self.of(source)
        if label is None:
            return
        over = {d % source.ndim for d in (dim or range(source.ndim))}
        if label.dim in over:
            self.freeze_all(source)
        else:
            self._set(result, label._replace(dim=label.dim - (0 if keepdim else sum(d < label.dim for d in over))))

    _on_sum = _on_mean


def _is_zero(value) -> bool:
    return (not isinstance(value, torch.Tensor) or value.ndim == 0) and float(value) == 0


def flat(value):
    """The leaves of nested lists, tuples and dicts."""
    if isinstance(value, (list, tuple)):
        yield from itertools.chain.from_iterable(flat(v) for v in value)
    elif isinstance(value, dict):
        yield from itertools.chain.from_iterable(flat(v) for v in value.values())
    else:
        yield value
