"""`ep.analyze`: how much of a network can be removed."""

from __future__ import annotations

from pathlib import Path

from edgeprune_device.errors import InputError
from edgeprune_device.target import Target

from edgeprune.analysis import budgets, sensitivity
from edgeprune.analysis.analyze import Analysis, analyze_network
from edgeprune.api.source import Model, opened
from edgeprune.console.progress import Reporter
from edgeprune.data import dataset, samples
from edgeprune.measuring import accuracy
from edgeprune.measuring.sessions import TorchSession
from edgeprune.model.threads import ready
from edgeprune.pruning import criteria


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
    """Measure accuracy against budget and the sensitivity of each group, without training, and recommend a budget.

    Args:
        model: the detector: a .pt file, an Ultralytics YOLO, its network, or the result of another verb. It is not
            changed.
        data: the data set. Its training images are used to score, to compensate and to measure; its validation images
            are not used.
        kind: the cost that the budgets limit: "macs", "params" or "ratio".
        criterion: name of the importance criterion; not "auto".
        imgsz: network input, px; None: the size that the weights were trained at.
        target: name of the target, whose channel multiple the channel counts are rounded to.
        quiet: print warnings only.

    Returns:
        The `Analysis`: its rungs, groups and advice; it prints as a table, and plots.

    Raises:
        InputError: an argument, the model or the data is invalid, or no budget of the ladder can be reached.
        GateError: surgery is not exact on this model.
    """
    if kind not in budgets.LADDERS:
        raise InputError(f"--kind {kind}: takes {', '.join(budgets.LADDERS)}")
    if criterion == "auto":
        raise InputError("analyze looks at one criterion at a time: --criterion energy, or another by name")
    multiple = Target.load(target).channel_multiple
    criteria.load(criterion)
    reporter = ready(Reporter(quiet=quiet))
    source = opened(model)
    size = source.input_size(imgsz)
    pictures = dataset.load(data)
    dataset.check_names(pictures, source.names)
    solve, select = samples.split(pictures.train, size)
    if set(solve) & set(select):
        few = len(pictures.train)
        reporter.warn(f"only {few} training pictures: measured on the pictures solved with, so too high")
    with reporter.stage("analyze") as progress:
        return analyze_network(
            source.model,
            criterion=criterion,
            kind=kind,
            multiple=multiple,
            imgsz=size,
            samples=samples.read(pictures, solve, size),
            judges=samples.read(pictures, samples.pick(select, sensitivity.COMPARED), size).pictures,
            measure=lambda network: accuracy.evaluate(TorchSession(network, size), pictures, select, size),
            name=source.path.name,
            progress=progress,
        )
