"""Measures how much of a network can be removed before any training: budget by budget, and group by group.

For each of several budgets, the whole network is pruned, compensated, and measured on training images that were not
used for compensation. The channels are chosen in one round from one scoring; `prune` uses three rounds and keeps a
little more accuracy. The sensitivity of a group is the output divergence after `SHARE` of its channels, and no others,
have been removed and the convolutions that read them have been compensated.

The recommendation is the tightest budget that keeps `KEEP` of the unpruned network's mAP50-95 before any training. It
is a rule of thumb from this project's measurements (docs/ratio.md, docs/own-data.md; benchmarks/results). YOLOv8n on
HIT-UAV kept 96 % at 76 % of its MACs and 92 % at 65 %; both reached the unpruned network's mAP50-95 again after 1 to 10
epochs. On COCO it kept 90 to 93 % at 80 % of its MACs and 56 to 60 % at 65 %; no training was tried. Below `COLLAPSE`
too little accuracy is left for a short fine-tuning.
"""

from __future__ import annotations

import base64
import html
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from edgeprune_device.files import write_atomic
from edgeprune_device.progress import Progress, part, silent
from torch import nn

from edgeprune.analysis import chart
from edgeprune.analysis.budgets import BudgetSweep, Measure
from edgeprune.analysis.findings import Advice, AnalysisRequest, Findings
from edgeprune.analysis.sensitivity import sensitivity
from edgeprune.analysis.table import table
from edgeprune.data.samples import Samples
from edgeprune.model.device import beside, exact
from edgeprune.model.head import idle
from edgeprune.pruning import budget, criteria
from edgeprune.pruning.channels import trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class Analysis(Findings):
    """The findings of one analysis, with their table and plot."""

    def __str__(self) -> str:
        return table(self)

    __repr__ = __str__

    def plot(self) -> Figure:
        """Plot accuracy against budget, and the sensitivity of every group, as a matplotlib Figure."""
        return chart.figure(self)

    def save_plot(self, path: str | Path) -> Path:
        """Write the plot as a PNG file, and return its path."""
        return write_atomic(Path(path), chart.png(self))

    def _repr_html_(self) -> str:
        picture = base64.b64encode(chart.png(self)).decode()
        text = html.escape(table(self))
        shown = f'<img alt="The figures of the table" style="max-width:100%" src="data:image/png;base64,{picture}">'
        return f'{shown}<pre style="overflow:auto">{text}</pre>'


@exact()
def analyze_network(
    model: nn.Module,
    ask: AnalysisRequest,
    *,
    samples: Samples,
    judges: torch.Tensor,
    measure: Measure,
    progress: Progress = silent,
) -> Analysis:
    """Measure the accuracy at several budgets and the sensitivity of every group.

    The channels are scored once, and the network is not changed.

    Args:
        model: the network.
        ask: the analysis request.
        samples: training images for scoring and compensation.
        judges: (N, 3, H, W) float32 images outside `samples`, on which the predictions are compared.
        measure: returns the accuracy of a network on images outside `samples`.
        progress: receives the fraction done and a line of text.

    Returns:
        The findings, as `Analysis`.

    Raises:
        InputError: none of the budgets can be reached.
        GateError: surgery is not exact on this model.
    """
    progress(0.0, f"{ask.criterion}: scoring channels")
    model, judges = beside(model, samples.pictures), judges.to(samples.pictures.device)
    channels = trace(model, idle=idle(model))
    shown = part(progress, 0, 0.1, f"{ask.criterion}: scoring channels")
    scores = criteria.load(ask.criterion)(model, channels, samples, shown)
    units = budget.units(channels, scores, ask.multiple)
    sweep = BudgetSweep(model, channels, scores, units, ask, samples, measure)
    progress(0.1, "measuring the unpruned network")
    points, unreached = sweep.run(ask.kind, lambda fraction, text: progress(0.15 + 0.45 * fraction, text))
    groups = sensitivity(
        model, channels, scores, units, samples.pictures, judges, lambda f, text: progress(0.6 + 0.4 * f, text)
    )
    return Analysis(
        ask.name, ask.kind, ask.criterion, ask.multiple, ask.imgsz, sweep.uncut, sweep.accuracy, tuple(points),
        tuple(unreached), tuple(groups), Advice.of(points),
    )  # fmt: skip
