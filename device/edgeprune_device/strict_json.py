"""JSON from untrusted sources, and canonical JSON for signing.

`loads` refuses input that Python's json accepts and no correct writer makes: duplicate keys, NaN and Infinity, numbers
too long or too large, lone surrogates, unlimited nesting. `canonical` gives the same bytes for the same value on every
Python.
"""

from __future__ import annotations

import json
import math
from typing import Any, List, Set, Tuple

from edgeprune_device.errors import InputError

__all__ = ["canonical", "loads", "pretty"]

_LONGEST_NUMBER = 32  # characters; parsing a million digits takes seconds, which is an attack
_DEEPEST = 64  # levels; whatever walks the value later may then recurse safely


def loads(data: bytes, what: str) -> Any:
    """Parse UTF-8 JSON.

    Args:
        data: The bytes.
        what: Begins the error's message, e.g. "a.epb: manifest".

    Raises:
        InputError: The bytes are not valid JSON.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_constant,
        )
        _check_depth(value, _DEEPEST)
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # lone surrogates such as "\\ud800" fail here
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error).split("\n")[0]
        raise InputError(f"{what}: not valid JSON ({reason})") from error
    return value


def canonical(value: Any) -> bytes:
    """The canonical JSON of a value: sorted keys, no spaces, ASCII.

    Raises:
        ValueError: The value holds NaN or Infinity.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def pretty(value: Any) -> str:
    """JSON for people: indented, keys in their given order, a newline at the end."""
    return json.dumps(value, indent=2, ensure_ascii=True, allow_nan=False) + "\n"


def _check_depth(value: Any, levels: int) -> None:
    if levels == 0:
        raise RecursionError
    if isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            _check_depth(item, levels - 1)


def _object(pairs: List[Tuple[str, Any]]) -> dict:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: Set[str] = set()  # a list would be searched for every key: minutes for one megabyte, which is an attack
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key!r:.60} stands twice")
            seen.add(key)
    return result


def _integer(text: str) -> int:
    if len(text) > _LONGEST_NUMBER:
        raise ValueError("a number is too long")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"a number is too large: {text:.20}")
    return value


def _constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")
