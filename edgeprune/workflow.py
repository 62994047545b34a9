"""`edgeprune build`: the list of stages, resumable.

Every stage reads what earlier ones left on disk and in `build.json`, and is entered there only when its files are
whole. Interrupted anywhere, `--resume` goes on at the first stage that is not entered; fine-tuning at its last epoch.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import io
import itertools
import json
import os
import shutil
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from edgeprune_device import keys
from edgeprune_device.errors import EdgepruneError, GateError, InputError
from edgeprune_device.files import check_writable, sha256, write_atomic
from edgeprune_device.hint import did_you_mean
from edgeprune_device.target import Target

import edgeprune
from edgeprune import checkpoint, comparison, criteria, dataset, measure, nms, on, pruning, qat, samples, ssh, tracking
from edgeprune import head as heads
from edgeprune.budget import Budget
from edgeprune.finetuning import Settings, check_device
from edgeprune.progress import Reporter

SCHEMA_VERSION = 1
PRECISIONS = ("fp32", "fp16", "int8")


#: Options that nothing depends on before a stage: they may change on --resume while it is not done.
_FIRST_USED = {
    "baseline": ("allow_poor_baseline",),
    "finetune": ("epochs", "batch", "lr", "distill", "patience", "device", "workers", "seed"),
    "export": ("nms",),
    "quantize": ("precision", "max_drop"),
}
#: Options that may be another on --resume: what they change begins with these stages, and is done again.
_BEGINS = {"qat": ("qat", "export"), "on": ("reference", "pack"), "pictures": ("page",)}
_MADE_BY = {
    "baseline": ("original",), "prune": ("pruned",), "finetune": ("tuned",), "qat": ("qat",), "export": ("fp32",),
    "quantize": ("fp16", "int8", "int8-fp16"),
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What was asked for. weights and data as resolved paths; everything that a stage's result depends on is here."""

    weights: Path
    data: Path
    target: str
    budget: Budget
    uniform: bool
    portable: bool
    steps: int
    criterion: str
    imgsz: int
    epochs: int
    batch: int
    lr: float
    distill: bool
    patience: int
    device: str
    workers: int
    seed: int
    precision: tuple[str, ...]
    max_drop: float
    nms: bool
    name: str
    qat: int = 0  # epochs; 0: without
    on: str | None = None  # a device, as ssh has it, that builds the engines and measures them
    pictures: int = comparison.GALLERY  # in the page's gallery
    allow_poor_baseline: bool = False

    def settings(self, epochs: int) -> Settings:
        return Settings(
            epochs, self.batch, self.lr, self.imgsz, self.device, self.workers, self.seed, patience=self.patience
        )

    def qat_settings(self) -> Settings:
        return replace(self.settings(self.qat), lr=self.lr * qat.RATE, patience=0, qat=True)

    def to_json(self) -> dict:
        texts = {"weights": str(self.weights), "data": str(self.data), "budget": str(self.budget)}
        return {**asdict(self), **texts, "precision": list(self.precision)}


