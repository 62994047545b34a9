import math
import random

import pytest
from edgeprune_device.reports import percentiles
from hypothesis import given
from hypothesis import strategies as st


def at_most(t, count, share):
    """P(Binomial(count, share) <= t), term by term."""
    return sum(
        math.exp(
            math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
            + k * math.log(share) + (count - k) * math.log1p(-share)
        )
        for k in range(t + 1)
    )  # fmt: skip


@pytest.mark.parametrize("percent, needed", [(50, 1), (90, 64), (95, 130), (99, 662)])
def test_percentiles_need_enough_samples(percent, needed):
    assert percentiles.SAMPLES_NEEDED[percent] == needed
    assert percentiles.percentile(range(needed), percent) is not None
    assert percentiles.percentile(range(needed - 1), percent) is None
    if percent > 50:  # the minimum number of samples of which one may be above, derived again
        share = 1 - percent / 100
        assert at_most(1, needed, share) <= 0.01 < at_most(1, needed - 1, share)


@pytest.mark.parametrize(
    "count, discarded",
    [(201, 9), (659, 47), (708, 51), (2048, 172), (2116, 178), (2145, 181), (7469, 685), (79944, 7796)],
)
def test_estimate_equals_that_of_loadgen(count, discarded):
    """From published MLPerf logs of SingleStream: "Would discard N highest latency queries" for p90."""
    samples = list(range(count))
    random.Random(0).shuffle(samples)
    assert percentiles.percentile(samples, 90) == count - 1 - discarded


@given(st.integers(64, 3000), st.sampled_from([90, 95, 99]))
def test_estimate_holds_in_99_of_100_runs(count, percent):
    value = percentiles.percentile(range(count), percent)
    if count < percentiles.SAMPLES_NEEDED[percent]:
        assert value is None
        return
    t, share = count - value, 1 - percent / 100
    assert at_most(t, count, share) <= 0.01 < at_most(t + 1, count, share)
    assert value >= percent * count / 100 - 1  # never below the plain percentile


def test_estimate_from_many_samples_is_close_to_the_plain_percentile():
    assert 0.9 < percentiles.percentile(range(1_000_000), 90) / 1e6 < 0.901


def test_median_is_a_sample():
    assert percentiles.percentile([5, 1, 3], 50) == 3
    assert percentiles.percentile([1, 2], 50) == 1


def test_summary_has_units_and_nulls():
    few = percentiles.summary([1_000_000, 3_000_000])
    assert few == {
        "samples": 2,
        "min_ms": 1.0,
        "mean_ms": 2.0,
        "p50_ms": 1.0,
        "p90_ms": None,
        "p95_ms": None,
        "p99_ms": None,
        "max_ms": 3.0,
        "autocorrelation": None,
    }


def test_correlated_samples_are_flagged():
    rng, level = random.Random(1), 0.0
    independent = [int(1e7 + 1e5 * rng.gauss(0, 1)) for _ in range(1000)]
    wandering = []
    for _ in range(1000):
        level = 0.9 * level + rng.gauss(0, 1)
        wandering.append(int(1e7 + 1e5 * level))
    assert not percentiles.is_correlated(percentiles.summary(independent))
    assert percentiles.is_correlated(percentiles.summary(wandering))
    assert percentiles.autocorrelation(wandering) == pytest.approx(0.9, abs=0.06)
    # An outlier of a thousand times the median does not hide the correlation.
    assert percentiles.is_correlated(percentiles.summary([*wandering[:500], 10**10, *wandering[500:]]))
    assert percentiles.autocorrelation([7] * 100) is None and percentiles.autocorrelation([1, 2] * 31) is None
    assert percentiles.autocorrelation([1, 2] * 50) < -0.9


def test_drift_compares_start_and_end():
    begins = [int(i * 1e8) for i in range(3000)]  # 300 s
    frames = [int(1e6 * (20 + 5 * i / 3000)) for i in range(3000)]
    drift = percentiles.drift(begins, frames)
    assert drift["window_s"] == 60 and drift["first_ms"] == pytest.approx(20.5, abs=0.01)
    assert drift["change"] == pytest.approx(24.5 / 20.5 - 1, abs=1e-3)
    short = percentiles.drift(begins[:90], frames[:90])
    assert short["window_s"] == pytest.approx(8.9 / 3, abs=1e-6)
    assert percentiles.drift(begins[:30], frames[:30]) is None and percentiles.drift([], []) is None
