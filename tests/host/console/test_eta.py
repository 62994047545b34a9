import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.console.eta import Remaining
from edgeprune.console.text import about


def run(seconds, parts=100, start=0.0, eta=None):
    """(time, left) after each of `parts` even advances that take so long together."""
    eta = eta or Remaining()
    for i in range(1, parts + 1):
        now = start + i * seconds / parts
        eta.update(now, i / parts)
        yield now - start, eta.left(now)


def test_even_work_is_foretold_from_three_seconds_on():
    for now, left in run(100):
        if now < 5:
            assert left is None  # the first advance is not judged by, and three seconds have to be seen
        elif now < 100:
            assert left == pytest.approx(100 - now, abs=3.1)
        else:
            assert left is None


def test_what_is_said_counts_down_and_does_not_jump():
    """Batches of 0.7 to 1.3 s: the time of the end is the same nearly always."""
    eta, now, ends, said = Remaining(), 0.0, [], []
    for i in range(1, 301):
        now += 1 + 0.3 * (-1) ** i * (i % 3) / 2
        eta.update(now, i / 300)
        left = eta.left(now)
        if left is not None:
            ends.append(round(now + left, 3))
            said.append(about(left))
    assert len(set(ends)) <= 6 and all(end == pytest.approx(now, rel=0.15) for end in ends)
    assert sum(a != b for a, b in itertools.pairwise(said)) < 25


def test_a_machine_that_becomes_slower_is_believed():
    eta = Remaining()
    for i in range(1, 51):
        eta.update(i, i / 100)
    assert eta.left(50) == pytest.approx(50, abs=3)
    for i in range(51, 61):
        eta.update(50 + (i - 50) * 4, i / 100)
    assert 80 < eta.left(90) < 160  # in truth 160; the average since the beginning would say 60


def test_what_falls_back_is_something_else():
    eta = Remaining()
    list(run(100, eta=eta))
    eta.update(101, 0.01)
    assert eta.left(101) is None
    assert [left for now, left in run(10, start=101, eta=eta) if 5 < now < 9] == pytest.approx(
        [10 - now for now, _ in run(10) if 5 < now < 9], abs=3.1
    )


def test_marks_are_no_measure():
    """A stage that says 0.1, 0.4 and 0.9 has counted nothing; nor does what came before the counting count."""
    eta = Remaining()
    for now, fraction in ((0, 0.1), (30, 0.1), (60, 0.4), (100, 0.9)):
        eta.update(now, fraction)
        assert eta.left(now) is None
    eta = Remaining()
    eta.update(0, 0.1)
    for i in range(1, 41):  # an hour of ranges, then a picture a second
        eta.update(3600 + i, 0.3 + 0.6 * i / 100)
    assert eta.left(3640) < 90


def test_work_that_hangs_is_not_done_any_moment():
    eta = Remaining()
    for i in range(1, 91):
        eta.update(i, i / 100)
    assert eta.left(91) == pytest.approx(10, abs=3)
    left = [eta.left(now) for now in range(100, 1000, 100)]
    assert left == sorted(left) and left[0] > 5


@given(st.lists(st.tuples(st.floats(0, 1e4), st.floats(-1, 2)), max_size=60))
def test_any_stream_gives_a_time_or_none(updates):
    eta, now = Remaining(), 0.0
    for later, fraction in updates:
        now += later
        eta.update(now, min(max(fraction, 0.0), 1.0))
        left = eta.left(now)
        assert left is None or 0 <= left < float("inf")


def test_a_long_job_keeps_little():
    eta = Remaining()
    for i in range(1, 100_001):
        eta.update(i, i / 100_000)
    assert len(eta._seen) <= 256 + 1
