"""Decides which stages of an interrupted build are done, and which ones a changed option re-runs."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeprune_device.errors import InputError
from edgeprune_device.files import sha256
from edgeprune_device.option import Option, named

from edgeprune import versions
from edgeprune.options import STAGES, BuildOptions, budget, declared
from edgeprune.workflow.job import Job
from edgeprune.workflow.stages import pipeline

SCHEMA_VERSION = 1
#: The names of a build's other inputs in messages.
_INPUTS = {
    "edgeprune": "edgeprune version", "weights_sha256": "content of the weights",
    "target_sha256": "content of the target file", "data_sha256": "content of the data set",
}  # fmt: skip
_MADE_BY = {
    "baseline": ("original",), "prune": ("pruned",), "finetune": ("tuned",), "qat": ("qat",), "export": ("fp32",),
    "quantize": ("fp16", "int8", "int8-fp16"),
}  # fmt: skip


def begin(job: Job, resume: bool) -> dict[str, Any]:
    """Return the record to continue with: a new one, or that of an interrupted build of the same inputs.

    Files of stages that must run again are deleted.

    Args:
        job: the build.
        resume: whether a build in the folder may be continued.

    Raises:
        InputError: the folder holds a build and `resume` is false, an input or an option of a finished stage has
            changed, or build.json is damaged.
    """
    inputs: dict[str, Any] = {
        "edgeprune": versions.edgeprune(),
        "options": job.request.to_json(),
        "weights_sha256": sha256(job.request.weights),
        "target_sha256": hashlib.sha256(json.dumps(job.target.to_json(), sort_keys=True).encode()).hexdigest(),
        "data_sha256": job.data.sha256,
    }
    path = job.out / "build.json"
    if not path.exists():
        return {
            "schema_version": SCHEMA_VERSION, "inputs": inputs,
            "pictures": {"train": len(job.data.train), "val": len(job.data.val),
                         "val_total": job.data.val_total or len(job.data.val),
                         "val_boxes": int(job.data.boxes(job.data.val).sum()), "train_in_val": job.shared,
                         "unlabelled": job.data.unlabelled, "damaged": job.data.damaged},
            "stages": [], "models": {},
        }  # fmt: skip
    if not resume:
        raise InputError(
            f"{job.out}: contains a build; continue the build with {named('resume', True)}, or give another "
            f"{named('out')}"
        )
    record, whole = _read_record(job, path)
    before = record["inputs"]["options"]
    if "head" not in before:  # a record of an earlier version, which took the one-to-one head wherever there was one
        before = {**before, "head": record["models"].get("original", {}).get("head")}
    changes = _changed(before, inputs["options"])
    restarting = [option for option in changes if option.restarts]
    first = min((STAGES.index(str(option.stage)) for option in restarting), default=len(STAGES))
    whole = list(itertools.takewhile(lambda stage: _rank(stage["name"]) < first, whole))
    reached = max((_reach(stage["name"]) for stage in whole), default=-1)
    fixed = [option.name for option in changes if not option.restarts and STAGES.index(str(option.stage)) <= reached]
    given = next(name for name, value in budget(job.options).items() if value is not None)
    labels = [named(given if name == "budget" else name) for name in fixed]
    labels += [text for name, text in _INPUTS.items() if inputs[name] != record["inputs"].get(name)]
    if labels:
        remedy = "restore the original values"
        if labels == [named("head")]:  # the default of an earlier version was another head
            head = before["head"]
            remedy = f"leave out {named('head')}" if head is None else f"continue with {named('head', head)}"
        raise InputError(
            f"{job.out}: cannot be resumed (changed since the build started: {', '.join(labels)}); {remedy}, or give "
            f"another {named('out')}"
        )
    for stage in record["stages"][len(whole) :]:  # its files and figures are out of date
        why = " and ".join(f"{named(option.name)} changed" for option in restarting)
        why = why or "a file of this or an earlier stage is missing or changed"
        job.reporter.warn(f"re-running stage {stage['name']}: {why}")
        for file in stage["files"]:
            (job.out / file).unlink(missing_ok=True)
        for model in _MADE_BY.get(stage["name"], ()):
            record["models"].pop(model, None)
    record.update(inputs=inputs, stages=whole)
    record.pop("failed", None)
    if len(whole) < len(pipeline(job.options)):
        record.pop("page", None)
    return record


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Option]:
    """The options whose recorded values differ. The budget is one recorded value, declared by any of its options."""
    known = declared(BuildOptions)
    known["budget"] = known["ratio"].but(name="budget")
    return [known[name] for name, value in now.items() if before.get(name, known[name].default) != value]


def _rank(stage: str) -> int:
    """The place of a stage in the order of STAGES; a step counts as its plan."""
    return STAGES.index("plan" if stage.startswith("step ") else stage)


def _reach(stage: str) -> int:
    """The last place in STAGES whose options a stage depends on: a step prunes and fine-tunes."""
    return STAGES.index("finetune" if stage.startswith("step ") else stage)


def _read_record(job: Job, path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the record, and its leading stages whose files are unchanged."""
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
        raise InputError(f"{path}: not the record of a build ({error}); give another {named('out')}") from error
    return record, whole
