"""The typical time of each stage, the typical age of a result, and the stage that is too slow for the camera.

The worker writes them into its `Pulse`, and the supervisor reads them for the status. The module imports no numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, Dict, Optional, Sequence, TypedDict

from edgeprune_device.pipeline import STAGES, slow_stage
from edgeprune_device.service.protocol import AGE, SLOW, TIMES

if TYPE_CHECKING:  # it imports numpy
    from edgeprune_device.sources import Source

__all__ = ["Pace", "PaceStatus", "read"]

_SHARE = 16  # a frame changes the typical time by this part of its difference
_EVERY = 64  # frames between two comparisons with the camera's rate


class PaceStatus(TypedDict):
    """The pace in the status.

    Attributes:
        stages_ms: Typical time of each stage, ms.
        age_ms: Typical age of a result, ms.
        slow_stage: The stage that keeps the service below the camera's rate; None: it keeps up, or no camera is read.
    """

    stages_ms: Dict[str, float]
    age_ms: float
    slow_stage: Optional[str]


class Pace:
    """Writes the pace into the cells: Pace(cells, source, tell).add((decode, pre, infer, post, age)).

    Args:
        cells: Cells of a `Pulse`.
        source: The source of the frames.
        tell: Receives `note=…` when a stage turns out to be too slow.
    """

    def __init__(self, cells: memoryview, source: Source, tell: Callable[..., None]):
        self._cells, self._source, self._tell = cells, source, tell
        self._frames, self._told = 0, False
        cells[SLOW] = 0

    def add(self, times_ns: Sequence[int]) -> None:
        """Add a frame.

        Args:
            times_ns: The time of each stage, and the age of the result, ns.
        """
        cells = self._cells
        share = _SHARE if self._frames >= 2 else 1  # the first frame takes longer and does not count
        for i, ns in enumerate(times_ns, TIMES):
            cells[i] += (ns - cells[i]) // share
        self._frames += 1
        if self._frames % _EVERY == 0:
            self._compare()

    def _compare(self) -> None:
        source = self._source
        if not (source.live and source.fps):
            return
        limit_ms = 1e3 / source.fps
        stages_ms = _stages_ms(self._cells)
        slow = slow_stage(stages_ms, limit_ms)
        self._cells[SLOW] = 0 if slow is None else 1 + STAGES.index(slow)
        if slow is not None and not self._told:
            self._told = True
            self._tell(
                note=f"stage {slow} is slow ({stages_ms[slow]:.1f} ms; the camera gives a frame every {limit_ms:.1f} "
                "ms), so frames are dropped"
            )


def read(cells: Sequence[int]) -> Optional[PaceStatus]:
    """Read the pace from the cells; None before the first frame."""
    if not cells[AGE]:
        return None
    return {
        "stages_ms": {name: round(ms, 3) for name, ms in _stages_ms(cells).items()},
        "age_ms": round(cells[AGE] / 1e6, 3),
        "slow_stage": STAGES[cells[SLOW] - 1] if cells[SLOW] else None,
    }


def _stages_ms(cells: Sequence[int]) -> Dict[str, float]:
    return {name: cells[i] / 1e6 for i, name in enumerate(STAGES, TIMES)}
