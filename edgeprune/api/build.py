"""`ep.build`: every stage from a checkpoint to a signed bundle."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from edgeprune_device import strict_json
from edgeprune_device.errors import InputError, Interrupted, reason
from edgeprune_device.option import named
from edgeprune_device.size import largest_of
from edgeprune_device.target import Target
from typing_extensions import Unpack

from edgeprune import cache, demo, tasks
from edgeprune.api.source import opened
from edgeprune.comparison.comparison import Comparison
from edgeprune.console.progress import Reporter
from edgeprune.data import dataset
from edgeprune.drones import ssh
from edgeprune.model import checkpoint
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.threads import ready
from edgeprune.options import BuildOptions, budget, takes
from edgeprune.pruning.budget import Budget
from edgeprune.workflow.build import run_build
from edgeprune.workflow.card import card
from edgeprune.workflow.job import BuildRequest

#: Numbers of scenes for fine-tuning and validation: below ten minutes on two cores, and above 4,000 validation boxes.
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
            InputError: the folder contains no build, or one that is not finished (`edgeprune build --resume` continues
                it).
        """
        out = Path(out)
        try:
            record = json.loads((out / "build.json").read_text())
            done = [stage["name"] for stage in record["stages"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{out}: no build in this folder ({error}); give the folder of a finished build"
            ) from error
        if "page" not in done:
            again = f"edgeprune build --resume --out {shlex.quote(str(out))}"
            raise InputError(f"{out}: the build is not finished; continue it with {again}")
        return cls(record, out)

    @property
    def bundle(self) -> Path:
        """The file of the signed bundle."""
        return self.out / str(self._stage("pack")["bundle"])

    @property
    def page(self) -> Path:
        """The file of the HTML report, which contains every figure of the build."""
        return self.out / str(self.record["page"])

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
            InputError: comparison.json cannot be read, or has another version.
        """
        path = self.out / "comparison.json"
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({reason(error)})") from error
        return Comparison.from_json(strict_json.loads(content, str(path)), str(path))

    def _stage(self, name: str) -> dict[str, Any]:
        entries: list[dict[str, Any]] = self.record["stages"]
        return next(entry for entry in entries if entry["name"] == name)

    def __str__(self) -> str:
        return card(self.record, self.out).strip()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.comparison._repr_html_()


@takes(BuildOptions)
def build(**options: Unpack[BuildOptions]) -> Build:
    """Prune, fine-tune, export, quantize, and pack a signed bundle; an HTML report shows every figure.

    Example: `ep.build(ratio=0.2, target="jetson-orin", weights="best.pt", data="data.yaml").bundle`

    Exactly one of `ratio`, `macs`, `params`, `latency_ratio` and `latency_ms` is the budget. Without `weights` and
    `data`, the build takes best.pt and data.yaml of the working folder if both exist, else the built-in demo.

    Args:
        options: see `BuildOptions`.

    Returns:
        The finished `Build`.

    Raises:
        InputError: an argument or an input is invalid, the original detects nothing, or the folder is in use or holds
            another build.
        GateError: accuracy, parity or surgery failed a gate. No bundle is written; report.html shows by how much.
        Interrupted: the user pressed Ctrl-C; `resume=True` continues the build.
    """
    reporter = Reporter(quiet=options["quiet"])
    asked = Budget.asked(**budget(options))
    Target.load(options["target"])
    if options["on"] is not None:
        ssh.parse(options["on"])
    if options["task"] is not None:
        tasks.get(options["task"], named("task"))
    weights, data, base = _inputs(options, reporter)
    name = _name(options["name"], base, options["target"], asked)
    out = options["out"]
    folder = Path(out) if out is not None else _folder(name, resume=options["resume"])
    source = checkpoint.load(weights)
    if options["task"] not in (None, source.task):
        raise InputError(f"{named('task', options['task'])}: contradicts {weights}, whose task is {source.task}")
    shapes = dataset.shapes(data, reporter) if largest_of(options["imgsz"]) else None
    imgsz = source.input_size(options["imgsz"], reporter.warn, shapes=shapes)
    request = BuildRequest(options, weights.resolve(), data.resolve(), imgsz, name)
    try:
        return Build(run_build(request, folder, ready(reporter), resume=options["resume"]), folder)
    except KeyboardInterrupt:
        again = f"{named('out', folder)} {named('resume', True)}"
        raise Interrupted(f"interrupted; the same command with {again} continues the build") from None


def _name(given: str | None, base: str, target: str, asked: Budget) -> str:
    """The given name, or one from weights, target and budget, in the characters that files and bundles allow."""
    short = f"{asked.value:g}" if asked.kind == "ratio" else f"{asked.kind}{asked.value:g}"
    name = given or f"{base}-{Path(target).stem}-{short}".replace(".", "p")
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        return name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "model"


def _inputs(options: BuildOptions, reporter: Reporter) -> tuple[Path, Path, str]:
    """The weights, the data, and the base of the build's name."""
    weights, data = options["weights"], options["data"]
    if weights is None and data is None:
        if Path("best.pt").is_file() and Path("data.yaml").is_file():
            reporter.say("using ./best.pt and ./data.yaml")
            return Path("best.pt"), Path("data.yaml"), "best"
        reporter.say(
            "no best.pt and data.yaml in this folder, so the build uses the built-in demo detector and its synthetic "
            "scenes.\nFor your own model: edgeprune build --weights best.pt --data data.yaml --ratio … --target …"
        )
        task = options["task"] or tasks.DETECT.name
        return *embedded_demo(*DEMO_SCENES, task=task), "demo" if task == tasks.DETECT.name else f"demo-{task}"
    if weights is None or data is None:
        missing = named("data", "data.yaml") if data is None else named("weights", "best.pt")
        raise InputError(f"{missing}: missing; give both options, because a model is pruned on images of its task")
    return Path(weights), Path(data), Path(weights).stem


def embedded_demo(train: int = 200, val: int = 400, task: str = tasks.DETECT.name) -> tuple[Path, Path]:
    """Return the files of the built-in demo: a detector, and synthetic scenes, which are kept in the cache.

    Args:
        train: number of training scenes; one scene takes about 30 ms to generate.
        val: number of validation scenes.
        task: task of the detector and of its labels, detect or obb.

    Returns:
        `(weights, data.yaml)`.

    Raises:
        InputError: a number is below 1, the task is unknown, or the cache cannot be written.
    """
    if train < 1 or val < 1:
        raise InputError(f"scenes: too few (found {train} for training and {val} for validation, expected at least 1)")
    if not demo.NETWORKS[tasks.get(task, named("task")).name].is_file():
        raise InputError(f"{named('task', task)}: no built-in demo has this task; give weights and data")
    base = "demo" if task == tasks.DETECT.name else f"demo-{task}"
    name = base if (train, val) == DEMO_SCENES else f"{base}-{train}-{val}"
    return demo.NETWORKS[task], demo.write_dataset(cache.folder(name), train, val, task=task)


def _folder(name: str, *, resume: bool) -> Path:
    """The first free folder of runs/<name>, runs/<name>-2, …; with `resume` the last one that holds a build."""
    base = Path("runs") / name
    taken = [p for p in (base, *(base.with_name(f"{name}-{i}") for i in range(2, 1000))) if (p / "build.json").exists()]
    if resume:
        return taken[-1] if taken else base
    if not (base / "build.json").exists():
        return base
    return next(p for i in range(2, 1000) if not ((p := base.with_name(f"{name}-{i}")) / "build.json").exists())
