"""Follows channels through a running forward pass, with one label per tensor and one rule per operator.

`Tracer`, a dispatch mode, sees the operators below Python. Two facts never reach them: a number in `view(b, 64, -1)`,
and a width that was read from one tensor's shape to reshape another. `Calls`, a function mode, sees both where Python
calls torch.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from edgeprune.pruning.layers import Ints, Layer

#: The keyword arguments of an operator, as torch passes them to a mode.
_Named = dict[str, Any] | None

#: Elementwise operators that map zero to zero, so that a masked channel stays zero.
_POINTWISE = {
    "silu", "silu_", "relu", "relu_", "leaky_relu", "leaky_relu_", "hardswish", "hardswish_", "gelu", "tanh", "mish",
    "elu", "relu6", "hardtanh", "hardtanh_", "neg", "clone", "detach", "contiguous", "_to_copy", "alias", "dropout",
    "native_dropout", "lift_fresh",
}  # fmt: skip
#: Elementwise operators that do not map zero to zero.
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

    def new(self, count: int) -> Ints:
        """Make `count` new atoms, each in its own class."""
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

    def union(self, a: Ints, b: Ints) -> None:
        """Unite the atoms of `a` and `b` pairwise; a class is frozen if either part was."""
        for left, right in zip(a, b):
            low, high = sorted((self.find(int(left)), self.find(int(right))))
            self._parent[high] = low
            self._frozen[low] |= self._frozen[high]

    def freeze(self, atoms: Ints) -> None:
        """Freeze the classes of these atoms."""
        for atom in atoms:
            self._frozen[self.find(int(atom))] = True

    def is_frozen(self, atom: int) -> bool:
        """Whether the class of an atom is frozen."""
        return self._frozen[self.find(int(atom))]


class Label(NamedTuple):
    """The followed dimension of a tensor.

    Attributes:
        atoms: (n,) int64, the atom of each entry along the followed dimension.
        dim: The followed dimension.
        quiet: Whether the tensor is zero for every masked atom.
    """

    atoms: Ints
    dim: int
    quiet: bool = True


class _Followed(NamedTuple):
    """A tensor that has a label."""

    tensor: torch.Tensor
    label: Label

    @property
    def back(self) -> int:
        """The followed dimension, counted from the end, as broadcasting does."""
        return self.label.dim - self.tensor.ndim


class Width(int):
    """The length of a followed dimension, read from a shape. A calculation with it freezes its atoms, because the
    result is a constant number.

    Args:
        label: The label of the tensor whose shape was read.
        known: The atoms of the trace.

    Attributes:
        atoms: (n,) int64, the atoms along the dimension.
    """

    atoms: Ints
    _known: Atoms

    def __new__(cls, label: Label, known: Atoms) -> Width:
        width = super().__new__(cls, len(label.atoms))
        width.atoms, width._known = label.atoms, known
        return width

    def freeze(self) -> None:
        """Freeze the atoms of the dimension."""
        self._known.freeze(self.atoms)


def _freezing(operator: str) -> Callable[..., Any]:
    def method(self: Width, *others: Any) -> Any:
        self.freeze()
        return getattr(int, operator)(self, *others)

    return method


_CALCULATIONS = ("add", "sub", "mul", "floordiv", "truediv", "mod", "pow")
for _name in (*_CALCULATIONS, *(f"r{name}" for name in _CALCULATIONS), "float"):
    setattr(Width, f"__{_name}__", _freezing(f"__{_name}__"))


class Calls(TorchFunctionMode):
    """Handles Python's calls to torch, if they contain more information than the resulting operators.

    Args:
        tracer: The tracer of the same forward pass.
    """

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: _Named = None) -> Any:
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

    def _shape(self, shape: torch.Size | int, tensor: torch.Tensor, dim: int = 0) -> torch.Size | int:
        """The shape, or the length of the dimension `dim`, with the followed dimension as a `Width`."""
        label = self.tracer.of(tensor)
        if label is None:
            return shape
        width = Width(label, self.tracer.atoms)
        if isinstance(shape, int):
            return width if dim % tensor.ndim == label.dim else shape
        return torch.Size([*shape[: label.dim], width, *shape[label.dim + 1 :]])


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its own hook untyped
    """Follows the channels of a model through every operator of a forward pass.

    Args:
        model: The network.

    Attributes:
        atoms: The atoms made so far.
        labels: id(tensor) -> its label.
        out: See `channels.Channels`, as are `inp`, `scales`, `splits`, `positions`, `taps` and `norm_of`.
        sections: The parts of each chunk, as atoms.
        shares: Parts of unequal widths that must keep equal shares of them, as atoms.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.atoms = Atoms()
        self.labels: dict[int, Label] = {}  # by id(tensor)
        self.alive: list[torch.Tensor] = []  # keeps tensors alive, because ids are only unique among live objects
        self.read: set[int] = set()  # ids of the tensors that an operator has read
        self.out: dict[str, Ints] = {}
        self.inp: dict[str, Ints] = {}
        self.scales: dict[str, Ints] = {}
        self.splits: dict[tuple[str, str], list[Ints]] = {}
        self.positions: dict[str, int] = {}
        self.taps: dict[str, int] = {}
        self.norm_of: dict[str, str] = {}
        self.made_by: dict[int, str] = {}  # id(tensor) -> the convolution whose output it is
        self.sections: list[list[Ints]] = []
        self.shares: list[list[Ints]] = []
        self.sizes: object = None  # the sizes given to the split under way; None: a chunk
        self.asleep = False
        # None: shared by several layers, so it cannot be pruned
        self.owner: dict[int, tuple[str, nn.Module, str] | None] = {}
        self.lists: dict[int, list[tuple[str, str]]] = defaultdict(list)
        for name, module in model.named_modules():
            for key, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
                known = id(parameter) in self.owner
                self.owner[id(parameter)] = None if known else (name, module, key)
            for key, value in vars(module).items():
                if type(value) is list:
                    self.lists[id(value)].append((name, key))

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: _Named = None) -> Any:
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
    def of(self, tensor: object) -> Label | None:
        """The label of a tensor, or None. A bare scale (one value per channel) gets its label here."""
        if id(tensor) not in self.labels and isinstance(tensor, nn.Parameter) and len(tensor.shape) == 1 < len(tensor):
            owner = self.owner.get(id(tensor))
            if owner is not None and not isinstance(owner[1], Layer):  # a bare scale, one value per channel
                name = f"{owner[0]}.{owner[2]}".lstrip(".")
                self.labels[id(tensor)] = Label(self._bind(self.scales, name, self.atoms.new(len(tensor))), 0)
        return self.labels.get(id(tensor)) if isinstance(tensor, torch.Tensor) else None

    def label(self, tensor: torch.Tensor, label: Label) -> None:
        """Label a tensor whose channels no operator shows (attention.py)."""
        self._set(tensor, label)

    def _set(self, tensor: torch.Tensor, label: Label | None) -> None:
        """Set a tensor's label. A label that does not match the tensor freezes its atoms."""
        if label is not None and not (label.dim < tensor.ndim and tensor.shape[label.dim] == len(label.atoms)):
            self.atoms.freeze(label.atoms)
            label = None
        if label is None:
            self.labels.pop(id(tensor), None)
        else:
            self.labels[id(tensor)] = label

    def freeze_all(self, *values: object) -> None:
        """Freeze the atoms of all tensors in these values."""
        for tensor in flat(values):
            if id(tensor) in self.labels:
                self.atoms.freeze(self.labels[id(tensor)].atoms)

    def unread(self, result: object) -> list[torch.Tensor]:
        """The tensors of a result that no operator has read."""
        return [t for t in flat(result) if isinstance(t, torch.Tensor) and id(t) not in self.read]

    def _bind(self, table: dict[str, Ints], name: str, atoms: Ints) -> Ints:
        """Record a layer's atoms in a table. A layer that is called twice has the same weights and therefore the same
        channels in both calls.
        """
        if name in table:
            self.atoms.union(table[name], atoms)
        return table.setdefault(name, atoms)

    def _layer(self, weight: object) -> str | None:
        """The name of the layer that surgery would prune."""
        owner = self.owner.get(id(weight))
        return owner[0] if owner is not None and isinstance(owner[1], Layer) else None

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
    def _pass_on(self, result: object, source: torch.Tensor, loud: bool = False) -> None:
        label = self.of(source)
        self._set(next(flat(result)), label and label._replace(quiet=label.quiet and not loud))

    def _spatial(self, result: object, source: torch.Tensor, *args: Any) -> None:
        label = self.of(source)
        if label is not None and label.dim != source.ndim - 3:
            self.freeze_all(source)
            label = None
        first = next(flat(result))
        padded = len(args) == 2 and isinstance(args[1], (int, float)) and args[1] != 0  # constant_pad_nd with a value
        self._set(first, label and label._replace(quiet=label.quiet and not padded))

    def _reshape(self, result: torch.Tensor, source: torch.Tensor) -> None:
        """The dimension is kept if the number of values before it is unchanged; the other dimensions do not matter."""
        label = self.of(source)
        if label is None:
            return
        before = math.prod(source.shape[: label.dim])
        for dim, size in enumerate(result.shape):
            if size == len(label.atoms) and math.prod(result.shape[:dim]) == before:
                self._set(result, label._replace(dim=dim))
                return
        self.freeze_all(source)

    def _on_permute(self, result: torch.Tensor, source: torch.Tensor, dims: Sequence[int]) -> None:
        label = self.of(source)
        self._set(result, label and label._replace(dim=[d % source.ndim for d in dims].index(label.dim)))

    def _on_transpose(self, result: torch.Tensor, source: torch.Tensor, a: int, b: int) -> None:
        order = list(range(source.ndim))
        order[a], order[b] = order[b], order[a]
        self._on_permute(result, source, order)

    def _norm(self, result: object, source: torch.Tensor, weight: object, *_: object) -> None:
        label, name = self.of(source), self._layer(weight)
        if name is not None and id(source) in self.made_by:
            self.norm_of[self.made_by[id(source)]] = name
        first = next(flat(result))
        if label is None or name is None or label.dim != 1:
            self.freeze_all(source)
            self._set(first, None)
        else:
            self._set(first, Label(self._bind(self.out, name, label.atoms), 1))

    def _on_convolution(
        self, result: torch.Tensor, source: torch.Tensor, weight: torch.Tensor, bias: object, stride: object,
        padding: object, dilation: object, transposed: bool, outpad: object, groups: int,
    ) -> None:  # fmt: skip
        """Handle a convolution, with the ten arguments of torch's operator in the same order."""
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

    def linear(self, source: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Compute a linear layer as one operator, in place of torch's matrix product.

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

    def _made(
        self, name: str, weight: torch.Tensor, result: torch.Tensor, dim: int, label: Label | None, source: torch.Tensor
    ) -> None:
        """Label the output of a layer in which every output channel reads every input channel. `label` is the input's
        label, if it is followed.
        """
        width = result.shape[dim]
        self.taps[name] = weight.numel() // (width * (1 if label is None else len(label.atoms)))
        if label is not None:
            self._bind(self.inp, name, label.atoms)
        if label is None or not label.quiet:
            self.freeze_all(source)
        self._set(result, Label(self._bind(self.out, name, self.atoms.new(width)), dim))

    def _binary(self, name: str, result: torch.Tensor, left: torch.Tensor | float, right: torch.Tensor | float) -> None:
        a, b = self._followed(left), self._followed(right)
        if a is not None and b is not None and len(a.label.atoms) != len(b.label.atoms):
            narrow = a if len(a.label.atoms) == 1 else b  # one channel over many: a mask
            self.freeze_all(narrow.tensor)
            a, b = (None, b) if narrow is a else (a, None)
        if b is not None and (name == "div" or (a is not None and a.back != b.back)):
            self.freeze_all(left, right)  # a division by a masked channel has no defined result
            self._set(result, None)
        elif a is not None and b is not None:
            dim = result.ndim + a.back
            label = self._unite([a.label._replace(dim=dim), b.label._replace(dim=dim)])
            either, both = a.label.quiet or b.label.quiet, a.label.quiet and b.label.quiet
            self._set(result, label and label._replace(quiet=either if name == "mul" else both))
        elif a is not None:
            self._with_other(name, result, a, right)
        elif b is not None:
            self._with_other(name, result, b, left)

    def _followed(self, value: torch.Tensor | float) -> _Followed | None:
        label = self.of(value)
        return None if label is None or not isinstance(value, torch.Tensor) else _Followed(value, label)

    def _with_other(self, name: str, result: torch.Tensor, followed: _Followed, other: torch.Tensor | float) -> None:
        """Label the result of an operator on a followed tensor and a value that is not followed."""
        back = followed.back
        if isinstance(other, torch.Tensor) and other.ndim >= -back and other.shape[back] != 1:
            self.freeze_all(followed.tensor, other)  # one value per channel, which surgery cannot prune
            self._set(result, None)
            return
        quiet = followed.label.quiet and (name in ("mul", "div") or _is_zero(other))
        self._set(result, followed.label._replace(dim=result.ndim + back, quiet=quiet))

    def _on_cat(self, result: torch.Tensor, tensors: Sequence[torch.Tensor], dim: int = 0) -> None:
        labels, dim = [self.of(t) for t in tensors], dim % result.ndim
        along = [label for label in labels if label is not None and label.dim == dim]
        if len(along) == len(labels):
            atoms = np.concatenate([label.atoms for label in along])
            self._set(result, Label(atoms, dim, all(label.quiet for label in along)))
        elif along:
            self.freeze_all(tensors)
        else:
            self._set(result, self._unite(labels))

    def _on_stack(self, result: torch.Tensor, tensors: Sequence[torch.Tensor], dim: int = 0) -> None:
        label = self._unite([self.of(t) for t in tensors])
        self._set(result, label and label._replace(dim=label.dim + (dim % result.ndim <= label.dim)))

    def _on_split(self, result: Sequence[torch.Tensor], source: torch.Tensor, size: object, dim: int = 0) -> None:
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
            self.sections.append(pieces)  # chunk() makes equal parts, so they must stay equal
        elif sizes is not None and id(sizes) in self.lists:
            for place in self.lists[id(sizes)]:
                for known, piece in zip(self.splits.setdefault(place, pieces), pieces):
                    self.atoms.union(known, piece)
        else:
            self.atoms.freeze(label.atoms)

    _on_split_with_sizes = _on_split

    def _on_slice(self, result: torch.Tensor, source: torch.Tensor, *_: object) -> None:
        self._set(result, self.of(source))  # a slice of the followed dimension does not match the label

    def _on_mean(
        self, result: torch.Tensor, source: torch.Tensor, dim: Sequence[int] | None = None, keepdim: bool = False,
        **_: object,
    ) -> None:  # fmt: skip
        label = self.of(source)
        if label is None:
            return
        over = {d % source.ndim for d in (dim or range(source.ndim))}
        if label.dim in over:
            self.freeze_all(source)
        else:
            self._set(result, label._replace(dim=label.dim - (0 if keepdim else sum(d < label.dim for d in over))))

    _on_sum = _on_mean


def _is_zero(value: torch.Tensor | float) -> bool:
    return (not isinstance(value, torch.Tensor) or value.ndim == 0) and float(value) == 0


def flat(value: object) -> Iterator[Any]:
    """The leaves of nested lists, tuples and dicts."""
    if isinstance(value, (list, tuple)):
        yield from itertools.chain.from_iterable(flat(v) for v in value)
    elif isinstance(value, dict):
        yield from itertools.chain.from_iterable(flat(v) for v in value.values())
    else:
        yield value