class Job:
    """One build: its options, its folder, its record (`build.json`), and what several stages read."""

    def __init__(self, options: Options, out: Path, reporter: Reporter) -> None:
        self.options, self.out, self.reporter = options, out, reporter
        self.work = out / "work"
        self.record: dict = {}
        self.lost: dict = {}  # figures of models that a gate has refused

    # -- inputs, read once -----------------------------------------------------------------------------------------
    @functools.cached_property
    def target(self) -> Target:
        return Target.load(self.options.target)

    @functools.cached_property
    def original(self) -> checkpoint.Checkpoint:
        return checkpoint.load(self.options.weights)

    @property
    def start(self) -> checkpoint.Checkpoint:
        """What the last cut begins with: the original, or the outcome of the step before it."""
        if self.options.steps == 1:
            return self.original
        return checkpoint.load(self.out / f"step{self.options.steps - 1}.pt")

    @functools.cached_property
    def data(self) -> dataset.Dataset:
        data = dataset.load(self.options.data)
        dataset.check_names(data, self.original.names)
        return data

    @functools.cached_property
    def shared(self) -> int:
        """Validation pictures that are training pictures too."""
        return self.data.overlap()

    @functools.cached_property
    def splits(self) -> dict[str, list[Path]]:
        """Training pictures to `solve` with and to `select` by; neither touches the validation pictures."""
        return dict(zip(("solve", "select"), samples.split(self.data.train, self.options.imgsz)))

    @functools.cached_property
    def features(self):
        return samples.read(self.data, self.splits["solve"], self.options.imgsz)

    def measured(self, step):
        """pruning.measured, once a process."""
        if not hasattr(self, "_measured"):
            self._measured = pruning.measured(
                self.options.budget, self.original.model, self.imgsz, self.target.channel_multiple, step
            )
        return self._measured

    # -- where things lie ------------------------------------------------------------------------------------------
    @property
    def imgsz(self) -> int:
        return self.options.imgsz

    def model_path(self, model: str) -> Path:
        if model == "original":
            return self.options.weights
        return self.out / (f"{model}.pt" if model in ("pruned", "tuned", "qat") else f"model.{model}.onnx")

    @property
    def trained(self) -> Path:
        """The network that is exported."""
        return self.model_path("qat" if self.options.qat else "tuned")

    @property
    def bundle_path(self) -> Path:
        return self.out / f"{self.options.name}.epb"

    def finish(self, model):
        """An ONNX model as it is delivered."""
        return nms.add(model) if self.options.nms else model

    # -- figures ---------------------------------------------------------------------------------------------------
    def evaluate(self, session, step: Callable[[float, str], None], model: str):
        """(Accuracy, Matches) on all validation pictures; what `model` finds in each is kept for the page."""
        total, shown = len(self.data.val), []
        accuracy, matches = measure.evaluate(
            session, self.data, self.data.val, self.imgsz,
            lambda n: step(n / total, f"{model}: {n}/{total} pictures"), shown,
        )  # fmt: skip
        self._found(model).parent.mkdir(parents=True, exist_ok=True)
        stream = io.BytesIO()
        np.savez(stream, rows=np.concatenate(shown), ends=np.cumsum([len(rows) for rows in shown]))
        write_atomic(self._found(model), stream.getvalue())
        return accuracy, matches

    def shown(self, model: str) -> list[np.ndarray] | None:
        """What `evaluate` has kept: per picture (n, 6) [x1, y1, x2, y2, score, class] px; None where it did not run."""
        try:
            with np.load(self._found(model)) as kept:
                return np.split(kept["rows"], kept["ends"][:-1])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return None

    def _found(self, model: str) -> Path:
        return self.work / "shown" / f"{model}.npz"

    def enter(
        self, model: str, path: Path, accuracy=None, cost=None, timing: measure.Timing | None = None, **more
    ) -> None:
        """Note a model's figures; what was not measured stays null."""
        entry = self.record["models"].setdefault(model, dict.fromkeys(_FIGURES))
        entry["path"] = str(path) if model == "original" else path.name
        entry["imgsz"] = self.imgsz
        entry.update(self.figures(model, accuracy))
        if cost is not None:
            entry.update(cost.to_json())
        if timing is not None:
            entry.update(timing.to_json())
        entry.update(more)

    def figures(self, model: str, accuracy) -> dict:
        """What the validation pictures said of a model; {} before it was asked."""
        if accuracy is None:
            return {}
        shown = self.shown(model)
        return {
            **comparison.accuracy_of(accuracy),
            "objects_found": shown and sum(map(len, shown)),
            "head": heads.of_network(self.original.model),
        }

    def write(self) -> None:
        write_atomic(self.out / "build.json", json.dumps(self.record, indent=1) + "\n")


_FIGURES = (
    "path", "imgsz", "parameters", "macs", "channels", "size_bytes", "map50", "map50_95", "small_map50_95", "per_class",
    "pictures", "objects_found", "head", "latency_ms", "stages_ms", "fps_inference_only", "fps_end_to_end",
)  # fmt: skip
Stage = Callable[[Job, Callable[[float, str], None]], dict]


def stages(options: Options) -> list[tuple[str, Stage]]:
    """The pipeline; all steps but the last are one stage each."""
    from edgeprune import stages as s

    return [
        ("baseline", s.baseline),
        *((f"step {i}", functools.partial(s.step, number=i)) for i in range(1, options.steps)),
        ("plan", s.plan),
        ("prune", s.prune),
        ("finetune", s.tune),
        *([("qat", s.qat)] if options.qat else []),
        ("export", s.export),
        ("quantize", s.quantize),
        ("engine", s.engine),
        *([("reference", s.reference)] if options.on else []),
        ("pack", s.pack),
        ("page", s.page),
    ]


