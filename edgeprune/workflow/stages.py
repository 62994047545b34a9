"""The stages of `build`, and their order (`pipeline`, at the end).

A stage takes the job and `progress(fraction, text)`. It writes its files, enters its figures into the record, and
returns its own entry of the record. Files named under "files" must be unchanged for the stage to count as done; "note"
is the line that the terminal shows.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
from edgeprune_device.errors import EdgepruneError, InputError
from edgeprune_device.files import sha256, write_atomic
from edgeprune_device.option import named
from edgeprune_device.options import PRECISIONS
from edgeprune_device.progress import Progress, part
from edgeprune_device.trust.bundle import Bundle
from edgeprune_device.vision.accuracy import Accuracy
from torch import nn

from edgeprune.comparison import compare
from edgeprune.drones import ssh
from edgeprune.drones.reference import build, keep
from edgeprune.exporting import nms, precisions, tensorrt
from edgeprune.exporting.parity import measure_parity
from edgeprune.exporting.to_onnx import to_onnx
from edgeprune.measuring.accuracy import score
from edgeprune.measuring.sessions import Session
from edgeprune.measuring.timing import time_models
from edgeprune.model import checkpoint
from edgeprune.model.count import count
from edgeprune.options import BuildOptions
from edgeprune.pruning.plan import PrunePlan
from edgeprune.pruning.prune import Cut, PruneRequest, cut, prune_network, trace_channels
from edgeprune.training import finetune
from edgeprune.training.qat import thresholds
from edgeprune.workflow import pack, rectangle
from edgeprune.workflow.job import Job
from edgeprune.workflow.record import compared

Stage = Callable[[Job, Progress], dict[str, Any]]

#: The GPU architecture for the check with TensorRT for RTX if this host cannot build for the target itself.
PROBE = "SM86"
#: mAP50-95 below which an original is refused, unless --allow-poor-baseline is given.
POOR = 0.01
#: The page of a build, in its folder.
PAGE = "report.html"


def baseline(job: Job, progress: Progress) -> dict[str, Any]:
    """Measure cost and accuracy of the original, on the images that every later model is evaluated on."""
    model = job.original.model
    session = job.session(model)
    accuracy, _ = job.evaluate(session, progress, "original")
    _check_baseline(job, accuracy)
    cost = count(model, job.imgsz)
    size = len(checkpoint.to_bytes(model, job.original))
    file_size = job.request.weights.stat().st_size
    # A best.pt may still hold its optimiser: only the stripped size compares with the files of the build.
    job.enter("original", job.request.weights, accuracy, cost, size_bytes=file_size, stripped_size_bytes=size)
    return {
        "note": f"{cost.parameters / 1e6:.2f} M parameters, {cost.macs / 1e9:.2f} G MACs, "
        f"mAP50-95 {accuracy.map50_95:.3f} on {accuracy.pictures} images, {accuracy.boxes} boxes",
        "runtime": session.description,
        "device": job.device.description,
        **rectangle.saving(job),
    }


def _check_baseline(job: Job, accuracy: Accuracy) -> None:
    """Refuse an original that detects almost nothing, because the cause is nearly always a wrong input.

    Raises:
        InputError: mAP50-95 is below POOR and --allow-poor-baseline is not given.
    """
    map50_95 = accuracy.map50_95 or 0.0
    if map50_95 >= POOR or job.options["allow_poor_baseline"]:
        return
    # A refused build leaves nothing behind. This is the first stage, so the folder holds no other results.
    shutil.rmtree(job.work, ignore_errors=True)
    with contextlib.suppress(OSError):  # the user has files there
        job.out.rmdir()
    trained = job.original.imgsz
    size = named("imgsz", job.imgsz) + (f" (trained at {trained})" if trained and trained != job.imgsz else "")
    raise InputError(
        f"{job.request.weights}: detects almost nothing before pruning (mAP50-95 {map50_95:.3f} on "
        f"{accuracy.pictures} validation images, expected at least {POOR:g}); check the data, the order of its "
        f"classes and the size, {size}, or build anyway with {named('allow_poor_baseline', True)}"
    )


def plan(job: Job, progress: Progress) -> dict[str, Any]:
    """Choose the channels of the last pruning step, and write plan.json."""
    chosen, fields = _choose(job, job.start.model, 1, progress)
    chosen.plan.save(job.out / "plan.json")
    job.chosen = chosen
    return {
        "files": ["plan.json"],
        "criterion": chosen.plan.criterion,
        "prunable_channels": chosen.plan.prunable,
        "removed_channels": chosen.plan.removed,
        **fields,
        "note": f"{chosen.plan.removed} of {chosen.plan.prunable} channels removed, ranked by {chosen.plan.criterion}",
    }


def _choose(job: Job, model: nn.Module, steps: int, progress: Progress) -> tuple[Cut, dict[str, Any]]:
    """Return (Cut, fields for the record) of the first of `steps` equal steps from `model` to the budget."""
    o = job.options
    asked, latency, fields = job.measured(progress)
    ask = PruneRequest(asked, job.target.channel_multiple, job.imgsz, o["uniform"], o["portable"], latency)
    if o["steps"] > 1:
        original, current = (trace_channels(m, job.imgsz) for m in (job.original.model, model))
        ask = ask.toward(original, current, steps)
    return prune_network(model, criterion=o["criterion"], ask=ask, samples=job.placed, progress=progress), fields


def step(job: Job, progress: Progress, *, number: int) -> dict[str, Any]:
    """Run one round of pruning and fine-tuning before the last.

    Args:
        job: the build.
        progress: receives the fraction done and a line of text.
        number: number of the round, from 1.
    """
    o = job.options
    before = job.original if number == 1 else checkpoint.load(job.out / f"step{number - 1}.pt")
    chosen, fields = _choose(job, before.model, o["steps"] - number + 1, lambda f, what: progress(f / 2, what))
    cut = job.work / "step.pt"
    job.work.mkdir(exist_ok=True)
    checkpoint.save(cut, chosen.model, like=job.original)
    path = job.out / f"step{number}.pt"
    settings = job.request.settings(o["epochs"] // o["steps"])
    result = _finetune(job, cut, path, settings, lambda f, what: progress(0.5 + f / 2, what), work=job.work)
    cost = count(checkpoint.load(path).model, job.imgsz)
    return {
        "files": [path.name],
        "criterion": chosen.plan.criterion,
        "removed_channels": chosen.plan.removed,
        **cost.to_json(),
        **result,
        **fields,
        "note": f"{cost.parameters / 1e6:.2f} M parameters, {cost.macs / 1e9:.2f} G MACs left, "
        f"{result['epochs']} epochs",
    }


def prune(job: Job, progress: Progress) -> dict[str, Any]:
    """Remove the channels, compensate, and measure the pruned network before any training."""
    plan = PrunePlan.load(job.out / "plan.json")
    model = job.start.model
    chosen = job.chosen
    if chosen is None or chosen.plan.sha256 != plan.sha256:
        progress(0.1, "removing channels and compensating")
        chosen = cut(model, trace_channels(model, job.imgsz), plan, job.placed, part(progress, 0.1, 0.5))
    path = job.out / "pruned.pt"
    checkpoint.save(path, chosen.model, like=job.original)
    saved = checkpoint.load(path).model
    accuracy, _ = job.evaluate(job.session(saved), progress, "pruned")
    cost = count(saved, job.imgsz)
    job.enter("pruned", path, accuracy, cost, size_bytes=path.stat().st_size)
    before, after = (job.record["models"][m] for m in ("original", "pruned"))
    keys = {"parameters": "parameters", "MACs": "macs", "channels": "channels", "file": "size_bytes"}
    before = {**before, "size_bytes": before["stripped_size_bytes"]}
    left = ", ".join(f"{what} {after[key] / before[key]:.1%}" for what, key in keys.items())
    return {
        "files": ["pruned.pt"],
        "oracle_relative_error": chosen.oracle,
        "compensated_convolutions": chosen.solved,
        "note": f"left: {left}; mAP50-95 {accuracy.map50_95:.3f} before fine-tuning",
    }


def tune(job: Job, progress: Progress) -> dict[str, Any]:
    """Fine-tune the pruned network; the architecture is checked at every step."""
    o = job.options
    path = job.out / "tuned.pt"
    epochs = o["epochs"] - (o["steps"] - 1) * (o["epochs"] // o["steps"])  # the last step takes the remainder
    result = _finetune(job, job.out / "pruned.pt", path, job.request.settings(epochs), progress, work=job.work)
    tuned = checkpoint.load(path).model
    accuracy, _ = job.evaluate(job.session(tuned), progress, "tuned")
    cost = count(tuned, job.imgsz)
    job.enter("tuned", path, accuracy, cost, size_bytes=path.stat().st_size)
    before, cut = (job.record["models"][m]["map50_95"] for m in ("original", "pruned"))
    if accuracy.map50_95 < cut:
        job.reporter.warn(
            f"fine-tuning lowered mAP50-95 from {cut:.3f} to {accuracy.map50_95:.3f}: {len(job.data.train)} images "
            f"and {o['epochs']} epochs are too few for this pruning ratio; use more images or epochs, or prune "
            "less"
        )
    return {
        "files": ["tuned.pt"],
        **result,
        "lr": o["lr"],
        "note": f"mAP50-95 {accuracy.map50_95:.3f} (original {before:.3f}) after {result['epochs']} epochs, "
        f"{result['steps']} steps of {result['batch']} images",
    }


def _finetune(
    job: Job, weights: Path, out: Path, settings: finetune.TrainingSettings, progress: Progress, *, work: Path
) -> finetune.Counts:
    def show(p: finetune.TrainingProgress) -> None:
        done = (p.epoch - 1 + p.step / p.steps) / p.epochs
        progress(min(done, 1.0), f"epoch {p.epoch}/{p.epochs}  loss {p.loss:.3f}")

    teacher = job.request.weights if job.options["distill"] else None
    settings = replace(settings, device=job.device.text)
    return finetune.finetune_network(
        weights, job.data, out, settings, work, teacher=teacher, on_step=show, warn=job.reporter.warn
    )


def qat(job: Job, progress: Progress) -> dict[str, Any]:
    """Train a few epochs with the rounding of the INT8 file; the checkpoint carries the scales."""
    path = job.model_path("qat")
    settings = job.request.qat_settings()
    result = _finetune(job, job.model_path("tuned"), path, settings, progress, work=job.work / "qat")
    model = checkpoint.load(path).model
    accuracy, _ = job.evaluate(job.session(model), progress, "qat")
    job.enter("qat", path, accuracy, count(model, job.imgsz), size_bytes=path.stat().st_size)
    before = job.record["models"]["tuned"]["map50_95"]
    if accuracy.map50_95 < before:
        job.reporter.warn(
            f"{named('qat')} lowered mAP50-95 in float from {before:.3f} to {accuracy.map50_95:.3f}; files are "
            "compared with that lower figure; leave the option out if INT8 passes the gate without quantization-aware "
            "training"
        )
    return {
        "files": [path.name],
        **result,
        "lr": settings.lr,
        "note": f"mAP50-95 in float {accuracy.map50_95:.3f} ({before:.3f} before) after {result['epochs']} epochs, "
        f"{result['steps']} steps of {result['batch']} images",
    }


def export(job: Job, progress: Progress) -> dict[str, Any]:
    """Write one static FP32 ONNX file, and compare it with the network on real images."""
    tuned = checkpoint.load(job.trained).model
    progress(0.1, "exporting")
    fp32 = to_onnx(tuned, job.imgsz)
    pictures = [job.features.pictures[i : i + 1].numpy() for i in range(min(8, len(job.features.pictures)))]
    progress(0.4, "comparing with PyTorch")
    parity = measure_parity(tuned, fp32, pictures)
    parity.check()
    path = job.model_path("fp32")
    write_atomic(path, job.finish(fp32).SerializeToString())
    job.enter("fp32", path, cost=count(tuned, job.imgsz), size_bytes=path.stat().st_size)
    return {
        "files": [path.name],
        "parity": parity.to_json(),
        "note": f"equals PyTorch to {parity.max_box_px:.2g} px and {parity.max_score:.1g} in score on {parity.over}",
    }


def quantize(job: Job, progress: Progress) -> dict[str, Any]:
    """Make the FP16 and INT8 files and the device variants, judge the accuracy drops, and time all files.

    The variant of a file is judged and timed in its place. Every file is evaluated on the validation images and held to
    --max-drop. The original and the files are timed alternately.

    Raises:
        AccuracyDrop: a precision loses more than --max-drop.
    """
    for precision in PRECISIONS:  # left by a build that was killed here, perhaps with other options
        job.variant_path(precision).unlink(missing_ok=True)
        if precision != "fp32":
            job.model_path(precision).unlink(missing_ok=True)
    fp32 = nms.without(onnx.load(job.model_path("fp32")))
    pictures = [job.features.pictures[i : i + 1].numpy() for i in range(len(job.features.pictures))]
    try:
        made = precisions.make(
            fp32,
            pictures,
            job.precisions,
            lambda session: score(session, job.data, job.splits["select"], job.imgsz, job.reporter.warn),
            lambda name, session: job.evaluate(session, progress, name),
            thresholds=thresholds(checkpoint.load(job.trained)),
            finish=job.finish,
            progress=lambda what: progress(0.0, what),
        )
    except precisions.AccuracyDrop as error:
        job.lost = {
            p: {"path": job.model_path(p).name, **job.figures(p, j.accuracy), "measured_with": j.described}
            for p, j in error.judged.items()
        }
        raise
    for precision, model in made.files.items():  # only now, so that a failed gate leaves no files
        path = job.model_path(precision)
        write_atomic(path, model.SerializeToString())
        job.enter(precision, path, size_bytes=path.stat().st_size)
    variants = _write_variants(job, ("fp32", *made.files))
    progress(0.97, "timing")
    original = job.delivered(job.finish(to_onnx(job.original.model, job.imgsz))).SerializeToString()
    # ONNX Runtime has no CPU kernels for INT8 mixed with FP16, so its latency would be meaningless.
    runnable = {p: job.delivered_path(p) for p in ("fp32", *made.files) if p != "int8-fp16"}
    task, classes = job.data.task.on_device, len(job.data.names)
    timed = time_models({"original": original, **runnable}, job.data.val, classes=classes, task=task)
    job.enter("original", job.request.weights, timing=timed["original"])
    subset = pack.evaluation_pictures(job.data)
    for precision, (accuracy, matches, described) in made.judged.items():
        path = job.model_path(precision)
        job.enter(
            precision, path, accuracy, timing=timed.get(precision), evaluation_set=pack.figures(matches, subset),
            measured_with=described,
        )  # fmt: skip
    took = {name: timing.to_json()["latency_ms"] for name, timing in timed.items()}
    notes = [
        f"{p} {m.accuracy.map50_95:.3f}" + (f" ({-made.drops[p]:+.4f})" if p in made.drops else "")
        for p, m in made.judged.items()
    ]
    fallbacks = made.details.get("int8", {}).get("rescued", [])
    if fallbacks:
        share = made.details["int8"]["share_of_macs"]
        many = "s" * (len(fallbacks) != 1)
        notes[-1] += f", {len(fallbacks)} layer{many} not in INT8, {share:.0%} of MACs in INT8"
    if job.options["nms"]:
        before = job.record["models"][job.trained.stem]["map50_95"]
        notes[0] += f" (one class per box, because the file includes NMS; {before:.3f} with all classes)"
    return {
        "files": [*(job.model_path(p).name for p in made.files), *variants],
        "machine": compare.machine(),  # the one that timed the files
        "calibration_pictures": len(pictures),
        "drops_map50_95": made.drops,
        "max_drop": job.options["max_drop"],
        **made.details,
        "note": f"mAP50-95 {', '.join(notes)}; FP32 {took['fp32']['speedup']:.2f}x as fast as the original "
        f"({took['original']['p50']:.1f} -> {took['fp32']['p50']:.1f} ms, {took['fp32']['runtime']})",
    }


def _write_variants(job: Job, names: Iterable[str]) -> list[str]:
    """Write the device variants of these precisions if the target takes them; return the names of the files."""
    variants = []
    for precision in names:
        model = onnx.load(job.model_path(precision))
        delivered = job.delivered(model)
        if delivered is not model:
            path = job.variant_path(precision)
            write_atomic(path, delivered.SerializeToString())
            job.enter(precision, job.model_path(precision), variant=path.name)
            variants.append(path.name)
    return variants


def engine(job: Job, progress: Progress) -> dict[str, Any]:
    """Parse and build every file with the ONNX parser and builder of TensorRT for RTX.

    Engines are packed if this host can build them for the target. For a Jetson the build is a check of parsing and
    types, and the device builds its own engines.
    """
    computes = list(job.target.ahead_of_time) or [PROBE]
    ships = bool(job.target.ahead_of_time)
    built, files = {}, []
    on_gpu = job.target.int8_activations == "signed"
    names = [p for p in PRECISIONS if p in job.record["models"]] if on_gpu else []
    for i, precision in enumerate(names):
        for compute in computes:
            progress(i / len(names), f"{precision} for {compute}")
            result = tensorrt.build(job.delivered_path(precision), compute, precision=precision)
            entry = {**result.to_json(), "payload": None}
            if ships and result.plan is not None:
                entry["payload"] = f"model.{precision}.{compute.lower()}.engine"
                write_atomic(job.out / entry["payload"], result.plan)
                files.append(entry["payload"])
            elif result.plan is not None:
                entry["reason"] = f"parsed and built for {compute} as a check; {job.target.name} builds its own engine"
            built[f"{precision}.{compute.lower()}"] = entry
    good = [k for k, e in built.items() if e["size_bytes"]]
    if not names:
        note = f"{job.target.name} runs ONNX Runtime: no engine"
    elif len(good) < len(built):
        note = "; ".join(sorted({e["reason"] for e in built.values() if not e["size_bytes"]}))
    else:
        seconds = sum(e["parse_seconds"] + e["build_seconds"] for e in built.values())
        builder = next(iter(built.values()))["builder"]
        use = "they are packed in the bundle" if ships else f"a check only: {job.target.name} builds its own"
        note = f"{len(good)} files parsed and built by {builder} in {seconds:.1f} s ({use})"
    return {"files": files, "engines": built, "note": note}


def reference(job: Job, progress: Progress) -> dict[str, Any]:
    """Let the reference device (--on) build the engines and measure them."""
    path = job.work / "reference.epb"
    job.work.mkdir(exist_ok=True)
    bundle = _packed_before(job, path) or _pack(job, path, _engines(job), progress)
    on = job.options["on"]
    assert on is not None  # the pipeline has this stage only with it
    with ssh.Link(on, say=job.reporter.say) as link:
        built = build(link, bundle, job.work, say=lambda text: progress(0.5, text))
    for name, plan in built.plans().items():
        write_atomic(job.out / name, plan)
    keep(built)
    for text in built.warnings():
        job.reporter.warn(text)
    return {
        "files": list(built.plans()),
        "device": built.device,
        "on": on,
        "engines": built.entries(),
        "note": built.note(),
    }


def pack_bundle(job: Job, progress: Progress) -> dict[str, Any]:
    """Pack all files into one signed bundle."""
    bundle = _pack(job, job.bundle_path, _engines(job), progress)
    return {
        "files": [job.bundle_path.name],
        "bundle": bundle.path.name,
        "signed_by": bundle.key_fingerprint,
        "note": f"{bundle.path} ({bundle.path.stat().st_size / 1e6:.1f} MB), signed by {bundle.key_fingerprint}",
    }


def page(job: Job, progress: Progress) -> dict[str, Any]:
    """Write the page and the JSON with every figure of the build."""
    models = [*job.record["models"], *(name for name in job.lost if name not in job.record["models"])]
    detections = {}
    for i, model in enumerate(models):
        shown = job.shown(model)
        if shown is None and model not in job.lost:  # evaluated before an interruption; the detections were lost
            job.evaluate(_session(job, model), _part(progress, i, len(models)), model)
            shown = job.shown(model)
        if shown is not None:
            detections[model] = shown
    progress(0.9, "drawing")
    wanted = job.options["pictures"] if detections else 0
    gallery = compare.shown_best(job.data, detections, wanted) if wanted else None
    data = compare.about(job.data, job.shared)
    result = compared(job.record, job.out, tuple(job.original.names), data, gallery)
    result.save_json(job.out / "comparison.json")
    path = result.save_html(job.out / PAGE)
    job.record["page"] = PAGE
    return {"files": [PAGE, "comparison.json"], "note": f"{path} ({path.stat().st_size / 1e6:.1f} MB)"}


def _part(progress: Progress, part: int, parts: int) -> Progress:
    """The progress of one of several equal parts of a stage."""
    return lambda fraction, what: progress((part + fraction) / parts, what)


def _session(job: Job, model: str) -> Session:
    """The session that the accuracy of a model of the build was measured with."""
    if model in PRECISIONS:
        return precisions.session(job.target, model, onnx.load(job.delivered_path(model)))
    source = job.original if model == "original" else checkpoint.load(job.model_path(model))
    return job.session(source.model)


def _engines(job: Job) -> dict[str, dict[str, Any]]:
    """The engines for the manifest: those of the host, then those of the reference device."""
    entries = {}
    for stage in job.record["stages"]:
        if stage["name"] == "engine":
            entries.update({name: _engine_entry(entry) for name, entry in stage["engines"].items()})
        elif stage["name"] == "reference":
            entries.update(stage["engines"])
    return entries


def _packed_before(job: Job, path: Path) -> Bundle | None:
    """The bundle that was packed for the reference device before an interruption, if its files are unchanged.

    The device may already have this bundle, and be building its engines.
    """
    try:
        bundle = Bundle.open(path)
    except EdgepruneError:
        return None
    wanted = {p: sha256(job.delivered_path(p)) for p in PRECISIONS if p in job.record["models"]}
    there = {p: bundle.payloads[entry["payload"]].sha256 for p, entry in bundle.manifest.models.items()}
    return bundle if there == wanted else None


def _pack(job: Job, path: Path, built: dict[str, dict[str, Any]], progress: Progress) -> Bundle:
    record = job.record
    val = job.data.val
    pictures = [val[i] for i in pack.evaluation_pictures(job.data)]
    progress(0.2, "evaluation set")
    how = next(s for s in record["stages"] if s["name"] == "quantize")
    models = {}
    for precision in PRECISIONS:
        entry = record["models"].get(precision)
        if entry:
            # If a flag sets TensorRT's precision, the device needs the names of the nodes that stay FP32.
            made = how.get(precision, {})
            models[precision] = {
                **{key: made[key] for key in ("fp32_nodes", "weight_bits") if key in made},
                **{k: entry[k] for k in ("map50", "map50_95", "small_map50_95")},
                "runtime": entry["measured_with"],
                "pictures": len(val),
            }
    contents = pack.Contents(
        name=job.request.name,
        target=job.target.name,
        task=job.original.task,
        names=job.original.names,
        imgsz=job.imgsz,
        models=models,
        files={p: job.delivered_path(p) for p in models},
        engines=built,
        plans={e["payload"]: job.out / e["payload"] for e in built.values() if e["payload"]},
        evaluation=pack.evaluation_set(job.data, pictures),
        described={
            "pictures": len(pictures),
            "boxes": int(job.data.boxes(pictures).sum()),
            "accuracy": {p: record["models"][p]["evaluation_set"] for p in models},
        },
        lineage=_lineage(job),
    )
    return pack.pack(path, contents)


def _engine_entry(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        "payload": entry["payload"],
        "builder": entry["builder"],
        "for": entry["compute"],
        **({"reason": entry["reason"]} if entry["reason"] else {}),
    }


def _lineage(job: Job) -> dict[str, Any]:
    models = job.record["models"]
    costs = {m: {k: models[m][k] for k in ("parameters", "macs", "channels")} for m in ("original", "tuned")}
    done = next(s for s in job.record["stages"] if s["name"] == "plan")
    return {
        "weights_sha256": job.record["inputs"]["weights_sha256"],
        "data_sha256": job.record["inputs"]["data_sha256"],
        "plan_sha256": sha256(job.out / "plan.json"),
        "tuned_sha256": sha256(job.out / "tuned.pt"),
        **({"qat_sha256": sha256(job.trained)} if job.options["qat"] else {}),
        "budget": str(job.request.budget),
        "criterion": done["criterion"],
        **({"head": models["original"]["head"]} if models["original"]["head"] else {}),
        **costs,
    }


def pipeline(options: BuildOptions) -> list[tuple[str, Stage]]:
    """The stages of a build as (name, stage), in order; each pruning step except the last is a separate stage."""
    return [
        ("baseline", baseline),
        *((f"step {i}", functools.partial(step, number=i)) for i in range(1, options["steps"])),
        ("plan", plan),
        ("prune", prune),
        ("finetune", tune),
        *([("qat", qat)] if options["qat"] else []),
        ("export", export),
        ("quantize", quantize),
        ("engine", engine),
        *([("reference", reference)] if options["on"] else []),
        ("pack", pack_bundle),
        ("page", page),
    ]
