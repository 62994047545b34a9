"""ep.analyze: how much of a network can go."""

from __future__ import annotations

from pathlib import Path

from edgeprune_device.errors import InputError
from edgeprune_device.target import Target

from edgeprune import analysis, criteria, dataset, measure, samples
from edgeprune.analysis import Analysis
from edgeprune.api.source import Model, opened
from edgeprune.progress import Reporter
from edgeprune.threads import use_all_cores


def analyze(
    model: Model,
    data: str | Path,
    *,
    kind: str = "macs",
    criterion: str = "energy",
    imgsz: int | None = None,
    target: str = "jetson-orin",
    quiet: bool = False,
) -> Analysis:
    """Accuracy against budget before any training, the sensitivity of each group, and a recommendation.

    Args:
        data: its training pictures serve; the validation pictures are not looked at.
        kind: what the budgets count: macs, params or ratio.
        criterion: who chooses, by name.
        target: whose multiples the channel counts are rounded to.

    Raises:
        InputError: bad arguments, model or data. GateError: surgery is not exact on this model.
    """
    use_all_cores()
    reporter = Reporter(quiet=quiet)
    if kind not in analysis.LADDERS:
        raise InputError(f"--kind {kind}: takes {', '.join(analysis.LADDERS)}")
    if criterion == "auto":
        raise InputError("analyze looks at one criterion at a time: --criterion energy, or another by name")
    multiple = Target.load(target).channel_multiple
    criteria.load(criterion)
    source = opened(model)
    size = source.input_size(imgsz)
    pictures = dataset.load(data)
    dataset.check_names(pictures, source.names)
    solve, select = samples.split(pictures.train, size)
    if set(solve) & set(select):
        few = len(pictures.train)
        reporter.warn(f"only {few} training pictures: measured on the pictures solved with, so too high")
    with reporter.stage("analyze") as step:
        return analysis.analyze(
            source.model,
            criterion=criterion,
            kind=kind,
            multiple=multiple,
            imgsz=size,
            samples=samples.read(pictures, solve, size),
            judges=samples.read(pictures, samples.pick(select, analysis.COMPARED), size).pictures,
            measure=lambda network: measure.evaluate(measure.TorchSession(network, size), pictures, select, size),
            name=source.path.name,
            step=step,
        )
