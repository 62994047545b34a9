"""One quantity that a board reports repeatedly."""

from __future__ import annotations

from typing import Callable, NamedTuple, Optional

__all__ = ["Channel"]


class Channel(NamedTuple):
    """One quantity of a board, e.g. Channel("power", "VDD_IN", "mW", read).

    Attributes:
        kind: Kind of the quantity, with its unit: "power" (mW), "temperature" (C), "clock" (Hz), "load" (share, 0 to
            1), "event" (count since the boot), "throttle" (state, 0: not active), "fan" (rpm, or share of full power),
            "memory" (bytes).
        name: Name of the sensor.
        unit: Unit of the values.
        read: Returns the current value, None if the board gives none or an impossible one; never raises.
    """

    kind: str
    name: str
    unit: str
    read: Callable[[], Optional[float]]

    @property
    def key(self) -> str:
        """The unique key of the channel on its board, e.g. "power.VDD_IN"."""
        return f"{self.kind}.{self.name}"