def build(options: Options, out: Path, reporter: Reporter, *, resume: bool = False) -> dict:
    """Run every stage that is not done yet; returns the record, which is also `build.json`.

    Raises:
        InputError: bad options or input, a folder in use, or one that holds another build.
        GateError: accuracy, parity or the oracle failed; no bundle is left.
    """
    _check(options)
    job = Job(options, out, reporter)
    _check_inputs(job)
    with _locked(out):
        job.record = _begin(job, resume)
        if job.record["stages"]:
            job.write()  # what is done again is not done: also where this process is killed before it is
        finished = {s["name"] for s in job.record["stages"]}
        pipeline = stages(options)
        if options.on and "reference" not in finished:
            _check_reference(job)
        reporter.plan(len(pipeline))
        for name, stage in pipeline:
            if name in finished:
                reporter.skip(name)
                continue
            _run(job, name, stage)
        _track(job)
        shutil.rmtree(job.work, ignore_errors=True)
    return job.record


def _run(job: Job, name: str, stage: Stage) -> None:
    start = time.monotonic()
    try:
        with job.reporter.stage(name) as step:
            result = stage(job, step)
    except EdgepruneError as error:
        if isinstance(error, GateError):
            job.record["failed"] = {"stage": name, "reason": str(error), "models": job.lost}
            job.write()  # before anything that can be interrupted, or fail
            _show(job)
            job.write()
            _track(job)
        raise
    files = {f: sha256(job.out / f) for f in result.pop("files", [])}
    note = result.pop("note", None)
    job.record["stages"].append(
        {"name": name, "seconds": round(time.monotonic() - start, 1), "files": files, **result}
    )
    job.record.pop("failed", None)
    job.write()
    if note:
        job.reporter.done(note)


def _show(job: Job) -> None:
    """The page of a build that failed a gate: what was measured until then, and by how much it failed."""
    from edgeprune import stages as s

    try:
        s.page(job, lambda fraction, what: None)
    except Exception as error:  # whatever it is: the gate's own word must come through
        job.reporter.warn(f"no page of what was measured ({type(error).__name__}: {error})")
    else:
        job.reporter.say(f"what was measured: {job.out / s.PAGE}")


def _track(job: Job) -> None:
    """The figures and files of the build, in the runs that the user's trackers have of its training."""
    files = [job.out / name for name in ("plan.json", "tuned.pt", "qat.pt", "build.json")]
    for folder in (job.work, job.work / "qat"):
        for line in tracking.report(folder, job.record["models"], [f for f in files if f.is_file()]):
            job.reporter.say(line)


def _check(options: Options) -> None:
    """Cheap checks first: nothing is read or written before they hold."""
    if not 1 <= options.steps <= options.epochs:
        raise InputError(
            f"--steps {options.steps} is outside [1, {options.epochs}], --epochs: every step is followed by fine-tuning"
        )
    if options.pictures < 0:
        raise InputError(f"--pictures {options.pictures}: must be 0 (none) or more")
    if not 0 <= options.max_drop <= 1:
        raise InputError(f"--max-drop {options.max_drop:g} is outside [0, 1]: it is an absolute mAP50-95")
    unknown = [p for p in options.precision if p not in PRECISIONS]
    if unknown or "fp32" not in options.precision:
        given = ",".join(options.precision)
        near = did_you_mean(unknown[0], PRECISIONS) if unknown else ""
        raise InputError(f"--precision takes fp32 and any of {', '.join(PRECISIONS[1:])}: got {given} {near}".rstrip())
    options.settings(options.epochs)
    check_device(options.device)
    target = Target.load(options.target)
    if options.qat:
        options.qat_settings()
        if "int8" not in options.precision:
            raise InputError(f"--qat trains for INT8, which --precision {','.join(options.precision)} leaves out")
        if target.int8_activations != "signed":
            raise InputError(
                f"--qat trains for the signed INT8 of GPUs; target {target.name} has unsigned: leave --qat out"
            )
    if options.on:
        ssh.parse(options.on)
        if target.int8_activations != "signed":
            raise InputError(f"--on builds TensorRT engines, which target {target.name} has none of: leave --on out")
    criteria.resolve(options.criterion, pictures=True)


