"""budgets: the order in which budgets are tried."""

import pytest
from edgeprune_device.errors import InputError

from edgeprune.analysis import budgets

from .points import point


def swept(kind, kept):
    """Sweep a network that keeps `kept[value]` of its mAP at each budget; other values cannot be reached."""
    sweep = object.__new__(budgets.BudgetSweep)

    def cut(asked):
        if asked.value not in kept:
            raise InputError("less than can be reached")
        return point(asked.value, kept[asked.value])

    sweep._point = cut
    points, unreached = sweep.run(kind, lambda fraction, what: None)
    return [r.value for r in points], unreached


def test_sweep_adds_half_a_step_after_the_recommended_budget():
    kept = {0.9: 0.99, 0.8: 0.95, 0.75: 0.92, 0.7: 0.8, 0.6: 0.6, 0.5: 0.4}
    assert swept("macs", kept) == (
        [0.9, 0.8, 0.75, 0.7, 0.6, 0.5], ["macs 0.4: less than can be reached"]
    )  # fmt: skip
    assert swept("ratio", {0.1: 0.8, 0.05: 0.9, 0.2: 0.6})[0] == [0.05, 0.1, 0.2]
    assert swept("macs", {v: 1.0 for v in budgets.BUDGETS["macs"]})[0] == list(budgets.BUDGETS["macs"])
    with pytest.raises(InputError):
        swept("macs", {})
