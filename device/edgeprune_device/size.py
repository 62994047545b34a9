"""The size of a network's input: (height, width), px, in Ultralytics' order."""

from __future__ import annotations

import operator
import re
from typing import Any, List, NamedTuple, Optional, Sequence, Union

from edgeprune_device.option import Kind

__all__ = ["InputSize", "Size", "SizeLike", "largest_of"]

#: A size as an option's value: the side of a square, (height, width), "384,640", or "auto:640".
SizeLike = Union[int, Sequence[int], str]

_LEAST, _MOST = 32, 8192  # px; the manifest's limits
_AUTO = "auto:"


class Size(NamedTuple):
    """The height and the width of a network's input, px."""

    height: int
    width: int

    @classmethod
    def of(cls, value: Union[int, Sequence[int]]) -> Size:
        """The size of the side of a square, or of (height, width)."""
        if isinstance(value, int):
            return cls(value, value)
        height, width = value
        return cls(operator.index(height), operator.index(width))

    @property
    def is_square(self) -> bool:
        """Whether the sides are equal."""
        return self.height == self.width

    @property
    def area(self) -> int:
        """Height x width, px."""
        return self.height * self.width

    def rounded(self, stride: int) -> Size:
        """The smallest size, not smaller than this one, whose sides are multiples of `stride`."""
        return Size(*(-(-side // stride) * stride for side in self))

    def __str__(self) -> str:
        """The value of the option: "640", or "384,640"."""
        return str(self.height) if self.is_square else f"{self.height},{self.width}"

    def to_json(self) -> Union[int, List[int]]:
        """The side of a square, or [height, width]."""
        return self.height if self.is_square else list(self)


def largest_of(value: Optional[SizeLike]) -> Optional[int]:
    """The longer side of "auto:640", px; None for any other value."""
    return int(value[len(_AUTO) :]) if isinstance(value, str) and value.startswith(_AUTO) else None


class InputSize(Kind):
    """A size, or "auto:640": a rectangle in the shape of the images, whose longer side is 640 px."""

    expected = f"N, HEIGHT,WIDTH or {_AUTO}N, from {_LEAST} to {_MOST} px"

    def parse(self, text: str) -> Any:
        """The size, or the text if it begins with "auto:"."""
        if re.fullmatch(_AUTO + "[0-9]+", text):
            return text
        return Size.of(int(text)) if "," not in text else Size.of([int(side) for side in text.split(",")])

    def check(self, value: Any) -> Union[Size, str]:
        """The size as a `Size`; "auto:N" as it is."""
        try:
            size = self.parse(value) if isinstance(value, str) else Size.of(value)
        except (TypeError, ValueError, OverflowError):
            raise ValueError from None
        sides = (largest_of(size),) if isinstance(size, str) else tuple(size)
        if isinstance(value, bool) or not all(side is not None and _LEAST <= side <= _MOST for side in sides):
            raise ValueError
        checked: Union[Size, str] = size
        return checked
