import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.console.eta import Remaining
from edgeprune.console.text import about


def run(seconds, parts=100, start=0.0, eta=None):
    """Yield (time, estimate) after each of `parts` equal advances that take `seconds` in total."""
    eta = eta or Remaining()
    for i in range(1, parts + 1):
        now = start + i * seconds / parts
        eta.update(now, i / parts)
        yield now - start, eta.left(now)


def test_even_work_has_an_exact_estimate_after_three_seconds():
    for now, left in run(100):
        if now < 5:
            assert left is None  # the first advance is ignored, and the others must span three seconds
        elif now < 100:
            assert left == pytest.approx(100 - now, abs=3.1)
        else:
            assert left is None


def test_estimate_counts_down_without_jumps():
    """With batches of 0.7 to 1.3 s, the estimated end seldom changes."""
    eta, now, ends, texts = Remaining(), 0.0, [], []
    for i in range(1, 301):
        now += 1 + 0.3 * (-1) ** i * (i % 3) / 2
        eta.update(now, i / 300)
        left = eta.left(now)
        if left is not None:
            ends.append(round(now + left, 3))
            texts.append(about(left))
    assert len(set(ends)) <= 6 and all(end == pytest.approx(now, rel=0.15) for end in ends)
    assert sum(a != b for a, b in itertools.pairwise(texts)) < 25


def test_estimate_follows_a_machine_that_slows_down():
    eta = Remaining()
    for i in range(1, 51):
        eta.update(i, i / 100)
    assert eta.left(50) == pytest.approx(50, abs=3)
    for i in range(51, 61):
        eta.update(50 + (i - 50) * 4, i / 100)
    assert 80 < eta.left(90) < 160  # the true value is 160; the average since the start would give 60


def test_falling_fraction_starts_a_new_estimate():
    eta = Remaining()
    list(run(100, eta=eta))
    eta.update(101, 0.01)
    assert eta.left(101) is None
    assert [left for now, left in run(10, start=101, eta=eta) if 5 < now < 9] == pytest.approx(
        [10 - now for now, _ in run(10) if 5 < now < 9], abs=3.1
    )


def test_progress_marks_give_no_estimate():
    """A stage that only marks 0.1, 0.4 and 0.9 counts nothing. Time before the first count is ignored."""
    eta = Remaining()
    for now, fraction in ((0, 0.1), (30, 0.1), (60, 0.4), (100, 0.9)):
        eta.update(now, fraction)
        assert eta.left(now) is None
    eta = Remaining()
    eta.update(0, 0.1)
    for i in range(1, 41):  # an hour of calibration, then an image a second
        eta.update(3600 + i, 0.3 + 0.6 * i / 100)
    assert eta.left(3640) < 90


def test_estimate_grows_while_work_hangs():
    eta = Remaining()
    for i in range(1, 91):
        eta.update(i, i / 100)
    assert eta.left(91) == pytest.approx(10, abs=3)
    left = [eta.left(now) for now in range(100, 1000, 100)]
    assert left == sorted(left) and left[0] > 5


@given(st.lists(st.tuples(st.floats(0, 1e4), st.floats(-1, 2)), max_size=60))
def test_any_updates_give_a_finite_estimate_or_none(updates):
    eta, now = Remaining(), 0.0
    for later, fraction in updates:
        now += later
        eta.update(now, min(max(fraction, 0.0), 1.0))
        left = eta.left(now)
        assert left is None or 0 <= left < float("inf")


def test_long_job_keeps_few_records():
    eta = Remaining()
    for i in range(1, 100_001):
        eta.update(i, i / 100_000)
    assert len(eta._seen) <= 256 + 1
