"""Percentiles of a list of latencies with their confidence, and a test of the samples' independence.

A tail percentile of a few samples is not reliable. p90, p95 and p99 are MLPerf's early-stopping estimates (LoadGen,
`loadgen/results.cc`): the t-th largest of n samples, where t is the greatest number such that n samples contain at most
t above the true percentile with a probability of at most 1 %. In 99 of 100 runs the true percentile is therefore not
higher than the printed one. p90 needs 64 samples, p95 130 and p99 662.
"""

from __future__ import annotations

import math
import statistics
from functools import lru_cache
from typing import Any, Dict, Mapping, Optional, Sequence

import numpy as np

__all__ = ["CORRELATED", "SAMPLES_NEEDED", "autocorrelation", "drift", "is_correlated", "percentile", "summary"]

CONFIDENCE = 0.99
#: Minimum number of samples for each percentile; a test derives them again.
SAMPLES_NEEDED = {50: 1, 90: 64, 95: 130, 99: 662}
#: Autocorrelation at lag 1 above which samples count as dependent, if it is also significant.
CORRELATED = 0.2


def percentile(samples: Sequence[int], percent: int) -> Optional[int]:
    """A percentile: for p50 the lower median, above it the early-stopping estimate.

    >>> percentile([30, 10, 20], 50)
    20
    >>> percentile([30, 10, 20], 99) is None
    True

    Args:
        samples: The samples.
        percent: 50, 90, 95 or 99.

    Returns:
        The percentile; None with too few samples.
    """
    count = len(samples)
    if count < SAMPLES_NEEDED[percent]:
        return None
    if percent == 50:
        return sorted(samples)[(count - 1) // 2]
    return sorted(samples)[count - _over(count, percent)]


def summary(samples_ns: Sequence[int]) -> Dict[str, Any]:
    """Summarise the latencies.

    Args:
        samples_ns: Latencies, ns.

    Returns:
        {"samples", "min_ms", "mean_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "max_ms", "autocorrelation"}; a
            percentile and the autocorrelation may be None.
    """
    values = {
        "min_ms": min(samples_ns),
        "mean_ms": statistics.fmean(samples_ns),
        **{f"p{p}_ms": percentile(samples_ns, p) for p in (50, 90, 95, 99)},
        "max_ms": max(samples_ns),
    }
    times = {key: None if ns is None else ns / 1e6 for key, ns in values.items()}
    return {"samples": len(samples_ns), **times, "autocorrelation": autocorrelation(samples_ns)}


def autocorrelation(samples: Sequence[int]) -> Optional[float]:
    """Correlation between each sample and the next, in [-1, 1]; None for fewer than 64 samples or if all are equal.

    It is computed from the ranks (Spearman's), so that an outlier of a hundred times the median neither causes nor
    hides it.
    """
    if len(samples) < SAMPLES_NEEDED[90]:
        return None
    values, inverse, counts = np.unique(np.asarray(samples), return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[inverse.reshape(-1)]  # equal samples get their mean rank
    centred = rank - rank.mean()
    power = float(centred @ centred)
    return float(centred[:-1] @ centred[1:]) / power if len(values) > 1 else None


def is_correlated(timing: Mapping[str, Any]) -> bool:
    """Whether the samples of a `summary` are dependent, which makes its percentiles less certain than stated."""
    correlation = timing["autocorrelation"]
    return correlation is not None and abs(correlation) > max(CORRELATED, 2.58 / math.sqrt(timing["samples"]))


def drift(begins_ns: Sequence[int], frames_ns: Sequence[int], longest_s: float = 60.0) -> Optional[Dict[str, float]]:
    """Compare the median frame of the last seconds with that of the first ones.

    Args:
        begins_ns: Start of each frame, ns.
        frames_ns: Time of each frame, ns.
        longest_s: Maximum length of the two windows, s; at most a third of the run.

    Returns:
        {"window_s", "first_ms", "last_ms", "change"}; None if a window has fewer than 20 frames.
    """
    if not begins_ns:
        return None
    span = begins_ns[-1] - begins_ns[0]
    window = min(int(longest_s * 1e9), span // 3)
    first = [ns for begin, ns in zip(begins_ns, frames_ns) if begin < begins_ns[0] + window]
    last = [ns for begin, ns in zip(begins_ns, frames_ns) if begin > begins_ns[-1] - window]
    if min(len(first), len(last)) < 20:
        return None
    before, after = statistics.median(first), statistics.median(last)
    return {"window_s": window / 1e9, "first_ms": before / 1e6, "last_ms": after / 1e6, "change": after / before - 1}


@lru_cache(maxsize=64)
def _over(count: int, percent: int) -> int:
    """The greatest t with P(Binomial(count, 1 - percent/100) <= t) <= 1 - CONFIDENCE; 0 if t = 1 is too large."""
    low, high = 0, math.floor(count * (1 - percent / 100)) + 1  # near one half at the mean
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _at_most(middle, count, 1 - percent / 100) <= 1 - CONFIDENCE else (low, middle)
    return low


def _at_most(t: int, count: int, share: float) -> float:
    """P(Binomial(count, share) <= t), summed downward from t, below the mean, where the terms decrease."""
    log_term = (
        math.lgamma(count + 1) - math.lgamma(t + 1) - math.lgamma(count - t + 1)
        + t * math.log(share) + (count - t) * math.log1p(-share)
    )  # fmt: skip
    term = total = math.exp(log_term)
    for k in range(t, 0, -1):
        term *= k / (count - k + 1) * (1 - share) / share
        total += term
        if term < 1e-17 * total:
            break
    return total
