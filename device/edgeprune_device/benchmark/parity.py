"""Output divergence of two runtimes on one file: a session's raw outputs against those of ONNX Runtime on the CPU.

The reference computes Q/DQ as written, in floats, and FP16 mostly in FP32, because x86 has no kernels for it. No limit
applies. ONNX Runtime's own integer kernels differ from the same file as written by 1.3 px and 0.011 of score (the demo,
320 px, signed; unsigned 3.5 px and 0.034). The divergence on a Jetson was not measured.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Dict, Iterable, List, Optional, Tuple

import numpy as np

from edgeprune_device.errors import InputError
from edgeprune_device.option import named
from edgeprune_device.output import BEST, END2END, RAW, checked
from edgeprune_device.runtimes import Session, ort
from edgeprune_device.vision import detect
from edgeprune_device.vision.task import Task

__all__ = ["CONF", "RuntimeParity", "measure"]

CONF = 0.001  # anchors below it in both runtimes are background to every evaluator


@dataclass(frozen=True)
class RuntimeParity:
    """The output divergence of a runtime.

    An example: RuntimeParity("onnxruntime 1.32.0, CPUExecutionProvider, default threads, yielding", pictures=4,
    anchors=812, unmatched=0, box_px=0.03, score=0.0002).

    Attributes:
        reference: Description of the reference session.
        pictures: Number of images.
        anchors: Number of anchors, over all images, that have a score above `CONF` in either runtime.
        unmatched: For an end-to-end model (rows, best first), the number of rows without a row of the same class and an
            IoU of 0.5 in the other runtime. Raw outputs are compared anchor by anchor, so the number is 0.
        box_px: Largest difference of a side of a matched box, network px; None without a matched box.
        score: Largest difference of a class's score of a matched box; None without a matched box.
    """

    reference: str
    pictures: int
    anchors: int
    unmatched: int
    box_px: Optional[float]
    score: Optional[float]

    def to_json(self) -> Dict[str, Any]:
        """The JSON object for the report."""
        return asdict(self)


def measure(
    session: Session,
    model: bytes,
    inputs: Iterable[np.ndarray],
    classes: int,
    kind: str,
    task: Task = detect.TASK,
) -> RuntimeParity:
    """Compare a session with ONNX Runtime on the CPU, on the same network inputs.

    Args:
        session: The session.
        model: Bytes of the ONNX file.
        inputs: Inputs in the model's layout.
        classes: Number of classes.
        kind: Meaning of the output, see output.py.
        task: The task.

    Raises:
        InputError: ONNX Runtime is missing or does not run the file, or the outputs are not finite or do not have a
            shape of `kind`.
    """
    why = ort.available()
    if why:
        raise InputError(why)
    pictures, anchors, unmatched = 0, 0, 0
    differences: List[Tuple[np.ndarray, np.ndarray]] = []
    with ort.OrtSession(model, as_written=True) as reference:
        for x in inputs:
            here, there = (_checked(each, x, kind, classes, task.extra) for each in (session, reference))
            if here.shape != there.shape:
                raise InputError(
                    f"runtime {session.name}: wrong output shape (found {here.shape}, expected {there.shape}, as from "
                    "ONNX Runtime on the CPU)"
                )
            if kind != END2END:
                seen, alone, difference = _anchors(task, here, there, classes)
            else:
                seen, alone, difference = _rows(task, task.rows(here), task.rows(there))
            pictures, anchors, unmatched = pictures + 1, anchors + seen, unmatched + alone
            differences.append(difference)
        box_px, score = (np.concatenate([difference[i] for difference in differences]) for i in (0, 1))
        return RuntimeParity(reference.description, pictures, anchors, unmatched, _largest(box_px), _largest(score))


def _checked(session: Session, x: np.ndarray, kind: str, classes: int, extra: int) -> np.ndarray:
    try:
        outputs = session.infer(x)
        whole, kind = (outputs[2], RAW) if kind == BEST else (outputs[0], kind)
        out: np.ndarray = checked(whole, kind, classes, extra)
    except InputError as error:
        raise InputError(f"runtime {session.name}: {error}") from error
    if not np.isfinite(out).all():
        raise InputError(
            f"runtime {session.name}: NaN or infinite outputs, probably an overflow; use a wider {named('precision')}"
        )
    only: np.ndarray = out[0]
    return only.astype(np.float64)


def _anchors(
    task: Task, here: np.ndarray, there: np.ndarray, classes: int
) -> Tuple[int, int, Tuple[np.ndarray, np.ndarray]]:
    """(number of anchors above `CONF`, 0, (their differences in px, in score)) of raw outputs."""
    scores = slice(4, 4 + classes)
    seen = np.maximum(here[scores].max(axis=0), there[scores].max(axis=0)) > CONF
    (a, a_scores), (b, b_scores) = (task.split(raw[:, seen], classes) for raw in (here, there))
    box_px, score = np.abs(task.corners(a) - task.corners(b)), np.abs(a_scores - b_scores)
    return int(seen.sum()), 0, (box_px.ravel(), score.ravel())


def _rows(task: Task, here: np.ndarray, there: np.ndarray) -> Tuple[int, int, Tuple[np.ndarray, np.ndarray]]:
    """(number of rows, number of unmatched rows, differences of the matched rows) of end-to-end outputs.

    Two nearly equal scores may change places. If the list is full, its last rows may be missing in one runtime, so they
    do not count.
    """
    columns = len(task.columns)
    last = max(here[-1, -2], there[-1, -2])
    floor = CONF if last <= CONF else last + 0.01
    overlaps = task.iou(here[:, :columns], there[:, :columns])
    table = np.where(here[:, None, -1] == there[None, :, -1], overlaps, 0.0)
    box_px, score, seen, alone = [], [], 0, 0
    for a, b, overlap in ((here, there, table), (there, here, table.T)):
        strong = a[:, -2] > floor
        paired = strong & (overlap.max(axis=1) >= 0.5)
        partners = b[overlap.argmax(axis=1)][paired]
        sides = (task.corners(rows[:, :columns]) for rows in (a[paired], partners))
        box_px.append(np.abs(np.subtract(*sides)).ravel())
        score.append(np.abs(a[paired, -2] - partners[:, -2]))
        missing = int(strong.sum() - paired.sum())
        seen, alone = max(seen, int(strong.sum())), alone + missing
    return seen, alone, (np.concatenate(box_px), np.concatenate(score))


def _largest(values: np.ndarray) -> Optional[float]:
    return float(values.max()) if values.size else None
