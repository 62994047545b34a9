"""Makes rows of a comparison from reports of `edgeprune bench`."""

from __future__ import annotations

import re
from pathlib import Path

from edgeprune_device.errors import InputError, reason
from edgeprune_device.files import check_file
from edgeprune_device.reports.report import BenchReport
from edgeprune_device.trust import keys

from edgeprune.comparison.row import Row, accuracy_of
from edgeprune.drones.store import Store


def is_recorded(text: str) -> bool:
    """Whether the argument names a report (see `recorded`) and not a model."""
    is_report = text.endswith(".json") or text == "reports" or re.fullmatch("[0-9a-f]{6,64}", text)
    return bool(is_report) and (text.endswith(".json") or not Path(text).is_file())  # a file may have the name of an id


def recorded(text: str) -> list[Row]:
    """Read bench reports as rows, marked as recorded in another run, perhaps on another machine.

    Args:
        text: a report's file, the beginning of the id of a stored report, or "reports" for all stored reports.

    Raises:
        InputError: the file is not a bench report, or the store has no report with that id.
        SignatureError: a report was changed after it was signed.
    """
    if text == "reports":
        entries = Store().entries()
        if not entries:
            raise InputError(f"{Store().folder}: no reports; fetch reports with edgeprune collect")
        return [_recorded(stored.read(), stored.path, stored.id[:12]) for stored in entries]
    path = Path(text)
    if not path.is_file() and re.fullmatch("[0-9a-f]{6,64}", text):
        stored = Store().find(text)
        return [_recorded(stored.read(), stored.path, stored.id[:12])]
    check_file(path)
    try:
        report = BenchReport.from_bytes(path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason(error)})") from error
    if report.signature is not None:
        report.verify(str(path))
    return [_recorded(report, path, path.name)]


def _recorded(report: BenchReport, path: Path, name: str) -> Row:
    accuracy, infer = report.accuracy, report.stages.get("infer", {})
    board = (report.board or {}).get("model") or report.environment.cpu or "an unknown machine"
    state = report.verdict["state"]
    stages = {k: report.stages[k]["p50_ms"] for k in ("decode", "pre", "infer", "post") if k in report.stages}
    samples = infer.get("samples_ns") or []
    return Row(
        name=f"{name}:{report.precision} *",
        path=str(path),
        sha256=report.model["sha256"],
        size_bytes=report.model["size_bytes"],
        latency_ms={
            "p50": infer.get("p50_ms"), "p90": infer.get("p90_ms"), "speedup": None, "rounds": infer.get("samples"),
            "threads": report.runtime.get("threads"), "runtime": report.runtime["description"],
            "samples": [round(ns / 1e6, 3) for ns in samples] or None,
        },
        stages_ms=stages if len(stages) == 4 else None,
        fps_inference_only=report.fps_inference,
        fps_end_to_end=report.fps_end_to_end,
        **accuracy_of(accuracy),
        measured_with=f"recorded by bench on {board}, {report.created}, {state}, {_signer(report)}",
        mj_per_frame=report.power["mj_per_frame_gross"] if report.power else None,
        verdict=state,
        recorded=True,
        machine=board,
    )  # fmt: skip


def _signer(report: BenchReport) -> str:
    if report.signature is None:
        return "NOT SIGNED"
    fingerprint = keys.fingerprint(report.verify())
    name = keys.enrolled().get(fingerprint, (None,))[0]
    return f"signed by {name or f'{fingerprint}, which is not enrolled here'}"
