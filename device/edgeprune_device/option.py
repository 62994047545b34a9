"""An option, declared once: its type and range, its default and its help.

    MAX_DROP = Option("max_drop", Number(0, 1), "largest accuracy drop, absolute mAP50-95", default=0.003, metavar="X")
    MAX_DROP.add(parser)    # --max-drop X
    MAX_DROP.check(0.01)    # the value, or an InputError

A message names an option as the user wrote it: `--max-drop` on the command line, `max_drop` in Python (`named`).
"""

from __future__ import annotations

import argparse
import math
import operator
import os
import shlex
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Iterator, Optional, Sequence, Tuple, Union

from edgeprune_device.errors import InputError
from edgeprune_device.hint import did_you_mean

__all__ = [
    "Choice", "File", "Flag", "Kind", "Names", "Number", "Option", "Text", "Whole", "as_flags", "named", "names_flags",
]  # fmt: skip

_as_flags = False


@contextmanager
def as_flags() -> Iterator[None]:
    """Let messages name options as flags, `--max-drop`, while the block runs; used by the command line."""
    global _as_flags
    before, _as_flags = _as_flags, True
    try:
        yield
    finally:
        _as_flags = before


def names_flags() -> bool:
    """Whether messages name options as flags; a process that creates messages for this one must do the same."""
    return _as_flags


def named(name: str, value: object = None) -> str:
    """The name of an option as the user wrote it.

    Args:
        name: The option's name in Python.
        value: A value to show beside the name; True stands for a flag that is set.

    Returns:
        "--max-drop 0.1" on the command line, quoted for a shell; "max_drop=0.1" in Python.
    """
    if not _as_flags:
        return name if value is None else f"{name}={value}"
    flag = f"--{name.replace('_', '-')}"
    return flag if value is None or value is True else f"{flag} {shlex.quote(str(value))}"


class Kind:
    """The type and range of a value.

    Attributes:
        expected: The valid values, for messages: "a number in [0, 1]".
    """

    expected = "text"

    def parse(self, text: str) -> Any:
        """Parse a text from the command line; the value is not checked yet.

        Raises:
            ValueError: The text has another type.
        """
        return text

    def check(self, value: Any) -> Any:
        """Check a value, and return it in its own type.

        Raises:
            ValueError: The value has another type, or is outside the range.
        """
        raise NotImplementedError


class Text(Kind):
    """Any text that is not empty."""

    expected = "non-empty text"

    def check(self, value: Any) -> str:
        """The text."""
        if not isinstance(value, (str, os.PathLike)) or not str(value).strip() or "\0" in str(value):
            raise ValueError
        return str(value)


class Flag(Kind):
    """A switch; off by default."""

    expected = "True or False"

    def check(self, value: Any) -> bool:
        """True or False."""
        if not isinstance(value, bool):
            raise ValueError
        return value


@dataclass(frozen=True)
class Whole(Kind):
    """A whole number.

    Attributes:
        least: The smallest number.
        most: The largest number.
    """

    least: int = 0
    most: int = 10**9

    @property
    def expected(self) -> str:  # type: ignore[override]  # a constant elsewhere
        """The range, for messages."""
        end = "" if self.most == Whole.most else f" and at most {self.most}"
        return f"a whole number, at least {self.least}{end}"

    def parse(self, text: str) -> int:
        """The number."""
        return int(text)

    def check(self, value: Any) -> int:
        """The number as an int."""
        try:
            number = operator.index(value)
        except TypeError:
            raise ValueError from None
        if isinstance(value, bool) or not self.least <= number <= self.most:
            raise ValueError
        return number


@dataclass(frozen=True)
class Number(Kind):
    """A finite number.

    Attributes:
        least: The lower end of the range.
        most: The upper end of the range.
        ends: The brackets of the range: "[]" includes both ends, "(]" excludes the lower one.
    """

    least: float = 0.0
    most: float = math.inf
    ends: str = "[]"

    @property
    def range(self) -> str:
        """Both ends of the range in brackets: "[0, 1)"; empty if it has no upper end."""
        return "" if self.most == math.inf else f"{self.ends[0]}{self.least:g}, {self.most:g}{self.ends[1]}"

    @property
    def expected(self) -> str:  # type: ignore[override]  # a constant elsewhere
        """The range, for messages."""
        if self.range:
            return f"a number in {self.range}"
        return f"a number {'above' if self.ends[0] == '(' else 'of at least'} {self.least:g}"

    def parse(self, text: str) -> float:
        """The number."""
        return float(text)

    def check(self, value: Any) -> float:
        """The number as a float."""
        try:
            number = float(value)
        except (TypeError, OverflowError):
            raise ValueError from None
        low = number > self.least if self.ends[0] == "(" else number >= self.least
        high = number < self.most if self.ends[1] == ")" else number <= self.most
        if isinstance(value, (str, bool)) or not math.isfinite(number) or not (low and high):
            raise ValueError
        return number


@dataclass(frozen=True)
class Choice(Kind):
    """One of several words.

    Attributes:
        source: The words, or a function that finds them when they are needed.
    """

    source: Union[Sequence[str], Callable[[], Sequence[str]]]

    @property
    def names(self) -> Tuple[str, ...]:
        """The words."""
        return tuple(self.source() if callable(self.source) else self.source)

    @property
    def expected(self) -> str:  # type: ignore[override]  # a constant elsewhere
        """The words, for messages."""
        return f"one of {', '.join(self.names)}"

    def check(self, value: Any) -> str:
        """The word."""
        if value not in self.names:
            raise ValueError(did_you_mean(str(value), self.names))
        return str(value)


