"""The evaluation set of a bundle, and `evaluate`: images + model -> Accuracy.

An evaluation set is a stored (uncompressed) zip. It holds the original image files under `pictures/`, byte for byte,
and `truth.json`: {"schema_version": 1, "pictures": [{"name": "a.jpg", "boxes": [[class, x1, y1, x2, y2], …]}, …]}.
Boxes are in pixels of the upright image, with the columns of the bundle's task (vision/task.py).
"""

from __future__ import annotations

import io
import stat
import zipfile
from collections import Counter
from dataclasses import dataclass
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Protocol,
    Sequence,
    Tuple,
    Union,
)

import numpy as np

from edgeprune_device import layouts, schema, strict_json
from edgeprune_device.errors import InputError
from edgeprune_device.vision import detect as detection
from edgeprune_device.vision.accuracy import Accuracy, ImageMatches, Matches, class_names, match_image
from edgeprune_device.vision.postprocess import IOU, MAX_DET
from edgeprune_device.vision.preprocess import Letterbox, decode, letterbox
from edgeprune_device.vision.task import Task

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["CONF", "Detected", "EvaluationImage", "EvaluationSet", "detect", "detected", "evaluate"]

#: Score threshold for mAP; a higher one would cut off the precision-recall curve.
CONF = 0.001


class _Session(Protocol):
    """A model that is ready to run."""

    def infer(self, x: npt.NDArray[Any]) -> Sequence[npt.NDArray[Any]]:
        """The outputs for one input, in the layout of the model."""


class EvaluationImage(NamedTuple):
    """One labelled image.

    Attributes:
        name: Name of the image file.
        data: Bytes of the image file.
        truth: (m, 1 + columns) float64 labels of the task, image px; for detection [class, x1, y1, x2, y2].
    """

    name: str
    data: bytes
    truth: npt.NDArray[np.float64]


@dataclass(frozen=True)
class EvaluationSet:
    """Labelled images; iterating gives `EvaluationImage`s, and `len()` is their number.

    Attributes:
        pictures: The images.
    """

    pictures: Tuple[EvaluationImage, ...]

    def __len__(self) -> int:
        return len(self.pictures)

    def __iter__(self) -> Iterator[EvaluationImage]:
        return iter(self.pictures)

    @property
    def boxes(self) -> int:
        """Number of labelled boxes."""
        return sum(len(picture.truth) for picture in self.pictures)

    @staticmethod
    def pack(items: Iterable[Tuple[str, bytes, npt.NDArray[Any]]]) -> bytes:
        """Write an evaluation set; the same input gives the same bytes.

        Args:
            items: (name, bytes of the image file, labels of the task, image px) of each image.

        Returns:
            The bytes of the zip.

        Raises:
            InputError: The truth does not fit its schema, or a name occurs twice.
        """
        pictures = [EvaluationImage(name, data, _table(truth)) for name, data, truth in items]
        entries = [{"name": picture.name, "boxes": picture.truth.tolist()} for picture in pictures]
        listing = _checked({"schema_version": 1, "pictures": entries}, "evaluation set")
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
            for picture in pictures:
                _store(archive, f"pictures/{picture.name}", picture.data)
            _store(archive, "truth.json", strict_json.canonical(listing))
        return stream.getvalue()

    @classmethod
    def read(cls, data: bytes, what: str = "evaluation set") -> EvaluationSet:
        """Read an evaluation set.

        Args:
            data: Bytes of the zip.
            what: Start of the error message.

        Raises:
            InputError: The zip is damaged, compressed, encrypted or inconsistent, or has a link or an unknown file.
        """
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                entries = archive.infolist()
                for info in entries:
                    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or _is_link(info):
                        raise InputError(
                            f"{what}: {info.filename:.80}: unsupported entry (compressed, encrypted or a link; "
                            "expected a stored file); build the bundle again"
                        )
                # Overlapping entries could expand to any size, so their sum must not exceed the archive.
                size_bytes = sum(info.file_size for info in entries)
                if size_bytes > len(data):
                    raise InputError(
                        f"{what}: entries larger than the archive (found {size_bytes} bytes, expected at most "
                        f"{len(data)}); build the bundle again"
                    )
                listing = _checked(strict_json.loads(archive.read("truth.json"), f"{what}: truth.json"), what)
                known = ["truth.json", *(f"pictures/{entry['name']}" for entry in listing["pictures"])]
                surplus = Counter(info.filename for info in entries) - Counter(known)
                if surplus:
                    raise InputError(
                        f"{what}: {min(surplus)!r:.80}: not listed in truth.json, or present twice; build the bundle "
                        "again"
                    )
                pictures = tuple(
                    EvaluationImage(
                        entry["name"],
                        archive.read(f"pictures/{entry['name']}"),
                        _table(entry["boxes"]),
                    )
                    for entry in listing["pictures"]
                )
        except InputError:
            raise
        except Exception as error:  # zipfile raises BadZipFile, KeyError, EOFError, struct.error, NotImplementedError …
            raise InputError(f"{what}: not an evaluation set ({str(error) or type(error).__name__:.120})") from error
        return cls(pictures)


