"""The samples of a monitor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from edgeprune_device.errors import InputError

__all__ = ["Series"]

Values = Sequence[Optional[float]]


@dataclass(frozen=True)
class Series:
    """The samples of all channels.

    An example: Series(0.2, (0, 200000000), {"power.VDD_IN": ("power", "mW", (5251, None))}, {"power.VDD_IN": 1}, …).

    Attributes:
        interval_s: Interval of the rounds at the end of the run, s; a long run doubles it.
        t_ns: Start of each round, time.monotonic_ns.
        channels: {key: (kind, unit, one value per round or None)}.
        read_errors: {key: number of rounds without a value}, only if not 0.
        round_ms: {"mean", "max"}: duration of a round, ms.
        cpu_share: CPU time of the monitor, share of one core.
    """

    interval_s: float
    t_ns: Tuple[int, ...]
    channels: Mapping[str, Tuple[str, str, Values]]
    read_errors: Mapping[str, int]
    round_ms: Mapping[str, float]
    cpu_share: Optional[float]

    def names(self, kind: str) -> List[str]:
        """The names of all channels of a kind, e.g. names("power") == ["VDD_IN"]."""
        return [key[len(kind) + 1 :] for key, (its, _, _) in self.channels.items() if its == kind]

    def points(self, kind: str, name: str) -> List[Tuple[int, float]]:
        """[(t_ns, value)] of one channel, without rounds that gave none; empty for an unknown channel."""
        _, _, values = self.channels.get(f"{kind}.{name}", (kind, "", ()))
        return [(t, value) for t, value in zip(self.t_ns, values) if value is not None]

    @classmethod
    def from_json(cls, data: Dict[str, Any], what: str = "series") -> Series:
        """Read the object "series" of a report whose schema was checked.

        Args:
            data: The object.
            what: Start of the error message.

        Raises:
            InputError: The lengths, times or names are inconsistent.
        """
        t_ns = tuple(data["t_ns"])
        if any(a >= b for a, b in zip(t_ns, t_ns[1:])):
            raise InputError(f"{what}: t_ns: times not increasing")
        channels = {}
        for key, channel in data["channels"].items():
            if len(channel["values"]) != len(t_ns):
                raise InputError(f"{what}: channels.{key}: found {len(channel['values'])} values, expected {len(t_ns)}")
            if not key.startswith(f"{channel['kind']}."):
                raise InputError(
                    f"{what}: channels.{key}: invalid name (expected a name that begins with {channel['kind']})"
                )
            channels[key] = (channel["kind"], channel["unit"], tuple(channel["values"]))
        return cls(
            data["interval_s"], t_ns, channels, dict(data["read_errors"]), dict(data["round_ms"]), data["cpu_share"]
        )

    def to_json(self) -> Dict[str, Any]:
        """A JSON object that fits `schema/report.json#/$defs/series`."""
        return {
            "interval_s": self.interval_s,
            "t_ns": list(self.t_ns),
            "channels": {
                key: {"kind": kind, "unit": unit, "values": list(values)}
                for key, (kind, unit, values) in self.channels.items()
            },
            "read_errors": dict(self.read_errors),
            "round_ms": dict(self.round_ms),
            "cpu_share": self.cpu_share,
        }
