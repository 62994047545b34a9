"""Whether a figure may be quoted: clean, degraded, or invalid, each with its reasons.

- clean: another team that does the same will find the same
- degraded: it was measured, but the machine was not at its best or not at rest; the reasons say how, and what to do
- invalid: it is no figure of this model on this machine
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Optional

__all__ = ["DRIFT", "Verdict", "judge"]

#: A change of the median frame between the first and the last seconds of a run, from which it was not at rest.
DRIFT = 0.05
# Of oc3, the current of an instant, a board recovers within microseconds: alone it only warrants a warning.
_CURRENT = {"oc1": "under-voltage", "oc2": "average current above the limit"}
_BUSY, _OVERLOADED = 0.05, 0.5  # of all cores
_FEWEST = 64  # samples: below it not even p90 can be told
_LATE = 0.01  # of the frames: a source that slow has not kept the pace that was asked for


@dataclass
class Verdict:
    """E.g. Verdict("degraded", ["the clock governor is powersave …"]); `add` only ever makes it worse."""

    state: str = "clean"
    reasons: List[str] = field(default_factory=list)

    def add(self, state: str, reason: str) -> None:
        """Another reason; the state is the worst of all."""
        order = ("clean", "degraded", "invalid")
        self.state = max(self.state, state, key=order.index)
        self.reasons.append(reason)

    def to_json(self) -> Dict[str, Any]:
        """A JSON object."""
        return {"state": self.state, "reasons": list(self.reasons)}


def judge(
    *,
    runtime: str,
    samples: int,
    settled: bool,
    interrupted: bool,
    failure: Optional[str],
    other_load: Mapping[str, Optional[float]],
    beforehand: List[str],
    drift: Optional[Mapping[str, float]],
    throttling: Optional[Mapping[str, Mapping[str, float]]],
    camera: Optional[Mapping[str, Any]],
) -> Verdict:
    """From what is known of a run.

    - `other_load`: {"before", "during"}: the share of all cores that other programs used, None where not known
    - `beforehand`: what the preflight found that spoils a benchmark
    - `drift`, `throttling`, `camera`: as in the report, None where not measured
    """
    verdict = Verdict()
    if runtime == "null":
        verdict.add("invalid", "runtime null runs no model: these figures are the harness's own")
    if samples < _FEWEST:
        verdict.add("invalid", f"only {samples} frames: {_FEWEST} are the fewest for p90; measure for longer")
    busy = {when: share for when, share in other_load.items() if share is not None and share > _BUSY}
    if busy:
        state = "invalid" if max(busy.values()) > _OVERLOADED else "degraded"
        shares = ", ".join(f"{share:.0%} {when} the run" for when, share in busy.items())
        verdict.add(state, f"others used the machine's cores ({shares}): stop them, or the timings are theirs, too")
    if failure:
        verdict.add("degraded", f"it broke off: {failure}")
    elif interrupted:
        verdict.add("degraded", "interrupted: shorter than what was asked for")
    if not settled:
        verdict.add(
            "degraded", "the timings did not settle in the warm-up: repeat on a quiet machine or with a longer --warmup"
        )
    for reason in beforehand:
        verdict.add("degraded", reason)
    if drift is not None and abs(drift["change"]) > DRIFT:
        verdict.add(
            "degraded",
            f"the median frame went from {drift['first_ms']:.2f} to {drift['last_ms']:.2f} ms ({drift['change']:+.1%}) "
            f"between the first and the last {drift['window_s']:.0f} s",
        )
    for reason in _throttled(throttling):
        verdict.add("degraded", reason)
    if camera is not None and camera["late"] > _LATE * max(camera["arrived"], 1):
        verdict.add(
            "degraded", f"the source did not keep its pace: {camera['late']} of {camera['arrived']} frames were late"
        )
    return verdict


def _throttled(throttling: Optional[Mapping[str, Mapping[str, float]]]) -> List[str]:
    if throttling is None:
        return []
    events = {name: count for name, count in throttling["events"].items() if count}
    current = [f"{what} ({name}) {events[name]:g} times" for name, what in _CURRENT.items() if name in events]
    heat = [f"{name} {count:g} times" for name, count in events.items() if not name.startswith("oc")]
    heat += [name for name, state in throttling["states"].items() if state and name not in events]
    found = [f"held back by its power supply: {', '.join(current)}"] if current else []
    return [*found, *([f"throttled by heat: {', '.join(heat)}"] if heat else [])]
