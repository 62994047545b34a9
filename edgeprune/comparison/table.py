"""A comparison as aligned text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeprune.comparison import per_class
from edgeprune.comparison.row import Row
from edgeprune.console.text import number, table
from edgeprune.model.head import NOTE


def as_text(rows: Sequence[Row], data: Mapping[str, Any] | None) -> str:
    """Render the rows of a comparison as aligned text.

    Args:
        rows: one Row a model.
        data: description of the validation images, as in `Comparison`.
    """
    head = ["model", "params M", "GMACs", "channels", "size MB", "ms p50", "x", "FPS", "mAP50-95", "mAP50", "found"]
    lines = table([head, *(_cells(row) for row in rows)])
    measured = [row for row in rows if not row.recorded]
    lines.append("")
    timed = next((row for row in measured if row.latency_ms), None)  # None in a build that failed early
    if timed:
        runtime = timed.latency_ms["runtime"]
        lines.append(f"ms, x, FPS: inference alone (no pre- or post-processing), {runtime}, in turns;")
        lines.append("x: speed relative to the first row.  -: not measured or not countable in this form.")
    for row in rows:
        if row.recorded:
            on = f"; mAP on {row.pictures} pictures" if row.pictures else ""
            lines.append(f"*: {row.path}: {row.measured_with}, {row.latency_ms['runtime']}{on}; not of this run.")
    for caveat in dict.fromkeys(row.caveat for row in measured if row.caveat):
        names = ", ".join(row.name for row in measured if row.caveat == caveat)
        lines.append(f"of {names}: {caveat}.")
    if data and measured:
        pictures = data["pictures"]
        lines.append(f"mAP: {pictures} pictures, conf 0.001, IoU 0.7; found: detections of conf >= 0.25.")
        if two := [row.name for row in measured if row.head and row.map50_95 is not None]:
            lines.append(f"mAP of {', '.join(two)}: that of {NOTE}.")
        for row in measured[1:]:
            if lost := per_class.worst(measured[0].per_class, row.per_class):
                lines.append(f"{row.name}: worst class {lost[0]}, mAP50-95 {lost[1]:.3f} -> {lost[2]:.3f}.")
    return "\n".join(lines)


def _cells(row: Row) -> list[str]:
    took = row.latency_ms or {}
    return [
        row.name,
        number(row.parameters, 2, 1e6),
        number(row.macs, 2, 1e9),
        number(row.channels, 0),
        number(row.size_bytes, 2, 1e6),
        number(took.get("p50")),
        number(took.get("speedup")),
        number(row.fps_inference_only, 1),
        number(row.map50_95, 3),
        number(row.map50, 3),
        number(row.objects_found, 0),
    ]
