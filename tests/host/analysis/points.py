"""Hand-made points of a budget sweep."""

from edgeprune.analysis.findings import BudgetPoint


def point(value, kept, spread=0.02):
    interval = None if kept is None else (kept - spread, kept + spread)
    return BudgetPoint(f"macs {value}", value, 1, 1, 1, 1, 0.0, kept, kept, kept, interval)
