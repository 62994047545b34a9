"""Estimates the time left for counted work, and changes the estimate as rarely as accuracy allows.

The module knows nothing about the work. Times are seconds of any clock; fractions go from 0 to 1.
"""

from __future__ import annotations

#: An estimate needs more than this number of advances, over at least this number of seconds.
LEAST_ADVANCES, LEAST_S = 3, 3.0
#: An estimate counts down unchanged until it is wrong by more than both a share of the time left and these seconds.
TOLERANCE, TOLERANCE_S = 0.15, 3.0
_KEPT = 256


class Remaining:
    """An estimator of the time left: `update` takes every advance of the work, `left` gives the estimate.

    A stage often counts several things one after another. When the fraction falls back, a new count begins, and the
    estimate starts again. The first advance of a count is ignored, because it contains the time before the counting.
    For this reason, a stage that only marks its steps ("0.1: exporting") and jumps once or twice gets no estimate.
    """

    def __init__(self) -> None:
        self._restart(0.0)

    def _restart(self, fraction: float) -> None:
        self._fraction = fraction
        self._advanced = False
        self._seen: list[tuple[float, float]] = []  # (time, fraction) of every advance but the first
        self._end: float | None = None

    def update(self, now: float, fraction: float) -> None:
        """Record that the work has reached a fraction.

        Args:
            now: time, s.
            fraction: part of the work that is done, in [0, 1].
        """
        if fraction < self._fraction:
            self._restart(fraction)
        elif fraction > self._fraction:
            self._fraction = fraction
            if self._advanced:
                self._seen.append((now, fraction))
            self._advanced = True
            if len(self._seen) > _KEPT:  # every other advance gives the same estimate
                self._seen = [*self._seen[:-1:2], self._seen[-1]]

    def left(self, now: float) -> float | None:
        """The time left, s; None while too few advances have been recorded.

        Args:
            now: time, s.
        """
        if len(self._seen) <= LEAST_ADVANCES or self._seen[-1][0] - self._seen[0][0] < LEAST_S or self._fraction >= 1:
            return None
        # Only the later half counts, so that the estimate soon follows a machine that has become slower.
        last, fraction = self._seen[-1]
        middle = (self._seen[0][0] + last) / 2
        first = max(i for i, (at, _) in enumerate(self._seen[:-LEAST_ADVANCES]) if at <= middle)
        start, begun = self._seen[first]
        # The next advance is overdue if it takes longer than the average of those; the end moves by the excess.
        overdue = max(now - last - (last - start) / (len(self._seen) - 1 - first), 0.0)
        to_go = (1 - fraction) * (last - start + overdue) / (fraction - begun)
        end = last + overdue + to_go
        if self._end is None or abs(end - self._end) > max(TOLERANCE * (end - now), TOLERANCE_S):
            self._end = end
        return max(self._end - now, 0.0)
