"""Measures how much of a network can be removed before any training: budget by budget, and group by group.

For each budget of a ladder, the whole network is pruned, compensated, and measured on training images that were not
used for compensation. The channels are chosen in one round from one scoring; `prune` takes three rounds and keeps a
little more accuracy. The sensitivity of a group is the output divergence when that group alone gives up `SHARE` of its
channels and the convolutions that read them are compensated.

The recommendation is the largest cut that keeps `KEEP` of the uncut mAP50-95 before any training. It is a rule of thumb
from this project's measurements (docs/ratio.md, docs/own-data.md; benchmarks/results). YOLOv8n on HIT-UAV kept 96 % at
76 % of its MACs and 92 % at 65 %; both were back at the uncut figure or above it after 1 to 10 epochs. On COCO it kept
90 to 93 % at 80 % of its MACs and 56 to 60 % at 65 %; no training was tried. Below `COLLAPSE` too little accuracy is
left for a short fine-tuning.
"""

from __future__ import annotations

import base64
import html
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from edgeprune_device.files import write_atomic
from torch import nn

from edgeprune.analysis import chart
from edgeprune.analysis.budgets import BudgetLadder, Measure, ProgressCallback
from edgeprune.analysis.findings import Advice, Findings
from edgeprune.analysis.sensitivity import sensitivity
from edgeprune.analysis.table import table
from edgeprune.data.samples import Samples
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
        shown = f'<img alt="What the table says" style="max-width:100%" src="data:image/png;base64,{picture}">'
        return f'{shown}<pre style="overflow:auto">{text}</pre>'


def analyze_network(
    model: nn.Module,
    *,
    criterion: str,
    kind: str,
    multiple: int,
    imgsz: int,
    samples: Samples,
    judges: torch.Tensor,
    measure: Measure,
    name: str = "model",
    progress: ProgressCallback = lambda fraction, what: None,
) -> Analysis:
    """Try a ladder of budgets and every group; the network is scored once, and not changed.

    Args:
        model: the network.
        criterion: name of the importance criterion.
        kind: the cost that the budgets limit: macs, params or ratio.
        multiple: channel multiple that channel counts are rounded to.
        imgsz: network input, px.
        samples: training images to score and to compensate with.
        judges: (N, 3, H, W) float32 images, none of `samples`, on which the predictions are compared.
        measure: returns the accuracy of a network on images that are none of `samples`.
        name: name of the model in the findings.
        progress: receives the fraction done and a line of text.

    Returns:
        The findings, as `Analysis`.

    Raises:
        InputError: no budget of the ladder can be reached.
        GateError: surgery is not exact on this model.
    """
    progress(0.0, f"{criterion}: scoring channels")
    channels = trace(model)
    scores = criteria.load(criterion)(model, channels, samples)
    units = budget.units(channels, scores, multiple)
    ladder = BudgetLadder(model, channels, scores, units, criterion, multiple, imgsz, samples, measure)
    progress(0.1, "measuring the uncut network")
    rungs, unreached = ladder.climb(kind, lambda fraction, what: progress(0.15 + 0.45 * fraction, what))
    groups = sensitivity(
        model, channels, scores, units, samples.pictures, judges, lambda f, what: progress(0.6 + 0.4 * f, what)
    )
    return Analysis(
        name, kind, criterion, multiple, imgsz, ladder.uncut, ladder.accuracy, tuple(rungs), tuple(unreached),
        tuple(groups), Advice.of(rungs),
    )  # fmt: skip
