"""An analysis as aligned text."""

from __future__ import annotations

from edgeprune_device.option import named
from edgeprune_device.table import rows as lines_of

from edgeprune.analysis.findings import COLLAPSE, KEEP, SHARE, BudgetPoint, Findings, GroupSensitivity
from edgeprune.model.count import Cost


def table(findings: Findings, show: int = 10) -> str:
    """Render the analysis as text: the budgets, the most and least sensitive groups, the recommendation.

    Args:
        findings: the analysis.
        show: number of groups shown at each end.
    """
    return "\n".join([*_whole(findings), "", *_groups(findings, show), "", *_advice(findings)])


def _whole(findings: Findings) -> list[str]:
    head = [
        "budget, no training", "params M", "", "GMACs", "", "channels", "predicted loss", "mAP50-95", "kept", "95 %",
    ]  # fmt: skip
    base = findings.uncut
    rows = [head, _cells("unpruned", base, base, 0.0, findings.accuracy.map50_95, ("-", "-"))]
    rows += [_cells(p.budget, p, base, p.predicted_loss, p.map50_95, _left(p)) for p in findings.rungs]
    lines = lines_of(rows, figures=True)
    lines += [f"not reached: {text}" for text in findings.unreached]
    lines.append(
        f"mAP: on {findings.accuracy.pictures} training images with {findings.accuracy.boxes} boxes, none of them used "
        f"for compensation. Predicted loss: sum of the {findings.criterion} scores of the removed channels. The "
        "channels are chosen in one round; `prune` uses three."
    )
    return lines


def _cells(
    name: str, size: Cost | BudgetPoint, base: Cost, loss: float, map50_95: float | None, left: tuple[str, str]
) -> list[str]:
    return [
        name,
        f"{size.parameters / 1e6:.3g}", f"{size.parameters / base.parameters:.0%}",
        f"{size.macs / 1e9:.3g}", f"{size.macs / base.macs:.0%}",
        str(size.channels),
        f"{loss:.3g}",
        "-" if map50_95 is None else f"{map50_95:.3f}",
        *left,
    ]  # fmt: skip


def _groups(findings: Findings, show: int) -> list[str]:
    tried = sorted(((g, g.divergence) for g in findings.groups if g.divergence is not None), key=lambda pair: -pair[1])
    head = ["group, pruned alone", "channels", "left", "MACs", "divergence"]
    cells = [[label(g), str(g.width), str(g.left), f"{g.macs:.1%}", f"{moved:.3g}"] for g, moved in tried]
    lines = lines_of([head, *cells], figures=True)
    if len(tried) > 2 * show:
        lines[1 + show : -show] = [f"  … {len(tried) - 2 * show} more"]
    lines.append(
        f"{len(tried)} groups, the most sensitive first. About {SHARE:.0%} of each group is removed alone, and the "
        "layers that read it are compensated. MACs: share of the layers that make or read the group."
    )
    if len(tried) < len(findings.groups):
        narrow = len(findings.groups) - len(tried)
        lines.append(f"{narrow} more groups are too narrow to be pruned in steps of {findings.multiple} channels.")
    return lines


def label(group: GroupSensitivity) -> str:
    """The name of a group: the first layer that makes its channels, and the number of further ones.

    Example: `model.2.m.0.cv2.conv +1`.
    """
    return group.layers[0] + (f" +{len(group.layers) - 1}" if len(group.layers) > 1 else "")


def _advice(findings: Findings) -> list[str]:
    advice, first, last = findings.advice, findings.rungs[0], findings.rungs[-1]
    if first.kept is None:
        return [
            "no recommendation: the unpruned network detects none of the labelled objects; use images that resemble "
            "its training data"
        ]
    lines = []
    good = advice.recommended
    if good is None:
        lines.append(
            f"recommended: no pruning; even {first.budget} keeps only {_kept(first)} of the unpruned network's mAP50-95"
        )
    else:
        macs, parameters = good.macs / findings.uncut.macs, good.parameters / findings.uncut.parameters
        lines.append(
            f"recommended: {_option(findings, good)} keeps {_kept(good)} of the unpruned network's mAP50-95 before any "
            f"training, with {macs:.0%} of the MACs and {parameters:.0%} of the parameters"
            + ("; no tighter budget was tried" if good is last else "")
        )
    if good is not None and advice.sure is not good:
        sure = "none of the budgets" if advice.sure is None else _option(findings, advice.sure)
        lines.append(
            f"  {findings.accuracy.pictures} images are too few to confirm that this budget keeps {KEEP:.0%}; the "
            f"interval confirms {sure}"
        )
    if advice.collapse is not None:
        lines.append(
            f"collapse: {_option(findings, advice.collapse)} keeps only {_kept(advice.collapse)}; such a network "
            "needs a long training"
        )
    else:
        lines.append(f"collapse: none; the tightest budget measured, {last.budget}, keeps {_kept(last)}")
    lines.append(
        f"Rule of thumb: a network that kept {KEEP:.0%} before training recovered within 10 epochs (YOLOv8n on "
        f"HIT-UAV); below {COLLAPSE:.0%} too little is left for a short fine-tuning."
    )
    return lines


def _option(findings: Findings, point: BudgetPoint) -> str:
    """The budget as the option that sets it."""
    return named(findings.kind, f"{point.value:g}")


def _kept(point: BudgetPoint) -> str:
    share, interval = _left(point)
    return f"{share} ({interval})"


def _left(point: BudgetPoint) -> tuple[str, str]:
    """The share of the unpruned network's mAP50-95 that a point keeps, and its interval; "-" if unknown."""
    share = "-" if point.kept is None else f"{point.kept:.0%}"
    return share, "-" if point.interval is None else f"{point.interval[0]:.0%} to {point.interval[1]:.0%}"
