"""Checks of the options and the inputs of a build, before any stage runs."""

from __future__ import annotations

from edgeprune_device.errors import InputError
from edgeprune_device.hint import did_you_mean
from edgeprune_device.target import Target
from edgeprune_device.trust import keys

from edgeprune.drones import reference, ssh
from edgeprune.model.head import has_one_to_one
from edgeprune.pruning import criteria
from edgeprune.training import qat
from edgeprune.training.finetune import check_device
from edgeprune.workflow.job import PRECISIONS, BuildOptions, Job


def check_options(options: BuildOptions) -> None:
    """Check the options alone, before anything is read or written.

    Raises:
        InputError: a value is outside its range, is unknown, or does not fit the target.
    """
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


def check_inputs(job: Job) -> None:
    """Check the model and the data set together, and warn about data that weakens the result.

    Raises:
        InputError: the image size, the head or the labels do not allow this build.
    """
    data = job.data
    job.original.input_size(job.imgsz)
    if len(data.train) < 8:
        job.reporter.warn(f"only {len(data.train)} training pictures: choices are made on the pictures solved with")
    if job.options.nms and has_one_to_one(job.original.model):
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


def check_reference(job: Job) -> None:
    """Check that the reference device is reachable, can build engines, and is enrolled.

    The build needs the device only after hours, so it is asked before the first stage.

    Raises:
        InputError: the device has no agent, cannot build engines, or the keys have not been exchanged.
        LinkError: the device cannot be reached.
    """
    signer = keys.fingerprint(keys.load_or_create().verify_key)
    with ssh.Link(job.options.on, say=job.reporter.say) as link:
        agent = reference.meet(link, signer)
    job.reporter.say(f"engines are built and measured by {agent.name} ({job.options.on})")
