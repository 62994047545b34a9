"""The meaning of a detector's output as stated by the model and the manifest; it is never guessed.

The shape does not determine it: with 80 classes, (1, 84, 6) can be the raw output of six anchors or 84 rows of an
end-to-end head. The module does not need numpy, because the manifest uses it.
"""

from __future__ import annotations

from typing import Protocol, Sequence, Tuple, TypeVar

from edgeprune_device.errors import InputError

__all__ = ["BEST", "END2END", "MAX_ROWS", "MAX_VALUES", "NAMES", "RAW", "check_size", "checked", "fits", "shape_of"]

#: (1, 4 + classes + extra, N): one column per anchor, [cx, cy, w, h, scores, extra], px and after the sigmoid, before
#: NMS. The task says how many extra values there are (vision/task.py), e.g. the angle of an oriented box.
RAW = "raw"
#: Three outputs of a device variant, `NAMES`: `best` (1, 4 + classes + extra, K), the K columns of `raw` with the
#: highest scores; `anchors` (1, K) int32, their positions in `raw`; and `raw` as in `RAW`. `best` contains every anchor
#: above a threshold if its lowest score does not exceed the threshold. Only otherwise `raw` is read.
BEST = "best"
#: The names of the outputs of `BEST`, in order. A session may leave `raw` in the memory of the GPU until it is read.
NAMES = ("best", "anchors", "raw")
#: (1, n, 6 + extra): one row per object, [box, score, class, extra], px, best first; needs no NMS.
END2END = "end2end"
#: Maximum number of rows in edgeprune's files; fewer if the input has fewer anchors.
MAX_ROWS = 300
#: Values of an output, at most: 268 MB as float32, twenty times those of 80 classes at 1280 px.
MAX_VALUES = 1 << 26


class _Shaped(Protocol):
    @property
    def shape(self) -> Tuple[int, ...]: ...


_Array = TypeVar("_Array", bound=_Shaped)


def shape_of(kind: str, classes: int, anchors: int, extra: int = 0) -> Tuple[int, int, int]:
    """The shape of the first output in edgeprune's own files.

    Args:
        kind: `RAW`, `BEST` or `END2END`.
        classes: Number of classes.
        anchors: Number of anchors.
        extra: Number of the task's extra values.
    """
    if kind == END2END:
        return (1, min(MAX_ROWS, anchors), 6 + extra)
    return (1, 4 + classes + extra, anchors if kind == RAW else min(MAX_ROWS, anchors))


def fits(shape: Sequence[int], kind: str, classes: int, extra: int = 0) -> bool:
    """Whether the first output of this kind can have the shape; its arguments are those of `shape_of`."""
    if len(shape) != 3 or shape[0] != 1:
        return False
    return shape[2] == 6 + extra if kind == END2END else shape[1] == 4 + classes + extra


def check_size(shape: Sequence[object], what: str) -> None:
    """Check an output's size before memory is allocated for it.

    Args:
        shape: Its shape; a dimension that is not known counts as 1.
        what: Begins the error's message.

    Raises:
        InputError: The output is larger than that of any detector.
    """
    values = 1
    for size in shape:
        values *= size if isinstance(size, int) else 1
    if values > MAX_VALUES:
        described = ", ".join(str(size) for size in shape)
        raise InputError(
            f"{what}: an output is too large (found shape ({described}), expected at most {MAX_VALUES:,} values); "
            "check that the model is a detector"
        )


def checked(output: _Array, kind: str, classes: int, extra: int = 0) -> _Array:
    """Return `output` unchanged if its shape fits the stated kind.

    Args:
        output: The first output of a model.
        kind: `RAW`, `BEST` or `END2END`.
        classes: Number of classes.
        extra: Number of the task's extra values.

    Raises:
        InputError: The kind is unknown, or the shape contradicts it.
    """
    check_size(output.shape, "the model")
    if kind not in (RAW, BEST, END2END):
        raise InputError(
            f"kind of the detector's output: invalid value (found {kind!r}, expected {RAW}, {BEST} or {END2END})"
        )
    if fits(output.shape, kind, classes, extra):
        return output
    wanted = f"(1, {4 + classes + extra}, N) for {classes} classes" if kind != END2END else f"(1, n, {6 + extra})"
    raise InputError(
        f"the model: wrong output shape for the kind {kind} (found {tuple(output.shape)}, expected {wanted}); check "
        "the class list, and that the model is a detector"
    )
