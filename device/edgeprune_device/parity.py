"""Do two runtimes compute the same of one file? A session's raw outputs beside ONNX Runtime's on the CPU.

Q/DQ is computed there as written, in floats, and FP16 mostly in FP32, as x86 has no kernels for it. No limit is set:
ONNX Runtime's own integer kernels differ from the same file as written by 1.3 px and 0.011 of score (the demo, 320 px,
signed; unsigned 3.5 px and 0.034), and what a Jetson does was not measured.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Dict, Iterable, List, Optional, Sequence

import numpy as np

from edgeprune_device.errors import InputError
from edgeprune_device.runtimes import ort

__all__ = ["CONF", "Parity", "measure"]

CONF = 0.001  # anchors below it in both runtimes are background to every evaluator


@dataclass(frozen=True)
class Parity:
    """E.g. Parity("onnxruntime 1.32.0, CPUExecutionProvider, default threads", pictures=4, anchors=812, box_px=0.03,
    score=0.0002).

    - `anchors`: how many, of all the pictures, have a score above `CONF` in either runtime
    - `box_px`: the largest difference of a side of a box among them, network px; `score`: of a class's score; None
      where there is no such anchor
    """

    reference: str
    pictures: int
    anchors: int
    box_px: Optional[float]
    score: Optional[float]

    def to_json(self) -> Dict[str, Any]:
        """A JSON object, as the report holds it."""
        return asdict(self)


def measure(session, model: bytes, inputs: Iterable[np.ndarray], classes: int) -> Parity:
    """`session` against ONNX Runtime on the CPU, on the same network inputs, (1, 3, h, w) each.

    InputError: ONNX Runtime is missing or does not run the file; outputs that are not (1, 4 + classes, N) raw boxes
    and scores (an end-to-end model sorts its rows), or are no numbers.
    """
    why = ort.available()
    if why:
        raise InputError(why)
    pictures, anchors, box_px, score = 0, 0, [], []
    with ort.OrtSession(model, as_written=True) as reference:
        for x in inputs:
            here, there = (_raw(each.infer(x), classes, each.name) for each in (session, reference))
            if here.shape != there.shape:
                raise InputError(f"the outputs have the shapes {here.shape} and {there.shape}")
            seen = np.maximum(here[4:].max(axis=0), there[4:].max(axis=0)) > CONF
            pictures, anchors = pictures + 1, anchors + int(seen.sum())
            if seen.any():
                here, there = here[:, seen], there[:, seen]
                box_px.append(np.abs(_sides(here) - _sides(there)).max())
                score.append(np.abs(here[4:] - there[4:]).max())
        return Parity(reference.description, pictures, anchors, _largest(box_px), _largest(score))


def _raw(outputs: Sequence[np.ndarray], classes: int, name: str) -> np.ndarray:
    out = outputs[0]
    if out.ndim != 3 or out.shape[:2] != (1, 4 + classes):
        raise InputError(f"runtime {name} gives an output of shape {out.shape}, not raw boxes (1, {4 + classes}, N)")
    if not np.isfinite(out).all():
        raise InputError(f"runtime {name} gives outputs that are no numbers (an overflow, most likely)")
    return out[0].astype(np.float64)


def _sides(raw: np.ndarray) -> np.ndarray:
    """Centre and size -> left, top, right, bottom."""
    return np.concatenate([raw[:2] - raw[2:4] / 2, raw[:2] + raw[2:4] / 2])


def _largest(values: List[float]) -> Optional[float]:
    return float(max(values)) if values else None
