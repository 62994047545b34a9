"""One JSON schema for each object that host and device exchange, and the check against it.

`check("manifest", data)` reads `manifest.json` beside this file: the published schema is the check, so the two cannot
differ. It supports a small subset of JSON Schema draft 2020-12 (a test compares it with the `jsonschema` package, which
a drone does not need); a keyword outside the subset is a programming error and raises KeyError.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, Callable, Dict, NoReturn, Tuple, Type, Union

from edgeprune_device.errors import InputError

__all__ = ["check", "load"]

#: A schema, or the part of a schema for one value.
Rule = Dict[str, Any]
#: Checks one keyword of a rule: (its argument, the value, the value's path, the rule, the whole schema).
Keyword = Callable[[Any, Any, str, Rule, Rule], None]

_ANNOTATIONS = {"$schema", "$id", "$defs", "title", "description"}
_TYPES: Dict[str, Callable[[Any], bool]] = {
    "object": lambda v: isinstance(v, dict),
    "array": lambda v: isinstance(v, list),
    "string": lambda v: isinstance(v, str),
    "boolean": lambda v: isinstance(v, bool),
    "null": lambda v: v is None,
    "integer": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "number": lambda v: isinstance(v, (int, float)) and not isinstance(v, bool),
}


@lru_cache(maxsize=None)
def load(name: str) -> Rule:
    """Load a schema by its name, e.g. load("manifest")."""
    schema: Rule = json.loads((Path(__file__).parent / f"{name}.json").read_text(encoding="utf-8"))
    return schema


def check(name: str, data: Any, what: str) -> Dict[str, Any]:
    """Check an object against a schema.

    An unknown `schema_version` is reported first, because the file is newer than this program.

    Args:
        name: Name of the schema.
        data: The object.
        what: Start of the error message.

    Returns:
        `data`.

    Raises:
        InputError: The object does not fit, "<what>: <field>: <error>".
    """
    root = load(name)
    known = root["properties"]["schema_version"]["const"]
    if not isinstance(data, dict):
        raise InputError(f"{what}: must be a JSON object, not {_kind(data)}")
    if data.get("schema_version") != known or isinstance(data.get("schema_version"), bool):
        raise InputError(
            f"{what}: unknown schema_version (found {_short(data.get('schema_version'))}, expected {known}); install "
            "edgeprune-device in the version of the edgeprune that wrote the file"
        )
    try:
        _check(root, data, "", root)
    except _Misfit as misfit:
        raise InputError(f"{what}: {misfit}") from None
    except RecursionError:
        raise InputError(f"{what}: nested too deeply") from None
    return data


class _Misfit(Exception):
    pass


def _check(rule: Rule, value: Any, at: str, root: Rule) -> None:
    for keyword, argument in rule.items():
        if keyword not in _ANNOTATIONS:
            _KEYWORDS[keyword](argument, value, at, rule, root)


def _fail(at: str, text: str) -> NoReturn:
    raise _Misfit(f"{at or 'the top level'}: {text}")


def _ref(argument: Any, value: Any, at: str, rule: Rule, root: Rule) -> None:
    _check(root["$defs"][argument[len("#/$defs/") :]], value, at, root)


def _type(argument: Any, value: Any, at: str, rule: Rule, root: Rule) -> None:
    names = argument if isinstance(argument, list) else [argument]
    if not any(_TYPES[name](value) for name in names):
        _fail(at, f"must be {' or '.join(names)}, not {_kind(value)}")


def _const(argument: Any, value: Any, at: str, rule: Rule, root: Rule) -> None:
    if value != argument or type(value) is not type(argument):
        _fail(at, f"must be {argument!r}, not {_short(value)}")


def _enum(argument: Any, value: Any, at: str, rule: Rule, root: Rule) -> None:
    if value not in argument:
        _fail(at, f"must be one of {', '.join(map(str, argument))}, not {_short(value)}")


def _required(argument: Any, value: Any, at: str, rule: Rule, root: Rule) -> None:
    if isinstance(value, dict):
        for key in argument:
            if key not in value:
                _fail(at, f"missing field {key!r}")


def _properties(argument: Any, value: Any, at: str, rule: Rule, root: Rule) -> None:
    if isinstance(value, dict):
        for key, subrule in argument.items():
            if key in value:
                _check(subrule, value[key], f"{at}.{key}" if at else key, root)


def _additional(argument: Any, value: Any, at: str, rule: Rule, root: Rule) -> None:
    if isinstance(value, dict):
        for key in value:
            if key not in rule.get("properties", {}):
                if argument is False:
                    _fail(at, f"unknown field {_short(key)}")
                _check(argument, value[key], f"{at}.{key:.60}" if at else f"{key:.60}", root)


def _names(argument: Any, value: Any, at: str, rule: Rule, root: Rule) -> None:
    if isinstance(value, dict):
        for key in value:
            _check(argument, key, f"{at}: name {_short(key)}", root)


def _items(argument: Any, value: Any, at: str, rule: Rule, root: Rule) -> None:
    if isinstance(value, list):
        for i, item in enumerate(value):
            _check(argument, item, f"{at}[{i}]", root)


def _bound(kinds: Union[Type[Any], Tuple[Type[Any], ...]], holds: Callable[[Any, Any], bool], text: str) -> Keyword:
    def keyword(argument: Any, value: Any, at: str, rule: Rule, root: Rule) -> None:
        if isinstance(value, kinds) and not isinstance(value, bool) and not holds(value, argument):
            _fail(at, text.format(argument))

    return keyword


_KEYWORDS: Dict[str, Keyword] = {
    "$ref": _ref,
    "type": _type,
    "const": _const,
    "enum": _enum,
    "required": _required,
    "properties": _properties,
    "additionalProperties": _additional,
    "propertyNames": _names,
    "items": _items,
    "minimum": _bound((int, float), lambda v, a: v >= a, "must be at least {}"),
    "maximum": _bound((int, float), lambda v, a: v <= a, "must be at most {}"),
    "minLength": _bound(str, lambda v, a: len(v) >= a, "must have at least {} characters"),
    "maxLength": _bound(str, lambda v, a: len(v) <= a, "must have at most {} characters"),
    "minItems": _bound(list, lambda v, a: len(v) >= a, "must have at least {} items"),
    "maxItems": _bound(list, lambda v, a: len(v) <= a, "must have at most {} items"),
    "maxProperties": _bound(dict, lambda v, a: len(v) <= a, "must have at most {} fields"),
    "pattern": _bound(str, lambda v, a: re.fullmatch(a, v) is not None, "must match {}"),
}


def _kind(value: Any) -> str:
    return next(name for name, test in _TYPES.items() if test(value))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
