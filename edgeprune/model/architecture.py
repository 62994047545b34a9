"""The YAML in a checkpoint, treated as untrusted text: edgeprune never needs to run it, but stock Ultralytics does.

Ultralytics builds a network anew from `model.yaml` whenever it trains one. It evaluates `activation` as Python. It also
calls the name in each row with the row's arguments, even if that is one of its own functions that installs packages or
a class that downloads weights. A YAML is therefore accepted only if it holds nothing but layers and numbers.
"""

from __future__ import annotations

import ast

import torch
from edgeprune_device.errors import InputError
from edgeprune_device.printable import printable
from torch import nn

__all__ = ["activation", "check"]

_MOST = 100_000  # entries in a YAML; Ultralytics' largest has some hundreds
_LONGEST = 100  # characters: no activation, name of a layer or argument has more
#: In torch.nn's activation module, but no activation function: its arguments can be as large as a network's.
_NO_FUNCTIONS = ("MultiheadAttention",)
_LAYERS = "ultralytics.nn.modules."
#: Takes the name of a torchvision function, and downloads weights.
_FETCHES = ("TorchVision",)
_FORMER = ("Silence",)  # of YOLOv9e's first files; Ultralytics reads it as nn.Identity


def check(where: object, yaml: object) -> None:
    """Refuse a model's YAML of which stock Ultralytics would run more than layers.

    Args:
        where: Names the YAML in messages.
        yaml: The YAML, as loaded.

    Raises:
        InputError: The YAML holds more; the message shows the text in one line.
    """
    try:
        if type(yaml) is not dict or not _plain(yaml):
            raise ValueError("more than text and numbers")
        if yaml.get("activation"):
            activation(yaml["activation"])
        for row in [*yaml.get("backbone", ()), *yaml.get("head", ())]:
            _check_row(row)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{where}: the YAML in it says {error}; stock Ultralytics would run that as Python, so it was not opened"
        ) from error


def activation(text: object) -> nn.Module:
    """Make the module that a text such as "nn.LeakyReLU(0.1)" names: an activation of torch.nn with plain arguments.

    Raises:
        ValueError: The text names anything else.
    """
    try:
        return _named(text)
    except Exception as error:  # the parser and torch's constructors raise half a dozen kinds
        expected = "expected one of torch.nn's, such as nn.LeakyReLU(0.1)"
        raise ValueError(f"activation: {_shown(text)} ({expected})") from error


def _named(text: str) -> nn.Module:
    if len(text) > _LONGEST:
        raise ValueError("too long")
    call = ast.parse(text.strip(), mode="eval").body
    name, home = call.func.attr, ast.unparse(call.func.value)
    kind = nn.Identity if name == "Identity" else getattr(nn.modules.activation, name)
    if home not in ("nn", "torch.nn") or name in _NO_FUNCTIONS or not _is_module(kind) or kind is nn.Module:
        raise ValueError(name)
    arguments = [_value(node) for node in call.args]
    named = {keyword.arg: _value(keyword.value) for keyword in call.keywords}
    with torch.device("meta"):
        return kind(*arguments, **named)


def _is_module(found: object) -> bool:
    return isinstance(found, type) and issubclass(found, nn.Module)


def _value(node: ast.expr) -> float | bool | str:
    value = ast.literal_eval(node)
    if not isinstance(value, (bool, int, float, str)):
        raise ValueError(value)
    return value


def _check_row(row: object) -> None:
    if not isinstance(row, (list, tuple)) or len(row) != 4:
        raise ValueError(f"{_shown(row)} where a row [from, repeats, layer, arguments] should be")
    _, repeats, name, arguments = row
    if not isinstance(repeats, int) or not isinstance(name, str) or not isinstance(arguments, (list, tuple)):
        raise ValueError(f"{_shown(row)} where a row [from, repeats, layer, arguments] should be")
    if not _is_layer(name):
        raise ValueError(f"a layer {_shown(name)}, which is none of Ultralytics' or torch.nn's")
    for argument in _leaves(arguments):
        if isinstance(argument, str) and len(argument) > _LONGEST:
            raise ValueError(f"an argument {_shown(argument)} of a layer {name}")


def _is_layer(name: str) -> bool:
    if len(name) > _LONGEST or name in _FETCHES:
        return False
    if name in _FORMER:
        return True
    if name.startswith("nn."):
        found, home = getattr(nn, name[3:], None), "torch.nn."
    elif name.startswith("torchvision.ops."):
        import torchvision

        found, home = getattr(torchvision.ops, name[16:], None), "torchvision.ops."
    else:
        from ultralytics.nn import tasks

        found, home = vars(tasks).get(name), _LAYERS
    return _is_module(found) and found.__module__.startswith(home)


def _plain(value: object) -> bool:
    return all(type(leaf) in (str, int, float, bool, type(None)) for leaf in _leaves(value))


def _leaves(value: object):
    """All values in lists and dictionaries, keys too. A file may nest without end, or hold itself.

    Raises:
        ValueError: More values than any network's YAML has.
    """
    todo, seen = [value], 0
    while todo:
        item, seen = todo.pop(), seen + 1
        if seen > _MOST:
            raise ValueError("more than a network's YAML has")
        if type(item) is dict:
            todo += [*item, *item.values()]
        elif type(item) in (list, tuple):
            todo += item
        else:
            yield item


def _shown(value: object) -> str:
    text = printable(" ".join(repr(value).split()))
    return text if len(text) <= 60 else f"{text[:57]}..."
