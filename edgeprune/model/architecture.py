"""Checks the YAML in a checkpoint as untrusted text: edgeprune never runs it, but stock Ultralytics does.

Ultralytics rebuilds a network from `model.yaml` for every training. It evaluates `activation` as Python. It also calls
the name in each row with the row's arguments, even if that is a function that installs packages or a class that
downloads weights. A YAML is therefore accepted only if it contains only layers and numbers.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TypeGuard

import torch
from edgeprune_device.errors import InputError
from edgeprune_device.printable import printable
from torch import nn

__all__ = ["activation", "check"]

_MOST = 100_000  # entries in a YAML; Ultralytics' largest has some hundreds
_LONGEST = 100  # characters of an activation, a layer's name or an argument
#: In torch.nn's activation module, but not activation functions: their arguments can be as large as a network's.
_NO_FUNCTIONS = ("MultiheadAttention",)
_LAYERS = "ultralytics.nn.modules."
#: Layers that download weights: TorchVision takes the name of a torchvision function.
_FETCHES = ("TorchVision",)
_FORMER = ("Silence",)  # in YOLOv9e's first files; Ultralytics reads it as nn.Identity


def check(where: object, yaml: object) -> None:
    """Refuse a model's YAML if stock Ultralytics would run more than layers from it.

    Args:
        where: The name of the YAML in messages.
        yaml: The loaded YAML.

    Raises:
        InputError: The YAML contains more; the message shows the text in one line.
    """
    try:
        if type(yaml) is not dict or not _plain(yaml):
            raise ValueError("found a value that is neither text nor a number")
        if yaml.get("activation"):
            activation(yaml["activation"])
        for row in [*yaml.get("backbone", ()), *yaml.get("head", ())]:
            _check_row(row)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{where}: unsafe YAML ({error}); stock Ultralytics would run the text as Python, so the checkpoint was "
            "not loaded"
        ) from error


def activation(text: object) -> nn.Module:
    """Build the module of a text such as "nn.LeakyReLU(0.1)": an activation of torch.nn with plain arguments.

    Raises:
        ValueError: The text is anything else.
    """
    try:
        return _named(text)
    except Exception as error:  # the parser and torch's constructors raise many kinds
        expected = "expected one of torch.nn, such as nn.LeakyReLU(0.1)"
        raise ValueError(f"found activation {_shown(text)}, {expected}") from error


def _named(text: object) -> nn.Module:
    if not isinstance(text, str) or len(text) > _LONGEST:
        raise ValueError("not a text, or too long")
    call = ast.parse(text.strip(), mode="eval").body
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
        raise ValueError("not a call")
    name, home = call.func.attr, ast.unparse(call.func.value)
    kind = nn.Identity if name == "Identity" else getattr(nn.modules.activation, name)
    if home not in ("nn", "torch.nn") or name in _NO_FUNCTIONS or not _is_module(kind) or kind is nn.Module:
        raise ValueError(name)
    arguments = [_value(node) for node in call.args]
    named = {keyword.arg: _value(keyword.value) for keyword in call.keywords if keyword.arg}
    if len(named) < len(call.keywords):
        raise ValueError("arguments of arguments")
    with torch.device("meta"):
        return kind(*arguments, **named)


def _is_module(candidate: object) -> TypeGuard[type[nn.Module]]:
    return isinstance(candidate, type) and issubclass(candidate, nn.Module)


def _value(node: ast.expr) -> float | bool | str:
    value = ast.literal_eval(node)
    if not isinstance(value, (bool, int, float, str)):
        raise ValueError(value)
    return value


def _check_row(row: object) -> None:
    if not isinstance(row, (list, tuple)) or len(row) != 4:
        raise ValueError(f"found {_shown(row)}, expected a row [from, repeats, layer, arguments]")
    _, repeats, name, arguments = row
    if not isinstance(repeats, int) or not isinstance(name, str) or not isinstance(arguments, (list, tuple)):
        raise ValueError(f"found {_shown(row)}, expected a row [from, repeats, layer, arguments]")
    if not _is_layer(name):
        raise ValueError(f"found layer {_shown(name)}, expected a layer of Ultralytics or torch.nn")
    for argument in _leaves(arguments):
        if isinstance(argument, str) and len(argument) > _LONGEST:
            raise ValueError(f"argument {_shown(argument)} of layer {name} is longer than {_LONGEST} characters")


def _is_layer(name: str) -> bool:
    if len(name) > _LONGEST or name in _FETCHES:
        return False
    if name in _FORMER:
        return True
    if name.startswith("nn."):
        layer, home = getattr(nn, name[3:], None), "torch.nn."
    elif name.startswith("torchvision.ops."):
        import torchvision

        layer, home = getattr(torchvision.ops, name[16:], None), "torchvision.ops."
    else:
        from ultralytics.nn import tasks

        layer, home = vars(tasks).get(name), _LAYERS
    return _is_module(layer) and layer.__module__.startswith(home)


def _plain(value: object) -> bool:
    return all(type(leaf) in (str, int, float, bool, type(None)) for leaf in _leaves(value))


def _leaves(value: object) -> Iterator[object]:
    """All values in lists and dictionaries, and the keys. The input may nest without end, or contain itself.

    Raises:
        ValueError: There are more values than in any network's YAML.
    """
    todo, count = [value], 0
    while todo:
        item, count = todo.pop(), count + 1
        if count > _MOST:
            raise ValueError("too many values for a network's YAML")
        # Exact types only, because a subclass may define its own iteration.
        if type(item) is dict:
            todo += [*item, *item.values()]
        elif type(item) is list or type(item) is tuple:
            todo += item
        else:
            yield item


def _shown(value: object) -> str:
    text = printable(" ".join(repr(value).split()))
    return text if len(text) <= 60 else f"{text[:57]}..."
