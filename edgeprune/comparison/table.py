"""A comparison as aligned text."""

from __future__ import annotations

from collections.abc import Sequence

from edgeprune_device import table

from edgeprune.comparison.facts import ValidationImages
from edgeprune.comparison.row import Row
from edgeprune.console.text import number
from edgeprune.measuring import per_class
from edgeprune.model.head import NOTES


def as_text(rows: Sequence[Row], data: ValidationImages | None) -> str:
    """Render the rows of a comparison as aligned text.

    Args:
        rows: one Row for each model.
        data: the validation images; None without a data set.
    """
    head = ["model", "params M", "GMACs", "channels", "size MB", "ms p50", "x", "FPS", "mAP50-95", "mAP50", "found"]
    lines = table.rows([head, *(_cells(row) for row in rows)], figures=True)
    measured = [row for row in rows if not row.recorded]
    lines.append("")
    runtime = next((row.latency_ms["runtime"] for row in measured if row.latency_ms), None)
    if runtime:  # None in a build that failed early
        lines.append(f"ms, x, FPS: inference only (no pre- or post-processing), {runtime}, measured alternately.")
        lines.append("x: speed relative to the first row.  -: not measured, or not countable in this file type.")
    for row in rows:
        if row.recorded:
            on = f"; mAP on {row.pictures} images" if row.pictures else ""
            how = f"{row.measured_with}, {row.latency_ms['runtime']}" if row.latency_ms else row.measured_with
            lines.append(f"*: {row.path}: {how}{on}; from another run.")
    for caveat in dict.fromkeys(row.caveat for row in measured if row.caveat):
        names = ", ".join(row.name for row in measured if row.caveat == caveat)
        lines.append(f"note on {names}: {caveat}.")
    if data and measured:
        images, total = data["pictures"], data.get("total")
        if total in (None, images):
            chosen = f"{images} images"
        else:
            chosen = f"{images} of {total} images, evenly spread"
            spreads = [(row.name, row.map50_95_interval) for row in measured if row.map50_95_interval]
            lines += [f"{name}: 95 % interval of mAP50-95 {low:.3f} to {high:.3f}." for name, (low, high) in spreads]
        lines.append(f"mAP: {chosen}, conf 0.001, IoU 0.7; found: detections with conf >= 0.25.")
        if bare := data.get("unlabelled", {}).get("val"):
            lines.append(f"{bare:,} validation images have no label file.")
        for which, note in NOTES.items():
            if of := [row.name for row in measured if row.head == which and row.map50_95 is not None]:
                lines.append(f"mAP of {', '.join(of)}: measured with {note}.")
        for row in measured[1:]:
            if lost := per_class.worst(measured[0].per_class, row.per_class):
                lines.append(f"{row.name}: worst class {lost[0]}, mAP50-95 {lost[1]:.3f} -> {lost[2]:.3f}.")
    return "\n".join(lines)


def _cells(row: Row) -> list[str]:
    took = row.latency_ms
    return [
        row.name,
        number(row.parameters, 2, 1e6),
        number(row.macs, 2, 1e9),
        number(row.channels, 0),
        number(row.size_bytes, 2, 1e6),
        number(took["p50"] if took else None),
        number(took["speedup"] if took else None),
        number(row.fps_inference_only, 1),
        number(row.map50_95, 3),
        number(row.map50, 3),
        number(row.objects_found, 0),
    ]
