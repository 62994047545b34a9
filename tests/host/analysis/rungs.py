"""Rungs of a ladder by hand."""

from edgeprune.analysis.findings import Rung


def rung(value, kept, spread=0.02):
    interval = None if kept is None else (kept - spread, kept + spread)
    return Rung(f"macs {value}", value, 1, 1, 1, 1, 0.0, kept, kept, kept, interval)
