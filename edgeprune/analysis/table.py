"""An analysis as aligned text."""

from __future__ import annotations

from edgeprune.analysis.findings import COLLAPSE, KEEP, SHARE, Findings, GroupSensitivity, Rung
from edgeprune.console.text import aligned
from edgeprune.model.count import Cost


def table(found: Findings, show: int = 10) -> str:
    """Render the analysis as text: the rungs, the most and least sensitive groups, the recommendation.

    Args:
        found: the analysis.
        show: number of groups shown at each end.
    """
    return "\n".join([*_whole(found), "", *_groups(found, show), "", *_advice(found)])


def _whole(found: Findings) -> list[str]:
    head = ["cut, no training", "params M", "", "GMACs", "", "channels", "predicted loss", "mAP50-95", "kept", "95 %"]
    base = found.uncut
    rows = [head, _cells("uncut", base, base, 0.0, found.accuracy.map50_95, None, None)]
    rows += [_cells(r.budget, r, base, r.predicted_loss, r.map50_95, r.kept, r.interval) for r in found.rungs]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [aligned(row, widths).rstrip() for row in rows]
    lines += [f"not reached: {text}" for text in found.unreached]
    lines.append(
        f"mAP on {found.accuracy.pictures} training pictures, {found.accuracy.boxes} boxes, that nothing was solved "
        f"with; predicted loss: sum of the {found.criterion} scores of what goes. Chosen in one round; `prune` takes "
        "three."
    )
    return lines


def _cells(name: str, size, base: Cost, loss: float, map50_95, kept, interval) -> list[str]:
    return [
        name,
        f"{size.parameters / 1e6:.3g}", f"{size.parameters / base.parameters:.0%}",
        f"{size.macs / 1e9:.3g}", f"{size.macs / base.macs:.0%}",
        str(size.channels),
        f"{loss:.3g}",
        "-" if map50_95 is None else f"{map50_95:.3f}",
        "-" if kept is None else f"{kept:.0%}",
        "-" if interval is None else f"{interval[0]:.0%} to {interval[1]:.0%}",
    ]  # fmt: skip


def _groups(found: Findings, show: int) -> list[str]:
    tried = sorted((g for g in found.groups if g.divergence is not None), key=lambda g: -g.divergence)
    head = ["group, cut alone", "channels", "left", "MACs", "divergence"]
    cells = [[label(g), str(g.width), str(g.left), f"{g.macs:.1%}", f"{g.divergence:.3g}"] for g in tried]
    widths = [max(len(row[i]) for row in [head, *cells]) for i in range(len(head))]
    lines = [aligned(row, widths) for row in [head, *cells]]
    if len(tried) > 2 * show:
        lines[1 + show : -show] = [f"  … {len(tried) - 2 * show} between"]
    lines.append(
        f"{len(tried)} groups, the most sensitive first: about {SHARE:.0%} of each goes alone, its readers re-solved. "
        "MACs: of what makes and reads it."
    )
    if len(tried) < len(found.groups):
        lines.append(f"{len(found.groups) - len(tried)} more are too narrow to be cut in steps of {found.multiple}.")
    return lines


def label(group: GroupSensitivity) -> str:
    """The name of a group: the first layer that makes its channels, and the number of others.

    Example: `model.2.m.0.cv2.conv +1`.
    """
    return group.layers[0] + (f" +{len(group.layers) - 1}" if len(group.layers) > 1 else "")


def _advice(found: Findings) -> list[str]:
    advice, first, last = found.advice, found.rungs[0], found.rungs[-1]
    if first.kept is None:
        return ["nothing to recommend: the uncut network finds nothing on these pictures; are they the kind it knows?"]
    lines = []
    good = advice.recommended
    if good is None:
        lines.append(f"recommended: no cut; already {first.budget} keeps only {_kept(first)} of the uncut mAP50-95")
    else:
        macs, parameters = good.macs / found.uncut.macs, good.parameters / found.uncut.parameters
        lines.append(
            f"recommended: --{good.budget} keeps {_kept(good)} of the uncut mAP50-95 before any training, "
            f"with {macs:.0%} of the MACs and {parameters:.0%} of the parameters"
            + ("; no larger cut was tried" if good is last else "")
        )
    if good is not None and advice.sure is not good:
        safe = f"by the interval, --{advice.sure.budget} does" if advice.sure else "by the interval, no cut here does"
        lines.append(f"  {found.accuracy.pictures} pictures are too few to be sure that it keeps {KEEP:.0%}; {safe}")
    if advice.collapse is not None:
        lines.append(
            f"collapse: --{advice.collapse.budget} leaves {_kept(advice.collapse)}: from there on, long training is "
            "needed"
        )
    else:
        lines.append(f"collapse: not down to {last.budget}, which keeps {_kept(last)}")
    lines.append(
        f"A rule of thumb: what keeps {KEEP:.0%} untrained came back within 10 epochs where it was tried (YOLOv8n, "
        f"HIT-UAV); below {COLLAPSE:.0%} too little is left for a short fine-tuning."
    )
    return lines


def _kept(rung: Rung) -> str:
    return f"{rung.kept:.0%} ({rung.interval[0]:.0%} to {rung.interval[1]:.0%})"
