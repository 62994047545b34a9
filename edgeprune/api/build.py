"""`ep.build`: every stage from a checkpoint to a signed bundle."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from edgeprune_device import strict_json
from edgeprune_device.errors import InputError, Interrupted
from edgeprune_device.target import Target

from edgeprune import cache, demo
from edgeprune.api.source import opened
from edgeprune.comparison.compare import GALLERY
from edgeprune.comparison.comparison import Comparison
from edgeprune.console.progress import Reporter
from edgeprune.drones import ssh
from edgeprune.model import checkpoint
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.threads import ready
from edgeprune.pruning.budget import Budget
from edgeprune.workflow import job
from edgeprune.workflow.build import run_build
from edgeprune.workflow.card import card

#: Scenes to fine-tune on and to validate on: less than ten minutes on two cores, more than 4,000 boxes to measure on.
DEMO_SCENES = (200, 400)


@dataclass(frozen=True, repr=False)
class Build:
    """A finished build.

    Attributes:
        record: the content of build.json.
        out: the folder of the build.
    """

    record: dict[str, Any]
    out: Path

    @classmethod
    def open(cls, out: str | Path) -> Build:
        """Open the finished build in a folder.

        Args:
            out: the folder that holds build.json.

        Raises:
            InputError: the folder holds no build, or one that is not finished (`edgeprune build --resume` continues
                it).
        """
        out = Path(out)
        try:
            record = json.loads((out / "build.json").read_text())
            done = [stage["name"] for stage in record["stages"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{out}: holds no build ({error})") from error
        if "page" not in done:
            raise InputError(f"{out}: this build is not finished: edgeprune build --resume --out {out}")
        return cls(record, out)

    @property
    def bundle(self) -> Path:
        """The file of the signed bundle."""
        return self.out / self._stage("pack")["bundle"]

    @property
    def page(self) -> Path:
        """The file of the HTML page with every figure of the build."""
        return self.out / self.record["page"]

    @property
    def files(self) -> dict[str, Path]:
        """The file of each model as `{model: file}`: original, pruned, tuned, fp32, fp16, …"""
        entries = self.record["models"].items()
        return {name: Path(e["path"]) if name == "original" else self.out / e["path"] for name, e in entries}

    @property
    def checkpoint(self) -> Checkpoint:
        """The trained network that was exported; through it a Build can be given to the other verbs."""
        return opened(self.files.get("qat", self.files["tuned"]))

    @cached_property
    def comparison(self) -> Comparison:
        """Every model of the build beside the original, from comparison.json.

        Raises:
            InputError: comparison.json cannot be read, or is of another version.
        """
        path = self.out / "comparison.json"
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()})") from error
        return Comparison.from_json(strict_json.loads(content, str(path)), str(path))

    def _stage(self, name: str) -> dict[str, Any]:
        return next(stage for stage in self.record["stages"] if stage["name"] == name)

    def __str__(self) -> str:
        return card(self.record, self.out).strip()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.comparison._repr_html_()


def build(
    *,
    target: str,
    ratio: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    latency_ratio: float | None = None,
    latency_ms: float | None = None,
    weights: str | Path | None = None,
    data: str | Path | None = None,
    imgsz: int | None = None,
    criterion: str = "auto",
    uniform: bool = False,
    portable: bool = False,
    steps: int = 1,
    epochs: int = 10,
    batch: int = 4,
    lr: float = 1e-4,
    distill: bool = False,
    patience: int = 0,
    qat: int = 0,
    device: str = "cpu",
    workers: int = 0,
    seed: int = 0,
    precision: Sequence[str] = ("fp32", "fp16", "int8"),
    max_drop: float = 0.003,
    nms: bool = False,
    on: str | None = None,
    name: str | None = None,
    pictures: int = GALLERY,
    allow_poor_baseline: bool = False,
    out: str | Path | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> Build:
    """Prune, fine-tune, export, quantize, and pack a signed bundle, with a page that shows every figure.

    Example: `ep.build(ratio=0.2, target="jetson-orin", weights="best.pt", data="data.yaml").bundle`

    The arguments are the options of `edgeprune build`, with the same names and defaults (docs/commands.md). Exactly one
    of `ratio`, `macs`, `params`, `latency_ratio` and `latency_ms` is the budget. Without `weights` and `data`, the
    build takes best.pt and data.yaml of the working folder if both exist, else the embedded demo.

    Args:
        target: name of the target device, or its JSON file.
        ratio: fraction of the prunable channels to remove, in [0, 1).
        macs: fraction of the multiply-accumulates to keep, in (0, 1].
        params: fraction of the parameters to keep, in (0, 1].
        latency_ratio: fraction of the latency to keep, measured on this machine.
        latency_ms: latency of one image, ms, measured on this machine.
        weights: the trained checkpoint (.pt).
        data: the data set.
        imgsz: network input, px; None: the size that the weights were trained at.
        criterion: name of the importance criterion, `module:function`, or "auto".
        uniform: remove the same share of every group.
        portable: keep only widths that Ultralytics' YAML can express.
        steps: rounds of pruning and fine-tuning, which share `epochs`.
        epochs: fine-tuning epochs in all.
        batch: images a training step.
        lr: learning rate (AdamW, 100 steps of warm-up, cosine).
        distill: fine-tune with the original as the teacher, too.
        patience: epochs without a better figure on held-back training images after which training stops; 0: never.
        qat: epochs of INT8-aware training after fine-tuning; 0: none.
        device: training device: "cpu", the number of a GPU, or several: "0,1".
        workers: data loading processes.
        seed: seed of the training.
        precision: precisions to make, of fp32, fp16 and int8; fp32 is required.
        max_drop: limit of a precision's accuracy drop against FP32, absolute mAP50-95.
        nms: put NMS into the ONNX files.
        on: the reference device, as ssh takes it, that builds the engines and measures them.
        name: name of the bundle; None: derived from the weights, the target and the budget.
        pictures: number of images in the page's gallery; 0: none.
        allow_poor_baseline: build even if the original's mAP50-95 is below 0.01.
        out: folder of the build; None: a free folder runs/<name>.
        resume: continue an interrupted build of the same inputs.
        quiet: print warnings only.

    Returns:
        The finished `Build`.

    Raises:
        InputError: an argument or an input is invalid, the original detects nothing, or the folder is in use or holds
            another build.
        GateError: accuracy, parity or surgery failed a gate. No bundle is written; report.html shows by how much.
        Interrupted: the user pressed Ctrl-C; `resume=True` continues the build.
    """
    reporter = Reporter(quiet=quiet)
    if qat < 0:
        raise InputError(f"--qat {qat}: give 1 epoch or more, or leave it out")
    asked = Budget.asked(
        ratio=ratio, macs=macs, params=params, latency_ratio=latency_ratio, latency_ms=latency_ms
    )  # fmt: skip
    Target.load(target)
    if on is not None:
        ssh.parse(on)
    weights, data, base = _inputs(weights, data, reporter)
    name = _name(name, base, target, asked)
    precision = tuple(precision.split(",") if isinstance(precision, str) else precision)  # as on the command line
    folder = Path(out) if out is not None else _folder(name, resume=resume)
    options = job.BuildOptions(
        weights=weights.resolve(), data=data.resolve(), target=target, budget=asked, uniform=uniform,
        portable=portable, steps=steps, criterion=criterion, imgsz=checkpoint.load(weights).input_size(imgsz),
        epochs=epochs, batch=batch, lr=lr, distill=distill, patience=patience, device=device, workers=workers,
        seed=seed, precision=precision, max_drop=max_drop, nms=nms, name=name, qat=qat, on=on, pictures=pictures,
        allow_poor_baseline=allow_poor_baseline,
    )  # fmt: skip
    try:
        return Build(run_build(options, folder, ready(reporter), resume=resume), folder)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; the same command with --out {folder} --resume goes on") from None


def _name(given: str | None, base: str, target: str, asked: Budget) -> str:
    """The given name, or one from weights, target and budget, in the characters that files and bundles allow."""
    short = f"{asked.value:g}" if asked.kind == "ratio" else f"{asked.kind}{asked.value:g}"
    name = given or f"{base}-{Path(target).stem}-{short}".replace(".", "p")
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        return name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "model"


def _inputs(weights, data, reporter: Reporter) -> tuple[Path, Path, str]:
    """The weights, the data, and the base of the build's name."""
    if weights is None and data is None:
        if Path("best.pt").is_file() and Path("data.yaml").is_file():
            reporter.say("using ./best.pt and ./data.yaml")
            return Path("best.pt"), Path("data.yaml"), "best"
        reporter.say(
            "no best.pt and data.yaml here: using the embedded demo detector and its generated scenes.\n"
            "For your own model: edgeprune build --weights best.pt --data data.yaml --ratio … --target …"
        )
        return *embedded_demo(*DEMO_SCENES), "demo"
    for given, other, missing in ((weights, data, "--data data.yaml"), (data, weights, "--weights best.pt")):
        if given is not None and other is None:
            raise InputError(f"{missing} is missing: a model is pruned on pictures of its own task")
    return Path(weights), Path(data), Path(weights).stem


def embedded_demo(train: int = 200, val: int = 400) -> tuple[Path, Path]:
    """Return the files of the embedded demo: a detector, and generated scenes, which are kept in the cache.

    Args:
        train: number of training scenes; one scene takes about 30 ms to generate.
        val: number of validation scenes.

    Returns:
        `(weights, data.yaml)`.

    Raises:
        InputError: a number is below 1, or the cache cannot be written.
    """
    if train < 1 or val < 1:
        raise InputError(f"{train} scenes to train on and {val} to judge by: 1 or more of each")
    name = "demo" if (train, val) == DEMO_SCENES else f"demo-{train}-{val}"
    return demo.WEIGHTS, demo.write_dataset(cache.folder(name), train, val)


def _folder(name: str, *, resume: bool) -> Path:
    """The first free folder of runs/<name>, runs/<name>-2, …; with `resume` the last one that holds a build."""
    base = Path("runs") / name
    taken = [p for p in (base, *(base.with_name(f"{name}-{i}") for i in range(2, 1000))) if (p / "build.json").exists()]
    if resume:
        return taken[-1] if taken else base
    if not (base / "build.json").exists():
        return base
    return next(p for i in range(2, 1000) if not ((p := base.with_name(f"{name}-{i}")) / "build.json").exists())
