"""The verdict of a measurement: clean, degraded or invalid, each with its reasons.

- clean: another team that repeats the measurement will find the same
- degraded: the figures were measured, but the machine was not at its best or not at rest; the reasons give the cause
  and the remedy
- invalid: the figures do not describe this model on this machine
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Optional

__all__ = ["DRIFT", "Verdict", "judge"]

#: Change of the median frame between the first and the last seconds of a run, above which it was not steady.
DRIFT = 0.05
# After oc3, an instantaneous current, a board recovers within microseconds: alone it is only a warning.
_CURRENT = {"oc1": "under-voltage", "oc2": "average current above the limit"}
_BUSY, _OVERLOADED = 0.05, 0.5  # of all cores
_FEWEST = 64  # samples: fewer do not even give p90
_LATE = 0.01  # of the frames: a slower source has not kept the requested pace


@dataclass
class Verdict:
    """A state with its reasons, e.g. Verdict("degraded", ["the clock governor is powersave …"]).

    Attributes:
        state: "clean", "degraded" or "invalid".
        reasons: The reasons, one line each.
    """

    state: str = "clean"
    reasons: List[str] = field(default_factory=list)

    def add(self, state: str, reason: str) -> None:
        """Add a reason; the state becomes the worst of all."""
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
    """Judge a run.

    Args:
        runtime: Name of the runtime.
        samples: Number of measured frames.
        settled: Whether the timings settled in the warm-up.
        interrupted: Whether the run ended early.
        failure: Message of the failure that ended it, or None.
        other_load: {"before", "during"}: share of all cores that other programs used, None where not known.
        beforehand: Findings of the preflight that spoil a benchmark.
        drift: As in the report, None where not measured.
        throttling: As in the report, None where not measured.
        camera: As in the report, None where not measured.
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
