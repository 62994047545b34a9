"""`edgeprune build`: runs the list of stages, and resumes it.

Every stage reads the files that earlier stages left on disk, and `build.json`. A stage is entered in `build.json` only
when its files are complete. After an interruption, `--resume` continues at the first stage that is not entered, and
fine-tuning continues at its last epoch.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from pathlib import Path

from edgeprune_device.errors import EdgepruneError, GateError, InputError
from edgeprune_device.files import check_writable, sha256

from edgeprune.console.progress import Reporter
from edgeprune.training import tracking
from edgeprune.workflow import stages
from edgeprune.workflow.checks import check_inputs, check_options, check_reference
from edgeprune.workflow.job import BuildOptions, Job
from edgeprune.workflow.resume import begin


def run_build(options: BuildOptions, out: Path, reporter: Reporter, *, resume: bool = False) -> dict:
    """Run every stage of a build that is not done yet.

    Args:
        options: the options of the build.
        out: its folder, which is created if it does not exist.
        reporter: receives progress, messages and warnings.
        resume: continue the interrupted build in `out`.

    Returns:
        The record, which is also the content of `build.json`.

    Raises:
        InputError: an option or an input is invalid, or the folder is in use or holds another build.
        GateError: accuracy, parity or surgery failed a gate; no bundle is left.
    """
    check_options(options)
    job = Job(options, out, reporter)
    check_inputs(job)
    with _locked(out):
        job.record = begin(job, resume)
        if job.record["stages"]:
            job.write()  # stages that start again are no longer entered, even if this process is killed now
        finished = {s["name"] for s in job.record["stages"]}
        pipeline = stages.pipeline(options)
        if options.on and "reference" not in finished:
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
    """Write the page of a build that failed a gate: the figures until then, and by how much it failed."""
    try:
        stages.page(job, lambda fraction, what: None)
    except Exception as error:  # of any kind: the gate's own message must reach the user
        job.reporter.warn(f"no page of what was measured ({type(error).__name__}: {error})")
    else:
        job.reporter.say(f"what was measured: {job.out / stages.PAGE}")


def _track(job: Job) -> None:
    """Add the figures and files of the build to the runs of its training in the user's trackers."""
    files = [job.out / name for name in ("plan.json", "tuned.pt", "qat.pt", "build.json")]
    for folder in (job.work, job.work / "qat"):
        for line in tracking.report(folder, job.record["models"], [f for f in files if f.is_file()]):
            job.reporter.say(line)


@contextlib.contextmanager
def _locked(out: Path):
    """Allow one build per folder at a time; the lock is on the folder itself and ends with the process."""
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
