"""When counted work will be done, as calmly as can honestly be said.

Knows nothing of what is counted. Times are seconds of any one clock; fractions count from 0 to 1.
"""

from __future__ import annotations

#: What has to be seen before anything is said: so many advances, over so many seconds.
LEAST_ADVANCES, LEAST_S = 3, 3.0
#: What was said stands, and counts down, until it is wrong by more than this: a share of what is left, and seconds.
TOLERANCE, TOLERANCE_S = 0.15, 3.0
_KEPT = 256


class Remaining:
    """Feed `update` whenever the work advances; `left` is the seconds to go, None while that is not known.

    A stage often counts several things one after another. Where the fraction falls back, another begins, and is judged
    by itself. Its first advance is not judged by: it holds what came before the counting, and a stage that only marks
    its places ("0.1: exporting") jumps once or twice and never gets an estimate.
    """

    def __init__(self) -> None:
        self._restart(0.0)

    def _restart(self, fraction: float) -> None:
        self._fraction = fraction
        self._advanced = False
        self._seen: list[tuple[float, float]] = []  # (time, fraction) of every advance but the first
        self._end: float | None = None

    def update(self, now: float, fraction: float) -> None:
        if fraction < self._fraction:
            self._restart(fraction)
        elif fraction > self._fraction:
            self._fraction = fraction
            if self._advanced:
                self._seen.append((now, fraction))
            self._advanced = True
            if len(self._seen) > _KEPT:  # every other one says the same
                self._seen = [*self._seen[:-1:2], self._seen[-1]]

    def left(self, now: float) -> float | None:
        if len(self._seen) <= LEAST_ADVANCES or self._seen[-1][0] - self._seen[0][0] < LEAST_S or self._fraction >= 1:
            return None
        # Judged by the later half: a machine that has become slower is believed soon.
        last, fraction = self._seen[-1]
        middle = (self._seen[0][0] + last) / 2
        first = max(i for i, (at, _) in enumerate(self._seen[:-LEAST_ADVANCES]) if at <= middle)
        start, begun = self._seen[first]
        # The next advance is overdue where it takes longer than they did: so long the end moves away.
        overdue = max(now - last - (last - start) / (len(self._seen) - 1 - first), 0.0)
        to_go = (1 - fraction) * (last - start + overdue) / (fraction - begun)
        end = last + overdue + to_go
        if self._end is None or abs(end - self._end) > max(TOLERANCE * (end - now), TOLERANCE_S):
            self._end = end
        return max(self._end - now, 0.0)
