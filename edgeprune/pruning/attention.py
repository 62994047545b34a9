"""The attention blocks of Ultralytics, in a form that the tracer can follow.

In such a block one convolution makes queries, keys and values: for each head, its queries, its keys, its values. The
block divides them by numbers that it keeps as attributes. A traced operator shows only the numbers, which might be
constants, so its channels would have to stay. While a network is traced, these blocks therefore run the passes below,
which label the same tensors and compute nothing. Surgery then corrects the attributes, and the oracle (prune.py)
compares the blocks' own forward passes, so that an error here cannot pass unnoticed.

The arithmetic of a block determines what may be removed:

- `Attention` (YOLOv10, 11, 26): one query of a head and the key that it is multiplied with go together; all heads keep
  equally many. All heads also keep equally many values, and these add up to the width of the block's input, because
  `view(B, C, H, W)` takes C from the input. So the values keep the same share of their channels as the input. The heads
  stay.
- `AAttn` (YOLO12): whole heads, of which one stays. It computes the scale of its products from the width of a head, so
  another width would change the attention, and no float32 weight undoes that exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from edgeprune.pruning.layers import Ints
from edgeprune.pruning.tracer import Label, Tracer


class Keys(NamedTuple):
    """The queries and keys of one `Attention`. No layer reads them, so no layer can state what they are worth.

    Attributes:
        source: Name of the convolution that makes them.
        norm: Name of its batch norm.
        reader: Name of the convolution that reads the values of all heads.
        queries: (heads, n) its output channels that are queries.
        keys: (heads, n) its output channels that are keys.
        values: (heads, m) input channels of the reader.
    """

    source: str
    norm: str
    reader: str
    queries: Ints
    keys: Ints
    values: Ints


def followed(model: nn.Module, tracer: Tracer) -> tuple[tuple[Keys, ...], frozenset[str]]:
    """Let the attention blocks of a network run the passes of this module; the caller restores their attributes.

    Args:
        model: The network that is about to be traced.
        tracer: Its tracer.

    Returns:
        The queries and keys of every `Attention`, and the names of the convolutions that make queries, keys and
            values, in every block.
    """
    all_keys, attending = [], set()
    for name, module in model.named_modules():
        kind = type(module)
        if not kind.__module__.startswith("ultralytics.") or kind.__name__ not in _PASSES:
            continue
        run = _PASSES[kind.__name__]
        setattr(module, "forward", lambda x, run=run, module=module: run(module, x, tracer))  # noqa: B010  # a method
        if run is _attend:
            attending.add(f"{name}.qkv.conv")
        if kind.__name__ == "Attention":
            all_keys.append(_keys(name, module))
    return tuple(all_keys), frozenset(attending)


def _keys(name: str, block: Any) -> Keys:
    key, value = _widths(block)
    heads = int(block.num_heads)
    first = np.arange(heads)[:, None] * (2 * key + value)
    queries = first + np.arange(key)
    values = np.arange(heads)[:, None] * value + np.arange(value)
    return Keys(f"{name}.qkv.conv", f"{name}.qkv.bn", f"{name}.proj.conv", queries, queries + key, values)


def _widths(block: Any) -> tuple[int, int]:
    """(keys, values) of one head."""
    return int(getattr(block, "key_dim", block.head_dim)), int(block.head_dim)


def _attend(block: Any, x: torch.Tensor, tracer: Tracer) -> torch.Tensor:
    """The pass of `Attention` and `AAttn`; the values after the attention have the channels of those before it."""
    made: torch.Tensor = block.qkv(x)
    label, read = tracer.of(made), tracer.of(x)
    heads, (key, value) = int(block.num_heads), _widths(block)
    values: torch.Tensor = made.new_zeros(made.shape[0], heads * value, *made.shape[2:])
    if label is None or read is None:
        tracer.freeze_all(made, x)
    else:
        parts = label.atoms.reshape(heads, 2 * key + value)
        if type(block).__name__ == "AAttn":
            for head in parts:
                tracer.atoms.union(head, np.full_like(head, head[0]))
        else:
            _tie(parts[:, :key], parts[:, key : 2 * key], parts[:, 2 * key :], read.atoms, tracer)
        tracer.label(values, Label(parts[:, 2 * key :].reshape(-1), 1))
    result: torch.Tensor = block.proj(values + block.pe(values))
    return result


def _tie(queries: Ints, keys: Ints, values: Ints, read: Ints, tracer: Tracer) -> None:
    for a, b in zip(queries, keys):
        tracer.atoms.union(a, b)
    tracer.sections.append(list(queries))
    tracer.sections.append(list(values))
    tracer.shares.append([read, *values])


def _halves(block: Any, x: torch.Tensor, tracer: Tracer) -> torch.Tensor:
    """C2PSA and PSA split by an attribute, which surgery corrects; so the halves only need to stay equal."""
    a, b = block.cv1(x).chunk(2, 1)
    if hasattr(block, "m"):
        b = block.m(b)
    else:
        b = b + block.attn(b)
        b = b + block.ffn(b)
    result: torch.Tensor = block.cv2(torch.cat((a, b), 1))
    return result


_Pass = Callable[[Any, torch.Tensor, Tracer], torch.Tensor]
_PASSES: dict[str, _Pass] = {
    "Attention": _attend, "AAttn": _attend, "C2PSA": _halves, "PSA": _halves,
}  # fmt: skip
