"""Checks of the options and the inputs of a build, before any stage runs."""

from __future__ import annotations

from edgeprune_device.errors import InputError
from edgeprune_device.option import named
from edgeprune_device.target import Target
from edgeprune_device.trust import keys

from edgeprune.drones import reference, ssh
from edgeprune.exporting import nms
from edgeprune.model.device import choose
from edgeprune.model.head import is_end2end
from edgeprune.pruning import criteria
from edgeprune.training import qat
from edgeprune.workflow.job import BuildRequest, Job


def check_request(request: BuildRequest) -> None:
    """Check the options that depend on each other or on the target, before anything is read or written.

    Raises:
        InputError: options exclude each other or do not fit the target, or a name is unknown.
    """
    options = request.options
    if options["steps"] > options["epochs"]:
        raise InputError(
            f"{named('steps', options['steps'])}: more steps than epochs ({named('epochs', options['epochs'])}); "
            "every step needs at least one epoch"
        )
    precisions = ",".join(options["precision"])
    if "fp32" not in options["precision"]:
        raise InputError(
            f"{named('precision', precisions)}: fp32 is missing; add fp32, from which the other precisions are made"
        )
    request.settings(options["epochs"])
    choose(options["device"])
    target = Target.load(options["target"])
    for_gpu = target.int8_activations == "signed"
    if options["qat"]:
        request.qat_settings()
        if "int8" not in options["precision"]:
            raise InputError(f"{named('qat')}: needs int8 in {named('precision')} (found {precisions}); add int8")
        if not for_gpu:
            raise InputError(
                f"{named('qat')}: trains for the signed INT8 of GPUs, but target {target.name} uses unsigned INT8; "
                "leave the option out"
            )
    if options["on"]:
        ssh.parse(options["on"])
        if not for_gpu:
            raise InputError(
                f"{named('on')}: builds TensorRT engines, but target {target.name} uses none; leave the option out"
            )
    criteria.resolve(options["criterion"], pictures=True)


def check_inputs(job: Job) -> None:
    """Check the model and the data set together, and warn about data that weakens the result.

    Raises:
        InputError: the image size, the head or the labels do not allow this build.
    """
    data = job.data
    job.reporter.say(f"device: {job.device.description}")
    if len(data.train) < 8:
        job.reporter.warn(
            f"only {len(data.train)} training images: the images for compensation are also used for selection"
        )
    if job.options["nms"]:
        nms.check(data.task)
    if job.options["nms"] and is_end2end(job.original.model):
        raise InputError(
            f"{named('nms')}: not needed, because this model's head already gives one box per object; leave the option "
            "out"
        )
    if job.options["qat"]:
        qat.check(job.original.model, job.imgsz)
    if "int8" in job.options["precision"] and not data.boxes(job.splits["select"]).sum():
        raise InputError(
            f"{data.path}: no labelled box in the {len(job.splits['select'])} training images that select the INT8 "
            f"calibration; label more images, or leave int8 out of {named('precision')}"
        )
    bare = sum(not len(data.labels(p)) for p in data.train)
    if bare > len(data.train) // 2:
        job.reporter.warn(f"{bare} of {len(data.train)} training images have no labelled box; check the labels")
    shared = job.shared
    if shared:
        job.reporter.warn(
            f"{shared} of {len(data.val)} validation images are also training images, so no mAP of this build "
            "can be trusted"
        )


def check_reference(job: Job) -> None:
    """Check that the reference device is reachable, can build engines, and is enrolled.

    The build needs the device only after hours, so an unusable device is reported before the first stage.

    Raises:
        InputError: the device has no agent, cannot build engines, or the keys have not been exchanged.
        LinkError: the device cannot be reached.
    """
    on = job.options["on"]
    assert on is not None  # the caller has checked
    signer = keys.fingerprint(keys.load_or_create().verify_key)
    with ssh.Link(on, say=job.reporter.say) as link:
        agent = reference.meet(link, signer)
    job.reporter.say(f"engines are built and measured by {agent.name} ({on})")
