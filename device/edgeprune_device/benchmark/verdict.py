"""The verdict of a measurement: clean, degraded or invalid, each with its reasons.

- clean: another team that repeats the measurement will get the same figures
- degraded: the figures were measured, but the machine was throttled or not idle; the reasons give the cause
  and the remedy
- invalid: the figures do not describe this model on this machine
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Sequence

from edgeprune_device.option import named

__all__ = ["DRIFT", "Evidence", "Verdict", "judge"]

#: Relative change of the median frame time over a run, above which the run was not steady.
DRIFT = 0.05
# After oc3, a current spike, a board recovers within microseconds, so oc3 alone is only a warning.
_CURRENT = {"oc1": "under-voltage", "oc2": "average current above the limit"}
_BUSY, _OVERLOADED = 0.05, 0.5  # of all cores
_FEWEST = 64  # samples needed for p90
_LATE = 0.01  # share of late frames above which the source has not kept its rate


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


@dataclass(frozen=True)
class Evidence:
    """The facts of a run that a verdict depends on.

    Attributes:
        runtime: Name of the runtime.
        samples: Number of measured frames.
        settled: Whether the timings settled in the warm-up.
        interrupted: Whether the run ended early.
        failure: Message of the failure that ended it, or None.
        other_load: {"before", "during"}: share of all cores that other programs used, None if not known.
        beforehand: Findings of the preflight that distort a benchmark.
        drift: As in the report, None if not measured.
        throttling: As in the report, None if not measured.
        camera: As in the report, None if not measured.
    """

    runtime: str
    samples: int
    settled: bool
    interrupted: bool
    failure: Optional[str]
    other_load: Mapping[str, Optional[float]]
    beforehand: Sequence[str]
    drift: Optional[Mapping[str, float]]
    throttling: Optional[Mapping[str, Mapping[str, Optional[int]]]]
    camera: Optional[Mapping[str, Any]]


def judge(evidence: Evidence) -> Verdict:
    """Judge a run."""
    verdict, camera = Verdict(), evidence.camera
    if evidence.runtime == "null":
        verdict.add(
            "invalid",
            "runtime null runs no model, so these figures show only the time of the benchmark itself; to measure "
            f"the model, choose another {named('runtime')}",
        )
    if evidence.samples < _FEWEST:
        verdict.add("invalid", f"only {evidence.samples} frames (p90 needs {_FEWEST}); measure for longer")
    busy = {when: share for when, share in evidence.other_load.items() if share is not None and share > _BUSY}
    if busy:
        state = "invalid" if max(busy.values()) > _OVERLOADED else "degraded"
        shares = ", ".join(f"{share:.0%} {when} the run" for when, share in busy.items())
        verdict.add(state, f"other programs used CPU time ({shares}); stop those programs and measure again")
    if evidence.failure:
        verdict.add("degraded", f"the run failed before its end: {evidence.failure}")
    elif evidence.interrupted:
        verdict.add("degraded", "the run was interrupted, so it is shorter than requested; measure again until the end")
    if not evidence.settled:
        longer = f"a longer {named('warmup')}"
        verdict.add(
            "degraded", f"the timings did not settle in the warm-up; repeat on an idle machine or with {longer}"
        )
    for reason in [*evidence.beforehand, *_drifted(evidence.drift), *_throttled(evidence.throttling)]:
        verdict.add("degraded", reason)
    if camera is not None and camera["late"] > _LATE * max(camera["arrived"], 1):
        verdict.add(
            "degraded",
            f"the source did not keep its frame rate ({camera['late']} of {camera['arrived']} frames late); lower "
            f"{named('fps')}, or use a faster source",
        )
    return verdict


def _drifted(drift: Optional[Mapping[str, float]]) -> List[str]:
    if drift is None or abs(drift["change"]) <= DRIFT:
        return []
    return [
        f"the median frame time changed from {drift['first_ms']:.2f} to {drift['last_ms']:.2f} ms "
        f"({drift['change']:+.1%}) between the first and the last {drift['window_s']:.0f} s; measure again "
        "once the temperature and the load are steady"
    ]


def _throttled(throttling: Optional[Mapping[str, Mapping[str, Optional[int]]]]) -> List[str]:
    if throttling is None:
        return []
    events = {name: count for name, count in throttling["events"].items() if count}
    current = [f"{what} ({name}) {events[name]:g} times" for name, what in _CURRENT.items() if name in events]
    heat = [f"{name} {count:g} times" for name, count in events.items() if not name.startswith("oc")]
    heat += [name for name, state in throttling["states"].items() if state and name not in events]
    reasons = [f"throttled by the power supply: {', '.join(current)}; use a stronger power supply"] if current else []
    return [*reasons, *([f"throttled by heat: {', '.join(heat)}; improve the cooling"] if heat else [])]
