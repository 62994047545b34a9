"""How much a network bears before any training: as a whole, budget by budget, and group by group.

The whole is cut and compensated for each of a ladder of budgets and measured on training pictures that nothing was
solved with; chosen in one round from one scoring, where `prune` takes three and keeps a little more. A group's
sensitivity is how far the predictions move when it alone gives `SHARE` of its channels and what reads them is re-solved
in closed form.

What is recommended is the largest cut that keeps `KEEP` of the uncut mAP50-95 before any training. That is a rule of
thumb, from what was measured on this project (docs/ratio.md, docs/own-data.md; benchmarks/results): YOLOv8n on HIT-UAV
kept 96 % at 76 % of its MACs and 92 % at 65 %, and both were back at the uncut figure or above it after 1 to 10 epochs;
on COCO it kept 90 to 93 % at 80 % of its MACs and 56 to 60 % at 65 %, and no training was tried. Below `COLLAPSE` too
little is left for a short fine-tuning.
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
from edgeprune.analysis.budgets import Ladder, Measure, Step
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
    """The findings of one analysis; they print as a table, and plot."""

    def __str__(self) -> str:
        return table(self)

    __repr__ = __str__

    def plot(self) -> Figure:
        """Accuracy against budget, and the sensitivity of every group, as a matplotlib Figure."""
        return chart.figure(self)

    def save_plot(self, path: str | Path) -> Path:
        """The same as a PNG."""
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
    step: Step = lambda fraction, what: None,
) -> Analysis:
    """Try a ladder of budgets and every group; the network is scored once, and not changed.

    Args:
        kind: what the budgets count: macs, params or ratio.
        multiple: rounding of channel counts.
        samples: training pictures to score and to compensate with.
        judges: (N, 3, H, W) float32 pictures, none of `samples`, on which predictions are compared.
        measure: accuracy on pictures that are none of `samples`.
        name: what the model is called.

    Raises:
        InputError: not a budget of the ladder can be reached.
        GateError: surgery is not exact on this model.
    """
    step(0.0, f"{criterion}: scoring channels")
    channels = trace(model)
    scores = criteria.load(criterion)(model, channels, samples)
    units = budget.units(channels, scores, multiple)
    ladder = Ladder(model, channels, scores, units, criterion, multiple, imgsz, samples, measure)
    step(0.1, "measuring the uncut network")
    rungs, unreached = ladder.climb(kind, lambda fraction, what: step(0.15 + 0.45 * fraction, what))
    groups = sensitivity(
        model, channels, scores, units, samples.pictures, judges, lambda f, what: step(0.6 + 0.4 * f, what)
    )
    return Analysis(
        name, kind, criterion, multiple, imgsz, ladder.uncut, ladder.accuracy, tuple(rungs), tuple(unreached),
        tuple(groups), Advice.of(rungs),
    )  # fmt: skip