@dataclass(frozen=True)
class Names(Choice):
    """A list of words; with commas on the command line."""

    @property
    def expected(self) -> str:  # type: ignore[override]  # a constant elsewhere
        """The words, for messages."""
        return f"a list of {', '.join(self.names)}"

    def parse(self, text: str) -> Tuple[str, ...]:
        """The words between the commas; empty parts are ignored."""
        return tuple(word for word in (part.strip() for part in text.split(",")) if word)

    def check(self, value: Any) -> Tuple[str, ...]:  # type: ignore[override]  # returns several words instead of one
        """The words, in the order given."""
        words = self.parse(value) if isinstance(value, str) else tuple(value)
        unknown = [word for word in words if word not in self.names]
        if unknown or not words:
            raise ValueError(did_you_mean(str(unknown[0]), self.names) if unknown else "")
        return words


@dataclass(frozen=True)
class File(Kind):
    """The path of a file or a folder.

    Attributes:
        endings: The endings that the name may have; empty: any.
    """

    endings: Tuple[str, ...] = ()

    @property
    def expected(self) -> str:  # type: ignore[override]  # a constant elsewhere
        """The endings, for messages."""
        return f"a file that ends in {' or '.join(self.endings)}" if self.endings else "a path"

    def check(self, value: Any) -> Path:
        """The path."""
        text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else ""
        if not isinstance(text, str) or not text or "\0" in text:
            raise ValueError
        if "://" in text:
            raise ValueError("URLs are not accepted; download the file first")
        if self.endings and Path(text).suffix.lower() not in self.endings:
            raise ValueError
        return Path(text)


@dataclass(frozen=True)
class Option:
    """The declaration of an option.

    Attributes:
        name: Its name in Python and in records; the command line uses dashes instead of underscores.
        kind: The type of its value, and its range.
        help: Its description in the help and the documentation; `{names}` is replaced by the words of a Choice.
        default: Its value if it is not given; None: no value, as the help explains.
        metavar: The placeholder of its value in the help.
        required: Whether the command line requires it.
        bare: Its value if it is given without one; None: a value is required.
        stage: The first stage of a build that depends on it; until that stage is done it may change on --resume.
        restarts: Whether it may also change later; the build then starts again at `stage`.
        words: Returns the words for `{names}` in the help, if the kind is not a Choice.
    """

    name: str
    kind: Kind
    help: str
    default: Any = None
    metavar: Optional[str] = None
    required: bool = False
    bare: Any = None
    stage: Optional[str] = None
    restarts: bool = False
    words: Optional[Callable[[], Sequence[str]]] = None

    def but(self, **changes: Any) -> Option:
        """The same option with other fields, for a command in which it has a slightly different meaning."""
        return replace(self, **changes)

    @property
    def flag(self) -> str:
        """The option's name on the command line."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def text(self) -> str:
        """The help, with the known words, the range and the default."""
        find = self.words or (lambda: self.kind.names if isinstance(self.kind, Choice) else ())
        text = self.help.replace("{names}", ", ".join(find())) if "{names}" in self.help else self.help
        facts = [f"in {self.kind.range}"] if isinstance(self.kind, Number) and self.kind.range else []
        if self.default is not None and not isinstance(self.kind, Flag):
            facts.append(f"default {self._shown(self.default)}")
        return f"{text} ({', '.join(facts)})" if facts else text

    def add(self, parser: Any) -> None:
        """Add the option to a parser, or to a group of one.

        Args:
            parser: An `argparse.ArgumentParser`, or a group of it.
        """
        flag, text = self.flag, self.text.replace("%", "%%")
        required = {"required": True} if self.required else {}  # not allowed in a group of exclusive options
        if isinstance(self.kind, Flag):
            parser.add_argument(flag, dest=self.name, action="store_true", help=text)
        elif self.bare is not None:
            parser.add_argument(flag, dest=self.name, type=self._parsed, default=self.default, metavar=self.metavar,
                                nargs="?", const=self.bare, help=text, **required)  # fmt: skip
        else:
            parser.add_argument(flag, dest=self.name, type=self._parsed, default=self.default, metavar=self.metavar,
                                help=text, **required)  # fmt: skip

    def check(self, value: Any) -> Any:
        """Check a value, and return it in its own type; None if the option has no default.

        Raises:
            InputError: The value has another type, or is outside the range.
        """
        if value is None and self.default is None:
            return None
        try:
            return self.kind.check(value)
        except (ValueError, TypeError) as error:
            raise InputError(f"{named(self.name)}: {self._refusal(value, error)}") from None

    def _parsed(self, text: str) -> Any:
        try:
            return self.kind.check(self.kind.parse(text))
        except ValueError as error:
            known = f"{error}" if isinstance(self.kind, (Choice, File)) else ""
            raise argparse.ArgumentTypeError(self._refusal(text, ValueError(known))) from None

    def _refusal(self, value: Any, error: Exception) -> str:
        near = str(error) if isinstance(self.kind, (Choice, File)) and isinstance(error, ValueError) else ""
        words = f"found {self._shown(value)!r}, expected {self.kind.expected}"
        return f"invalid value ({words}){'; ' if near else ''}{near}"

    @staticmethod
    def _shown(value: Any) -> str:
        if isinstance(value, (tuple, list)):
            return ",".join(map(str, value))
        return f"{value:g}" if isinstance(value, float) else str(value)
