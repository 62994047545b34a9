"""ep.build: the whole job."""

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

from edgeprune import cache, checkpoint, demo, ssh, workflow
from edgeprune.api.source import opened
from edgeprune.budget import Budget
from edgeprune.card import card
from edgeprune.checkpoint import Checkpoint
from edgeprune.comparison import GALLERY, Comparison
from edgeprune.progress import Reporter

#: Scenes to fine-tune on and to validate on: less than ten minutes on two cores, more than 4,000 boxes to judge by.
DEMO_SCENES = (200, 400)


@dataclass(frozen=True, repr=False)
class Build:
    """A finished build. record: what build.json says; out: its folder."""

    record: dict[str, Any]
    out: Path

    @classmethod
    def open(cls, out: str | Path) -> Build:
        """The build that lies in a folder.

        Raises:
            InputError: there is none, or it is not finished (edgeprune build --resume).
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
        """The signed bundle."""
        return self.out / self._stage("pack")["bundle"]

    @property
    def page(self) -> Path:
        """The HTML page with everything that was measured."""
        return self.out / self.record["page"]

    @property
    def files(self) -> dict[str, Path]:
        """{model: file}: original, pruned, tuned, fp32, fp16, …"""
        entries = self.record["models"].items()
        return {name: Path(e["path"]) if name == "original" else self.out / e["path"] for name, e in entries}

    @property
    def checkpoint(self) -> Checkpoint:
        """The network that was exported, trained last: a Build can be given to the verbs."""
        return opened(self.files.get("qat", self.files["tuned"]))

    @cached_property
    def comparison(self) -> Comparison:
        """Every model of the build beside the original."""
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
    """Prune, fine-tune, export, quantize, pack a signed bundle, and a page that shows it all.

    Example: `ep.build(ratio=0.2, target="jetson-orin", weights="best.pt", data="data.yaml").bundle`

    The arguments are the options of `edgeprune build`, by the same names and with the same defaults (docs/commands.md).
    Without weights and data: best.pt and data.yaml of the working folder if both are there, else the embedded demo.

    Raises:
        InputError: bad arguments or input, an original that finds nothing, a folder in use, or one that holds another
            build.
        GateError: accuracy, parity or surgery failed: no bundle, but report.html says by how much.
        Interrupted: Ctrl-C; resume goes on.
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
    precision = tuple(precision.split(",") if isinstance(precision, str) else precision)  # as the command line has it
    folder = Path(out) if out is not None else _folder(name, resume=resume)
    options = workflow.Options(
        weights=weights.resolve(), data=data.resolve(), target=target, budget=asked, uniform=uniform,
        portable=portable, steps=steps, criterion=criterion, imgsz=checkpoint.load(weights).input_size(imgsz),
        epochs=epochs, batch=batch, lr=lr, distill=distill, patience=patience, device=device, workers=workers,
        seed=seed, precision=precision, max_drop=max_drop, nms=nms, name=name, qat=qat, on=on, pictures=pictures,
        allow_poor_baseline=allow_poor_baseline,
    )  # fmt: skip
    try:
        return Build(workflow.build(options, folder, reporter, resume=resume), folder)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; the same command with --out {folder} --resume goes on") from None


def _name(given: str | None, base: str, target: str, asked: Budget) -> str:
    """A name that files and bundles may have."""
    short = f"{asked.value:g}" if asked.kind == "ratio" else f"{asked.kind}{asked.value:g}"
    name = given or f"{base}-{Path(target).stem}-{short}".replace(".", "p")
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        return name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "model"


def _inputs(weights, data, reporter: Reporter) -> tuple[Path, Path, str]:
    """(weights, data, what they are called)."""
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
    """(weights, data.yaml) of the embedded demo: a detector, and generated scenes, kept in the cache.

    train, val: how many scenes of each; a scene takes about 30 ms. InputError: the cache cannot be written.
    """
    if train < 1 or val < 1:
        raise InputError(f"{train} scenes to train on and {val} to judge by: 1 or more of each")
    name = "demo" if (train, val) == DEMO_SCENES else f"demo-{train}-{val}"
    return demo.WEIGHTS, demo.write_dataset(cache.folder(name), train, val)


def _folder(name: str, *, resume: bool) -> Path:
    """runs/<name>, then runs/<name>-2, …: the first that is free, or with resume the last that is not."""
    base = Path("runs") / name
    taken = [p for p in (base, *(base.with_name(f"{name}-{i}") for i in range(2, 1000))) if (p / "build.json").exists()]
    if resume:
        return taken[-1] if taken else base
    if not (base / "build.json").exists():
        return base
    return next(p for i in range(2, 1000) if not ((p := base.with_name(f"{name}-{i}")) / "build.json").exists())
