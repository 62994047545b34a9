"""budgets: which budgets are tried, one after another."""

import pytest
from edgeprune_device.errors import InputError

from edgeprune.analysis import budgets

from .rungs import rung


def climbed(kind, kept):
    """The ladder of a network that keeps `kept` of each value; a value that is not named cannot be reached."""
    ladder = object.__new__(budgets.BudgetLadder)

    def cut(asked):
        if asked.value not in kept:
            raise InputError("less than can be reached")
        return rung(asked.value, kept[asked.value])

    ladder._rung = cut
    rungs, unreached = ladder.climb(kind, lambda fraction, what: None)
    return [r.value for r in rungs], unreached


def test_half_a_step_is_added_where_the_recommendation_ends():
    kept = {0.9: 0.99, 0.8: 0.95, 0.75: 0.92, 0.7: 0.8, 0.6: 0.6, 0.5: 0.4}
    assert climbed("macs", kept) == (
        [0.9, 0.8, 0.75, 0.7, 0.6, 0.5], ["macs 0.4: less than can be reached"]
    )  # fmt: skip
    assert climbed("ratio", {0.1: 0.8, 0.05: 0.9, 0.2: 0.6})[0] == [0.05, 0.1, 0.2]
    assert climbed("macs", {v: 1.0 for v in budgets.LADDERS["macs"]})[0] == list(budgets.LADDERS["macs"])
    with pytest.raises(InputError):
        climbed("macs", {})
