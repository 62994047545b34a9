"""Output divergence of two runtimes on one file: a session's raw outputs beside ONNX Runtime's on the CPU.

The reference computes Q/DQ as written, in floats, and FP16 mostly in FP32, as x86 has no kernels for it. There is no
limit. ONNX Runtime's own integer kernels differ from the same file as written by 1.3 px and 0.011 of score (the demo,
320 px, signed; unsigned 3.5 px and 0.034). The divergence on a Jetson was not measured.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Dict, Iterable, Optional, Tuple

import numpy as np

from edgeprune_device.errors import InputError
from edgeprune_device.output import RAW, checked
from edgeprune_device.runtimes import ort
from edgeprune_device.vision.accuracy import iou

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
        unmatched: Of an end-to-end model (rows, best first), the rows without a row of the same class and an IoU of 0.5
            in the other runtime. Raw outputs are compared anchor by anchor, so there it is 0.
        box_px: Largest difference of a side of a box among the others, network px; None where there is none.
        score: Largest difference of a class's score among the others; None where there is none.
    """

    reference: str
    pictures: int
    anchors: int
    unmatched: int
    box_px: Optional[float]
    score: Optional[float]

    def to_json(self) -> Dict[str, Any]:
        """A JSON object, as the report holds it."""
        return asdict(self)


def measure(session, model: bytes, inputs: Iterable[np.ndarray], classes: int, kind: str) -> RuntimeParity:
    """Compare a session with ONNX Runtime on the CPU, on the same network inputs.

    Args:
        session: The session.
        model: Bytes of the ONNX file.
        inputs: Network inputs, (1, 3, h, w) float32 each.
        classes: Number of classes.
        kind: Meaning of the output, see output.py.

    Raises:
        InputError: ONNX Runtime is missing or does not run the file, or the outputs have a shape that `kind` does not
            have or are not finite.
    """
    why = ort.available()
    if why:
        raise InputError(why)
    pictures, anchors, unmatched, differences = 0, 0, 0, []
    with ort.OrtSession(model, as_written=True) as reference:
        for x in inputs:
            here, there = (_checked(each, x, classes, kind) for each in (session, reference))
            if here.shape != there.shape:
                raise InputError(f"the outputs have the shapes {here.shape} and {there.shape}")
            compare = _anchors if kind == RAW else _rows
            seen, alone, found = compare(here, there)
            pictures, anchors, unmatched = pictures + 1, anchors + seen, unmatched + alone
            differences.append(found)
        box_px, score = (np.concatenate([found[i] for found in differences]) for i in (0, 1))
        return RuntimeParity(reference.description, pictures, anchors, unmatched, _largest(box_px), _largest(score))


def _checked(session, x: np.ndarray, classes: int, kind: str) -> np.ndarray:
    try:
        out = checked(session.infer(x)[0], kind, classes)
    except InputError as error:
        raise InputError(f"runtime {session.name}: {error}") from error
    if not np.isfinite(out).all():
        raise InputError(f"runtime {session.name} gives outputs that are no numbers (an overflow, most likely)")
    return out[0].astype(np.float64)


def _anchors(here: np.ndarray, there: np.ndarray) -> Tuple[int, int, Tuple[np.ndarray, np.ndarray]]:
    """(number of anchors above `CONF`, 0, (their differences in px, in score)) of raw outputs."""
    seen = np.maximum(here[4:].max(axis=0), there[4:].max(axis=0)) > CONF
    here, there = here[:, seen], there[:, seen]
    return int(seen.sum()), 0, (np.abs(_sides(here) - _sides(there)).ravel(), np.abs(here[4:] - there[4:]).ravel())


def _rows(here: np.ndarray, there: np.ndarray) -> Tuple[int, int, Tuple[np.ndarray, np.ndarray]]:
    """(number of rows, number of rows in one runtime alone, (the others' differences)) of end-to-end outputs.

    Two nearly equal scores may change places. Where the list is full, its last rows may be missing in one runtime, so
    they do not count.
    """
    last = max(here[-1, 4], there[-1, 4])
    floor = CONF if last <= CONF else last + 0.01
    table = np.where(here[:, None, 5] == there[None, :, 5], iou(here[:, :4], there[:, :4]), 0.0)
    box_px, score, seen, alone = [], [], 0, 0
    for a, b, overlap in ((here, there, table), (there, here, table.T)):
        strong = a[:, 4] > floor
        paired = strong & (overlap.max(axis=1) >= 0.5)
        partners = b[overlap.argmax(axis=1)][paired]
        box_px.append(np.abs(a[paired, :4] - partners[:, :4]).ravel())
        score.append(np.abs(a[paired, 4] - partners[:, 4]))
        missing = int(strong.sum() - paired.sum())
        seen, alone = max(seen, int(strong.sum())), alone + missing
    return seen, alone, (np.concatenate(box_px), np.concatenate(score))


def _sides(raw: np.ndarray) -> np.ndarray:
    """Centre and size -> left, top, right, bottom."""
    return np.concatenate([raw[:2] - raw[2:4] / 2, raw[:2] + raw[2:4] / 2])


def _largest(values: np.ndarray) -> Optional[float]:
    return float(values.max()) if values.size else None
