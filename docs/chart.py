"""Draws images/accuracy-macs.svg from the recorded benchmark of the pruners: python docs/chart.py

Every point is a figure of benchmarks/results/*-pruning.json; a test fails when the image is stale.
"""

from __future__ import annotations

import json
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).parents[1]
IMAGE = ROOT / "docs/images/accuracy-macs.svg"
#: (result, title, distance of the labels below their points in px)
PANELS = (("hituav", "HIT-UAV, thermal images from a drone", 19), ("demo", "the built-in demo, synthetic scenes", -9))
#: The greatest mAP50-95 of the axis, in points.
MOST = 40
#: method: (label, colour of Okabe and Ito, line width)
METHODS = {
    "ours": ("edgeprune", "#000000", 3.0),
    "tp-taylor": ("torch-pruning, Taylor", "#009E73", 1.8),
    "uniform": ("uniform widths by L1", "#D55E00", 1.8),
}
CONTROL = ("control: not pruned, the same training", "#AA4499")
WIDTH, HEIGHT, LEFT, TOP, BOTTOM, GAP = 860, 356, 46, 44, 250, 60


def image() -> str:
    """The chart as SVG."""
    width = (WIDTH - 2 * LEFT - GAP + 20) / 2
    panels = [_panel(*panel, LEFT + i * (width + GAP), width) for i, panel in enumerate(PANELS)]
    first = json.loads((ROOT / "benchmarks/results/hituav-pruning.json").read_text())
    job = first["job"]
    note = (
        f"YOLOv8n, {job['imgsz']} px, {job['epochs']} epochs of fine-tuning for all, mean of 3 seeds; classes with at "
        "least 30 boxes. Source: benchmarks/results/*-pruning.json"
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="system-ui, -apple-system, Segoe UI, Roboto, sans-serif" font-size="13" fill="#222">',
        "<title>mAP50-95 after fine-tuning against the multiply-accumulates kept</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        *panels,
        *_legend(),
        _text(WIDTH / 2, HEIGHT - 12, note, "middle", size=11, colour="#555"),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _panel(name: str, title: str, below: int, left: float, width: float) -> str:
    rows = json.loads((ROOT / f"benchmarks/results/{name}-pruning.json").read_text())["rows"]
    control = next(row for row in rows if row["method"] == "control")

    def x(row: dict) -> float:
        return left + width * (0.85 - row["macs"] / control["macs"]) / 0.5

    def y(points: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * points / MOST

    parts = [_text(left, TOP - 18, title, weight="bold")]
    for tick in range(0, MOST + 1, 10):
        parts.append(_line(left, y(tick), left + width, y(tick), "#ddd", 1))
        parts.append(_text(left - 8, y(tick) + 4, str(tick), "end", colour="#555"))
    for share in (80, 60, 40):
        place = x({"macs": control["macs"] * share / 100})
        parts.append(_text(place, BOTTOM + 20, f"{share} %", "middle", colour="#555"))
    parts.append(_text(left + width / 2, BOTTOM + 40, "MACs kept", "middle", colour="#555"))
    parts.append(_text(left - 8, TOP - 18, "mAP", "end", colour="#555"))
    level = y(_points(control))
    parts.append(_line(left, level, left + width, level, CONTROL[1], 1.8, dashed=True))
    for method, (_, colour, thick) in METHODS.items():
        chosen = sorted((row for row in rows if row["method"] == method), key=x)
        places = [(x(row), y(_points(row))) for row in chosen]
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{thick}"/>')
        for row, (a, b) in zip(chosen, places):
            parts.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4" fill="{colour}"/>')
            if method == "ours":
                parts.append(_text(a, b + below, f"{_points(row):.1f}", "middle", size=12, weight="bold"))
    return "\n".join(parts)


def _points(row: dict) -> float:
    """Mean mAP50-95 over the seeds, in points."""
    return 100 * sum(tuned["map50_95"] for tuned in row["tuned"]) / len(row["tuned"])


def _legend() -> list[str]:
    entries = [(label, colour, thick, False) for label, colour, thick in METHODS.values()]
    entries.append((*CONTROL, 1.8, True))
    parts, left = [], float(LEFT)
    for label, colour, thick, dashed in entries:
        parts += [
            _line(left, BOTTOM + 63, left + 26, BOTTOM + 63, colour, thick, dashed),
            _text(left + 33, BOTTOM + 67, label),
        ]
        left += 56 + 6.6 * len(label)
    return parts


def _text(
    x: float,
    y: float,
    words: str,
    anchor: str = "start",
    *,
    size: int = 13,
    colour: str = "#222",
    weight: str = "normal",
) -> str:
    style = f'font-size="{size}" fill="{colour}" font-weight="{weight}" text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(words)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, thick: float, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="6 4"' if dashed else ""
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{thick}"{dash}/>'


if __name__ == "__main__":
    IMAGE.write_text(image())