class Detected(NamedTuple):
    """The detections of a model in one image.

    Attributes:
        rows: (n, columns + 2) float32 rows of the task, image px; for detection [x1, y1, x2, y2, score, class].
        outputs: The model's outputs.
        box: The letterbox that the image went through.
    """

    rows: npt.NDArray[np.float32]
    outputs: Sequence[npt.NDArray[Any]]
    box: Letterbox


def detect(
    session: _Session,
    source: Union[bytes, str],
    name: str,
    *,
    imgsz: Union[int, Sequence[int]],
    classes: int,
    kind: str,
    layout: str = layouts.FLOAT32_NCHW,
    task: Task = detection.TASK,
) -> Detected:
    """Run a model on one image: decode -> letterbox -> session.infer -> detections.

    Every accuracy figure that is compared with another comes from detections of this function, with the thresholds
    `CONF`, `IOU` and `MAX_DET`.

    Args:
        session: The model, ready to run.
        source: The bytes of the image file, or its path.
        name: The image's name in messages.
        imgsz: Network size, px, one number or (h, w).
        classes: Number of classes.
        kind: Meaning of the model's outputs, see output.py.
        layout: Layout of the model's input, see layouts.py.
        task: The task.
    """
    x, box = letterbox(decode(source, name), imgsz, layout)
    return detected(session.infer(x), box, classes=classes, kind=kind, task=task)


def detected(
    outputs: Sequence[npt.NDArray[Any]], box: Letterbox, *, classes: int, kind: str, task: Task = detection.TASK
) -> Detected:
    """The detections behind a model's outputs for one image.

    Args:
        outputs: The model's outputs, batch (of one) first.
        box: The letterbox of the image.
        classes: Number of classes.
        kind: Meaning of the model's outputs, see output.py.
        task: The task.
    """
    rows = task.detections(outputs, kind, classes=classes, conf=CONF, iou=IOU, max_det=MAX_DET, multi_label=True)
    return Detected(task.undo(rows, box), outputs, box)


def evaluate(
    session: _Session,
    pictures: Iterable[Tuple[str, Union[bytes, str], npt.NDArray[Any]]],
    *,
    imgsz: Union[int, Sequence[int]],
    classes: Union[int, Sequence[str]],
    kind: str,
    layout: str = layouts.FLOAT32_NCHW,
    task: Task = detection.TASK,
    progress: Optional[Callable[[int], None]] = None,
) -> Tuple[Accuracy, List[npt.NDArray[np.float32]]]:
    """Evaluate a model, one image after another.

    Args:
        session: The model, ready to run.
        pictures: (name, image bytes or path, labels of the task in px) of each image; an `EvaluationSet` fits.
        imgsz: Network size, px, one number or (h, w).
        classes: Number of classes, or their names.
        kind: Meaning of the model's outputs, see output.py; a bundle's manifest states it.
        layout: Layout of the model's input, see layouts.py; a bundle's manifest states it.
        task: The task; a bundle's manifest names it.
        progress: Called with the number of completed images.

    Returns:
        The accuracy, and the rows of each image in image px, in order.
    """
    names = class_names(classes)
    detected: List[npt.NDArray[np.float32]] = []
    matched: List[ImageMatches] = []
    for name, source, truth in pictures:
        rows = detect(session, source, name, imgsz=imgsz, classes=len(names), kind=kind, layout=layout, task=task).rows
        detected.append(rows)
        matched.append(match_image(rows, truth, names, name, task))
        if progress:
            progress(len(detected))
    return Matches.of(matched, names).accuracy(), detected


def _checked(listing: Dict[str, Any], what: str) -> Dict[str, Any]:
    schema.check("truth", listing, f"{what}: truth.json")
    names = [entry["name"] for entry in listing["pictures"]]
    if len(set(names)) != len(names):
        raise InputError(f"{what}: truth.json: duplicate image name")
    return listing


def _table(truth: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The labels of an image as a table. An image without labels has the width of detection, for any task."""
    table = np.asarray(truth, dtype=np.float64)
    return table if table.size else np.zeros((0, 5))


def _is_link(info: zipfile.ZipInfo) -> bool:
    return stat.S_ISLNK(info.external_attr >> 16)


def _store(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), data)  # no clock: reproducible
