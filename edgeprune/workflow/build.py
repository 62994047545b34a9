"""`edgeprune build`: runs the list of stages, and resumes it.

Every stage reads `build.json` and the files of earlier stages from disk. A stage is recorded in `build.json` only when
its files are complete. After an interruption, `--resume` continues at the first stage that is not recorded, and
fine-tuning continues at its last epoch.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeprune_device.errors import EdgepruneError, GateError, InputError, reason
from edgeprune_device.files import check_writable, sha256
from edgeprune_device.option import named
from edgeprune_device.progress import silent

from edgeprune.console.progress import Reporter
from edgeprune.training import tracking
from edgeprune.workflow import stages
from edgeprune.workflow.checks import check_inputs, check_reference, check_request
from edgeprune.workflow.job import BuildRequest, Job
from edgeprune.workflow.resume import begin


def run_build(request: BuildRequest, out: Path, reporter: Reporter, *, resume: bool = False) -> dict[str, Any]:
    """Run every stage of a build that is not done yet.

    Args:
        request: the build to run.
        out: its folder, which is created if it does not exist.
        reporter: receives progress, messages and warnings.
        resume: continue the interrupted build in `out`.

    Returns:
        The record, which is also the content of `build.json`.

    Raises:
        InputError: an option or an input is invalid, or the folder is in use or holds another build.
        GateError: accuracy, parity or surgery failed a gate; no bundle is written.
    """
    check_request(request)
    job = Job(request, out, reporter)
    check_inputs(job)
    with _locked(out):
        job.record = begin(job, resume)
        if job.record["stages"]:
            job.write()  # a stage that runs again leaves the record first, in case this process is killed
        finished = {s["name"] for s in job.record["stages"]}
        pipeline = stages.pipeline(request.options)
        if request.options["on"] and "reference" not in finished:
            check_reference(job)
        reporter.plan(len(pipeline))
        for name, stage in pipeline:
            if name in finished:
                reporter.skip(name)
                continue
            _run(job, name, stage)
        _track(job)
        shutil.rmtree(job.work, ignore_errors=True)
    return job.record


def _run(job: Job, name: str, stage: stages.Stage) -> None:
    start = time.monotonic()
    try:
        with job.reporter.stage(name) as progress:
            result = stage(job, progress)
    except EdgepruneError as error:
        if isinstance(error, GateError):
            job.record["failed"] = {"stage": name, "reason": str(error), "models": job.lost}
            job.write()  # before anything that can fail or be interrupted
            _show(job)
            job.write()
            _track(job)
        raise
    files = {f: sha256(job.out / f) for f in result.pop("files", [])}
    note = result.pop("note", None)
    job.record["stages"].append({"name": name, "seconds": round(time.monotonic() - start, 1), "files": files, **result})
    job.record.pop("failed", None)
    job.write()
    if note:
        job.reporter.done(note)


def _show(job: Job) -> None:
    """Write the page of a build that failed a gate, with its figures so far and the margin of the failure."""
    try:
        stages.page(job, silent)
    except Exception as error:  # any error: the user must still see the gate's message
        job.reporter.warn(
            f"{stages.PAGE}: the HTML report of the failed build was not written ({type(error).__name__}: {error})"
        )
    else:
        job.reporter.say(f"figures of the failed build: {job.out / stages.PAGE}")


def _track(job: Job) -> None:
    """Add the build's figures and files to its training runs in the user's experiment trackers."""
    files = [job.out / name for name in ("plan.json", "tuned.pt", "qat.pt", "build.json")]
    for folder in (job.work, job.work / "qat"):
        for line in tracking.report(folder, job.record["models"], [f for f in files if f.is_file()]):
            job.reporter.say(line)


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Allow one build per folder at a time; the lock is on the folder itself and ends with the process."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        check_writable(out / "build.json")
        handle = os.open(out, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({reason(error)})") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise InputError(
            f"{out}: another build is running in this folder; wait until it has finished, or give another "
            f"{named('out')}"
        ) from None
    finally:
        os.close(handle)
