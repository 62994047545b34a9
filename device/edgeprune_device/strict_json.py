"""JSON from untrusted sources, and canonical JSON for signing.

`loads` refuses input that Python's json accepts and no correct writer makes: duplicate keys, NaN and Infinity, numbers
too long or too large, lone surrogates, unlimited nesting. It estimates the memory of the value before it parses: a byte
such as "[" may become a hundred. `canonical` gives the same bytes for the same value on every Python.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Dict, List, Set, Tuple

from edgeprune_device.errors import InputError

__all__ = ["MEMORY_BYTES", "TooLarge", "canonical", "loads", "pretty"]

MEMORY_BYTES = 400 << 20

_LONGEST_NUMBER = 32  # characters; parsing a million digits takes seconds, which is an attack
_DEEPEST = 64  # levels; whatever walks the value later may then recurse safely
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
#: Bytes of memory for each of them, by measurement; a byte within text counts as well, which errs on the safe side.
_COSTS = {b",": 80, b"[": 192, b"{": 192, b":": 192}


class TooLarge(InputError):
    """The value would take too much memory."""


def loads(data: bytes, what: str, memory_bytes: int = MEMORY_BYTES) -> Any:
    """Parse UTF-8 JSON.

    Args:
        data: The bytes.
        what: Begins the error's message, e.g. "a.epb: manifest".
        memory_bytes: The most memory that parsing may take, by an estimate.

    Raises:
        TooLarge: The value would take more memory.
        InputError: The bytes are not valid JSON.
    """
    needed = _memory_bytes(data)
    if needed > memory_bytes:
        raise TooLarge(
            f"{what}: too large to be read (found {len(data) / 1e6:.1f} MB that take up to {needed / 1e6:.0f} MB of "
            f"memory, expected at most {memory_bytes / 1e6:.0f} MB)"
        )
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_constant,
        )
        _check_depth(value, _DEEPEST)
        if _SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # a lone one fails here
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error).split("\n")[0]
        raise InputError(f"{what}: not valid JSON ({reason})") from error
    return value


def canonical(value: Any) -> bytes:
    """The canonical JSON of a value: sorted keys, no spaces, ASCII.

    Raises:
        ValueError: The value contains NaN or Infinity.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def pretty(value: Any) -> str:
    """Readable JSON: indented, keys in the given order, a newline at the end."""
    return json.dumps(value, indent=2, ensure_ascii=True, allow_nan=False) + "\n"


def _memory_bytes(data: bytes) -> int:
    """The most memory that parsing takes, estimated without parsing."""
    width = 3  # the bytes, their text, and the text of the strings
    if not data.isascii() or b"\\u" in data:  # one character may make all characters of a text 2 or 4 bytes wide
        width = 12 if _SURROGATE.search(data) or re.search(b"[\xf0-\xff]", data) else 6
    return width * len(data) + sum(cost * data.count(byte) for byte, cost in _COSTS.items())


def _check_depth(value: Any, levels: int) -> None:
    if levels == 0:
        raise RecursionError
    if isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            _check_depth(item, levels - 1)


def _object(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: Set[str] = set()  # searching a list for every key would take minutes for a megabyte, a possible attack
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"duplicate key {key!r:.60}")
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
