"""`ep.analyze`: how much of a network can be removed."""

from __future__ import annotations

from pathlib import Path

from edgeprune_device.errors import InputError
from edgeprune_device.option import named
from edgeprune_device.target import Target
from typing_extensions import Unpack

from edgeprune.analysis import sensitivity
from edgeprune.analysis.analyze import Analysis, analyze_network
from edgeprune.analysis.findings import AnalysisRequest
from edgeprune.api.source import Model, opened
from edgeprune.console.progress import Reporter
from edgeprune.data import dataset, samples
from edgeprune.measuring import accuracy
from edgeprune.measuring.sessions import TorchSession
from edgeprune.model.device import choose
from edgeprune.model.threads import ready
from edgeprune.options import AnalyzeOptions, takes
from edgeprune.pruning import criteria


@takes(AnalyzeOptions)
def analyze(model: Model, data: str | Path, **options: Unpack[AnalyzeOptions]) -> Analysis:
    """Measure accuracy against budget and the sensitivity of each group, without training, and recommend a budget.

    Args:
        model: the detector: a .pt file, an Ultralytics YOLO, its network, or the result of another verb. It is not
            changed.
        data: the data set. Its training images are used to score, to compensate and to measure; its validation images
            are not used.
        options: see `AnalyzeOptions`.

    Returns:
        The `Analysis` with `rungs` (one per budget), groups and advice. It prints as a table; `plot()` draws it.

    Raises:
        InputError: an argument, the model or the data is invalid, or none of the budgets can be reached.
        GateError: surgery is not exact on this model.
    """
    criterion = options["criterion"]
    if criterion == "auto":
        raise InputError(f"{named('criterion', 'auto')}: not available in analyze; name one criterion, such as energy")
    multiple = Target.load(options["target"]).channel_multiple
    criteria.load(criterion)
    reporter = ready(Reporter(quiet=options["quiet"]))
    source = opened(model, head=options["head"])
    pictures = dataset.load(data, task=source.task, strict=options["strict"], reporter=reporter)
    dataset.check_names(pictures, source.names)
    size = source.input_size(options["imgsz"], reporter.warn, shapes=pictures.shapes)
    solve, select = samples.split(pictures.train, size)
    if set(solve) & set(select):
        few = len(pictures.train)
        reporter.warn(
            f"only {few} training images: mAP is measured on the images used for compensation, and is therefore too "
            "high"
        )
    device = choose(options["device"])
    reporter.say(f"device: {device.description}")
    with reporter.stage("analyze") as progress:
        return analyze_network(
            source.model,
            AnalysisRequest(options["kind"], criterion, multiple, size, source.path.name),
            samples=samples.read(pictures, solve, size).to(device.torch),
            judges=samples.read(pictures, samples.pick(select, sensitivity.COMPARED), size).pictures,
            measure=lambda network: accuracy.evaluate(
                TorchSession(network, size, device.torch), pictures, select, size, warn=reporter.warn
            ),
            progress=progress,
        )
