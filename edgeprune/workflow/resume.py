"""Decides which stages of an interrupted build are done, and which a changed option starts again."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path

from edgeprune_device.errors import InputError
from edgeprune_device.files import sha256

from edgeprune import versions
from edgeprune.workflow.job import BuildOptions, Job
from edgeprune.workflow.stages import pipeline

SCHEMA_VERSION = 1
#: Options that no earlier stage depends on: they may change on --resume until the stage is done.
_FIRST_USED = {
    "baseline": ("allow_poor_baseline",),
    "finetune": ("epochs", "batch", "lr", "distill", "patience", "device", "workers", "seed"),
    "export": ("nms",),
    "quantize": ("precision", "max_drop"),
}
#: Options that may change on --resume: the build starts again with the first of these stages.
_BEGINS = {"qat": ("qat", "export"), "on": ("reference", "pack"), "pictures": ("page",)}
_MADE_BY = {
    "baseline": ("original",), "prune": ("pruned",), "finetune": ("tuned",), "qat": ("qat",), "export": ("fp32",),
    "quantize": ("fp16", "int8", "int8-fp16"),
}  # fmt: skip


def begin(job: Job, resume: bool) -> dict:
    """Return the record to continue with: a new one, or that of an interrupted build of the same inputs.

    Files of stages that must run again are deleted.

    Args:
        job: the build.
        resume: whether a build in the folder may be continued.

    Raises:
        InputError: the folder holds a build and `resume` is false, an input or a used option has changed, or build.json
            is damaged.
    """
    inputs = {
        "edgeprune": versions.edgeprune(),
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
    # After INT8 has failed the gate, the user may add --qat: the stages before it stay. The same holds for --on.
    before = record["inputs"]
    others = [o for o in _BEGINS if before["options"].get(o, getattr(BuildOptions, o)) != getattr(job.options, o)]
    begins = [stage for option in others for stage in _BEGINS[option]]
    whole = list(itertools.takewhile(lambda s: s["name"] not in begins, whole))
    done = [s["name"] for s in whole]
    free = {o for stage, names in _FIRST_USED.items() if stage not in done for o in names}
    changed = [k for k in inputs["options"] if inputs["options"][k] != before.get("options", {}).get(k)]
    changed = [k for k in changed if k not in free and k not in _BEGINS]
    changed += [k for k in inputs if k != "options" and inputs[k] != before.get(k)]
    if changed:
        raise InputError(f"{job.out}: cannot resume, {', '.join(changed)} changed since; give another --out")
    for stage in record["stages"][len(whole) :]:  # its files and figures are out of date
        why = " and ".join(f"--{option} is another" for option in others)
        why = why or "a file of it, or of a stage before it, is missing or changed"
        job.reporter.warn(f"doing {stage['name']} again: {why}")
        for file in stage["files"]:
            (job.out / file).unlink(missing_ok=True)
        for model in _MADE_BY.get(stage["name"], ()):
            record["models"].pop(model, None)
    record.update(inputs=inputs, stages=whole)
    record.pop("failed", None)
    if len(whole) < len(pipeline(job.options)):
        record.pop("page", None)
    return record


def _read_record(job: Job, path: Path) -> tuple[dict, list[dict]]:
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
        raise InputError(f"{path}: not the record of a build ({error}); give another --out") from error
    return record, whole
