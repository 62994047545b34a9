"""Timing of a pipeline, stage by stage: warm-up, samples, percentiles.

Knows nothing of models, pictures or bundles: a stage is a callable, its result is the next stage's input.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from edgeprune_device.errors import InputError

__all__ = ["SAMPLES_NEEDED", "Samples", "measure", "percentile", "summary"]

# Fewest samples for a percentile to be worth printing: MLPerf's early-stopping minimum at 99 % confidence.
SAMPLES_NEEDED = {50: 1, 90: 64, 95: 130, 99: 662}
_WINDOW_SECONDS, _WINDOW_FRAMES = 0.2, 5  # a warm-up window lasts at least both
_AGREE = 0.05  # of the smallest of three consecutive window medians


@dataclass(frozen=True)
class Samples:
    """Every sample of a run, in ns and in the order taken.

    - `stages_ns`: {stage: one value a frame}; `frames_ns`: first stage's start to last stage's end
    - `wall_ns`: the whole measured loop, so with everything between the frames
    - `first_ns`: {stage: the very first frame}, before any warm-up
    - `warmup_frames`, `warmup_ns`; `settled`: three consecutive windows' medians agreed within 5 %
    """

    stages_ns: Mapping[str, Sequence[int]]
    frames_ns: Sequence[int]
    wall_ns: int
    first_ns: Mapping[str, int]
    warmup_frames: int
    warmup_ns: int
    settled: bool


def measure(
    stages: Mapping[str, Callable[[Any], Any]],
    frames: Sequence[Any],
    *,
    seconds: float = 10.0,
    min_samples: int = 64,
    warmup_seconds: float = 10.0,
    progress: Optional[Callable[[str], None]] = None,
    after: Optional[Callable[[], None]] = None,
) -> Samples:
    """Run `frames` (again and again) through `stages`, in order; time each with perf_counter_ns.

    - Warm-up lasts until it has settled, at most `warmup_seconds` (then `settled` is False: say so). 0: the first
      frame only.
    - `after` is called after each measured frame, outside its time: for what a stage has measured itself.
    - The measured loop lasts `seconds`, and longer, up to four times that, until it has `min_samples`.
    """
    if not frames:
        raise InputError("nothing to measure: no frames")
    supply, clock = cycle(frames), time.perf_counter_ns
    begin = clock()
    first = dict(zip(stages, _frame(stages, next(supply))))
    warmed, settled = _warm_up(stages, supply, begin + int(warmup_seconds * 1e9), progress)
    start = clock()
    shortest, longest = start + int(seconds * 1e9), start + int(4 * seconds * 1e9)
    rows: List[Tuple[int, ...]] = []
    now = start
    while now < shortest or (len(rows) < min_samples and now < longest):
        rows.append(_frame(stages, next(supply)))
        if after:
            after()
        now = clock()
        if progress:
            progress(f"measuring {(now - start) / 1e9:.0f} of {seconds:.0f} s")
    columns = list(zip(*rows))
    return Samples(
        stages_ns=dict(zip(stages, columns)),
        frames_ns=columns[-1],
        wall_ns=now - start,
        first_ns=first,
        warmup_frames=warmed + 1,
        warmup_ns=start - begin,
        settled=settled,
    )


def percentile(samples: Sequence[int], percent: int) -> Optional[int]:
    """Nearest rank: the smallest sample with at least `percent` % of all at or below it; no interpolation.

    None when there are fewer than `SAMPLES_NEEDED[percent]` samples.

    >>> percentile([30, 10, 20], 50)
    20
    >>> percentile([30, 10, 20], 99) is None
    True
    """
    if len(samples) < SAMPLES_NEEDED[percent]:
        return None
    return sorted(samples)[math.ceil(percent * len(samples) / 100) - 1]


def summary(samples_ns: Sequence[int]) -> Dict[str, Optional[float]]:
    """{"samples", "min_ms", "mean_ms", "p50_ms", "p90_ms", "p99_ms", "max_ms"}; a percentile may be None."""
    percentiles = {f"p{p}_ms": percentile(samples_ns, p) for p in (50, 90, 99)}
    values = {
        "min_ms": min(samples_ns),
        "mean_ms": statistics.fmean(samples_ns),
        **percentiles,
        "max_ms": max(samples_ns),
    }
    return {"samples": len(samples_ns), **{key: None if ns is None else ns / 1e6 for key, ns in values.items()}}


def _frame(stages: Mapping[str, Callable[[Any], Any]], value: Any) -> Tuple[int, ...]:
    """One frame through all stages: (ns of each stage, ns of the frame)."""
    clock, taken = time.perf_counter_ns, []
    begin = last = clock()
    for stage in stages.values():
        value = stage(value)
        now = clock()
        taken.append(now - last)
        last = now
    return (*taken, last - begin)


def _warm_up(stages, supply: Iterator[Any], deadline_ns: int, progress) -> Tuple[int, bool]:
    """(frames run, settled)."""
    clock, medians, frames = time.perf_counter_ns, [], 0
    while True:
        window, began = [], clock()
        while len(window) < _WINDOW_FRAMES or clock() - began < _WINDOW_SECONDS * 1e9:
            if clock() >= deadline_ns:
                return frames, False
            window.append(_frame(stages, next(supply))[-1])
            frames += 1
            if progress:
                progress(f"warming up, frame {frames}")
        medians = [*medians[-2:], statistics.median(window)]
        if len(medians) == 3 and max(medians) - min(medians) <= _AGREE * min(medians):
            return frames, True
