"""One thing that a board can tell about itself, again and again."""

from __future__ import annotations

from typing import Callable, NamedTuple, Optional

__all__ = ["Channel"]


class Channel(NamedTuple):
    """E.g. Channel("power", "VDD_IN", "mW", read): `read()` is the value now, None where the board gives none.

    `kind` (and what its values are): "power" (mW), "temperature" (C), "clock" (Hz), "load" (share, 0 to 1), "event"
    (count since the boot), "throttle" (state, 0: not), "fan" (rpm, or share of full power), "memory" (bytes).
    `read` never raises, and gives no figure that cannot be.
    """

    kind: str
    name: str
    unit: str
    read: Callable[[], Optional[float]]

    @property
    def key(self) -> str:
        """What tells it from all others of the board, e.g. "power.VDD_IN"."""
        return f"{self.kind}.{self.name}"