def _check_inputs(job: Job) -> None:
    """The inputs as a whole, before anything long starts."""
    data = job.data
    job.original.input_size(job.imgsz)
    if len(data.train) < 8:
        job.reporter.warn(f"only {len(data.train)} training pictures: choices are made on the pictures solved with")
    if job.options.nms and heads.has_one_to_one(job.original.model):
        raise InputError("--nms: this model's head gives one box per object already; leave --nms out")
    if job.options.qat:
        qat.check(job.original.model, job.imgsz)
    if "int8" in job.options.precision and not data.boxes(job.splits["select"]).sum():
        raise InputError(
            f"{data.path}: INT8's calibration is chosen on {len(job.splits['select'])} of the training pictures, and "
            "none of those has a labelled box; label more, or leave int8 out of --precision"
        )
    bare = sum(not len(data.labels(p)) for p in data.train)
    if bare > len(data.train) // 2:
        job.reporter.warn(f"{bare} of {len(data.train)} training pictures have no labelled box")
    shared = job.shared
    if shared:
        job.reporter.warn(
            f"{shared} of {len(data.val)} validation pictures are training pictures too: "
            "every mAP of this build is too high to trust"
        )


def _check_reference(job: Job) -> None:
    """Whether it is there, can build engines, and is known: asked now, as it is needed only after hours."""
    signer = keys.fingerprint(keys.load_or_create().verify_key)
    with ssh.Link(job.options.on, say=job.reporter.say) as link:
        agent = on.meet(link, signer)
    job.reporter.say(f"engines are built and measured by {agent.name} ({job.options.on})")


def _begin(job: Job, resume: bool) -> dict:
    """The record to go on with: a fresh one, or that of an interrupted build of the same inputs."""
    inputs = {
        "edgeprune": edgeprune.__version__,
        "options": job.options.to_json(),
        "weights_sha256": sha256(job.options.weights),
        "target_sha256": hashlib.sha256(json.dumps(job.target.to_json(), sort_keys=True).encode()).hexdigest(),
        "data_sha256": job.data.sha256,
    }
    path = job.out / "build.json"
    if not path.exists():
        record = {
            "schema_version": SCHEMA_VERSION, "inputs": inputs,
            "pictures": {"train": len(job.data.train), "val": len(job.data.val),
                         "val_boxes": int(job.data.boxes(job.data.val).sum()), "train_in_val": job.shared},
            "stages": [], "models": {},
        }  # fmt: skip
        return record
    if not resume:
        raise InputError(f"{job.out} already holds a build: go on with --resume, or give another --out")
    record, whole = _read_record(job, path)
    # Where INT8 fails the gate, the next thing to try is --qat: what comes before it stays. So with --on.
    before = record["inputs"]
    others = [o for o in _BEGINS if before["options"].get(o, getattr(Options, o)) != getattr(job.options, o)]
    begins = [stage for option in others for stage in _BEGINS[option]]
    whole = list(itertools.takewhile(lambda s: s["name"] not in begins, whole))
    done = [s["name"] for s in whole]
    free = {o for stage, names in _FIRST_USED.items() if stage not in done for o in names}
    changed = [k for k in inputs["options"] if inputs["options"][k] != before.get("options", {}).get(k)]
    changed = [k for k in changed if k not in free and k not in _BEGINS]
    changed += [k for k in inputs if k != "options" and inputs[k] != before.get(k)]
    if changed:
        raise InputError(f"{job.out}: cannot resume, {', '.join(changed)} changed since; give another --out")
    for stage in record["stages"][len(whole) :]:  # what it made is not delivered any more
        why = " and ".join(f"--{option} is another" for option in others)
        why = why or "a file of it, or of a stage before it, is missing or changed"
        job.reporter.warn(f"doing {stage['name']} again: {why}")
        for file in stage["files"]:
            (job.out / file).unlink(missing_ok=True)
        for model in _MADE_BY.get(stage["name"], ()):
            record["models"].pop(model, None)
    record.update(inputs=inputs, stages=whole)
    record.pop("failed", None)
    if len(whole) < len(stages(job.options)):
        record.pop("page", None)
    return record


def _read_record(job: Job, path: Path) -> tuple[dict, list[dict]]:
    """The record, and those of its stages whose files, and all files before them, are as they were left."""
    try:
        record = json.loads(path.read_text())
        if record["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {record['schema_version']}")
        whole = []
        for stage in record["stages"]:
            files = {job.out / name: digest for name, digest in stage["files"].items()}
            if any(not f.is_file() or sha256(f) != digest for f, digest in files.items()):
                break
            whole.append(stage)
        _ = record["inputs"]["options"], record["models"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not the record of a build ({error}); give another --out") from error
    return record, whole


@contextlib.contextmanager
def _locked(out: Path):
    """One build per folder at a time; the lock is on the folder itself and goes with the process, however it ends."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        check_writable(out / "build.json")
        handle = os.open(out, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({(error.strerror or str(error)).lower()})") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise InputError(f"{out}: another build is running there: wait for it, or give another --out") from None
    finally:
        os.close(handle)
