"""The meaning of a detector's output, as the model and the manifest state it; it is never guessed.

The shape does not determine it: with 80 classes (1, 84, 6) is the raw output of six anchors, and 84 rows of an
end-to-end head. The module works without numpy, because the manifest needs it.
"""

from __future__ import annotations

from typing import Any, Sequence, Tuple

from edgeprune_device.errors import InputError

__all__ = ["END2END", "MAX_ROWS", "RAW", "checked", "fits", "shape_of"]

#: (1, 4 + classes, N): a column an anchor, [cx, cy, w, h, scores], px and after the sigmoid; NMS is still to come.
RAW = "raw"
#: (1, n, 6): a row an object, [x1, y1, x2, y2, score, class], px, best first; there is no NMS to come.
END2END = "end2end"
#: Rows that edgeprune's files have at most; fewer where the input has fewer anchors.
MAX_ROWS = 300


def shape_of(kind: str, classes: int, anchors: int) -> Tuple[int, int, int]:
    """The shape of the output of edgeprune's own files.

    Args:
        kind: `RAW` or `END2END`.
        classes: Number of classes.
        anchors: Number of anchors.
    """
    return (1, 4 + classes, anchors) if kind == RAW else (1, min(MAX_ROWS, anchors), 6)


def fits(shape: Sequence[int], kind: str, classes: int) -> bool:
    """Whether an output of this kind may have that shape."""
    return len(shape) == 3 and shape[0] == 1 and (shape[1] == 4 + classes if kind == RAW else shape[2] == 6)


def checked(output: Any, kind: str, classes: int) -> Any:
    """Return `output` unchanged where its shape fits the stated kind.

    Args:
        output: An array.
        kind: `RAW` or `END2END`.
        classes: Number of classes.

    Raises:
        InputError: The kind is unknown, or the shape contradicts it.
    """
    if kind not in (RAW, END2END):
        raise InputError(f"a detector's output is stated as {RAW} or {END2END}, not as {kind!r}")
    if fits(output.shape, kind, classes):
        return output
    wanted = f"(1, {4 + classes}, N) for {classes} classes" if kind == RAW else "(1, n, 6)"
    raise InputError(
        f"the model's output has shape {tuple(output.shape)}, but it is stated to be {kind}, {wanted}; check the class "
        "list, or that it is a detector"
    )
