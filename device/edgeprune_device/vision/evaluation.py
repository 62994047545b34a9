"""The evaluation set of a bundle, and `evaluate`: images + model -> Accuracy.

An evaluation set is a stored (uncompressed) zip. It holds the original image files under `pictures/`, byte for byte,
and `truth.json`: {"schema_version": 1, "pictures": [{"name": "a.jpg", "boxes": [[class, x1, y1, x2, y2], …]}, …]}.
Boxes are in pixels of the upright image.
"""

from __future__ import annotations

import io
import stat
import zipfile
from collections import Counter
from dataclasses import dataclass
from typing import Callable, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np

from edgeprune_device import schema, strict_json
from edgeprune_device.errors import InputError
from edgeprune_device.vision.accuracy import Accuracy, match
from edgeprune_device.vision.postprocess import detections
from edgeprune_device.vision.preprocess import Letterbox, decode, letterbox

__all__ = ["EvaluationImage", "EvaluationSet", "evaluate"]


class EvaluationImage(NamedTuple):
    """One labelled image.

    Attributes:
        name: Name of the image file.
        data: Bytes of the image file.
        truth: (m, 5) float64 [class, x1, y1, x2, y2], image px.
    """

    name: str
    data: bytes
    truth: np.ndarray


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
    def pack(items: Iterable[Tuple[str, bytes, np.ndarray]]) -> bytes:
        """Write an evaluation set; the same input gives the same bytes.

        Args:
            items: (name, bytes of the image file, truth (m, 5) [class, x1, y1, x2, y2] px) of each image.

        Returns:
            The bytes of the zip.

        Raises:
            InputError: The truth does not fit its schema, or a name occurs twice.
        """
        pictures = [
            EvaluationImage(name, data, np.asarray(truth, dtype=np.float64).reshape(-1, 5))
            for name, data, truth in items
        ]
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
            what: Begins the error's message.

        Raises:
            InputError: The zip is damaged, compressed, encrypted or inconsistent, or holds a link or an unknown file.
        """
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                entries = archive.infolist()
                for info in entries:
                    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or _is_link(info):
                        raise InputError(
                            f"{what}: {info.filename:.80}: must be stored: not packed, not encrypted, no link"
                        )
                # Stored, and together no more than there is: entries that overlap could unfold to any size.
                if sum(info.file_size for info in entries) > len(data):
                    raise InputError(f"{what}: its entries claim more than it holds")
                listing = _checked(strict_json.loads(archive.read("truth.json"), f"{what}: truth.json"), what)
                known = ["truth.json", *(f"pictures/{entry['name']}" for entry in listing["pictures"])]
                surplus = Counter(info.filename for info in entries) - Counter(known)
                if surplus:
                    raise InputError(
                        f"{what}: {min(surplus)!r:.80} stands in it, which truth.json does not know, or twice"
                    )
                pictures = tuple(
                    EvaluationImage(
                        entry["name"],
                        archive.read(f"pictures/{entry['name']}"),
                        np.array(entry["boxes"], dtype=np.float64).reshape(-1, 5),
                    )
                    for entry in listing["pictures"]
                )
        except InputError:
            raise
        except Exception as error:  # zipfile raises BadZipFile, KeyError, EOFError, struct.error, NotImplementedError …
            raise InputError(f"{what}: not an evaluation set ({str(error) or type(error).__name__:.120})") from error
        return cls(pictures)


def evaluate(
    session,
    pictures: Iterable[Tuple[str, Union[bytes, str], np.ndarray]],
    *,
    imgsz: Union[int, Sequence[int]],
    classes: Union[int, Sequence[str]],
    kind: str,
    conf: float = 0.001,
    iou: float = 0.7,
    max_det: int = 300,
    progress: Optional[Callable[[int], None]] = None,
    seen: Optional[Callable[[List[np.ndarray], Letterbox], None]] = None,
) -> Tuple[Accuracy, List[np.ndarray]]:
    """Evaluate a model: decode -> letterbox -> session.infer -> detections -> match.

    Every accuracy figure that is compared with another comes from this function.

    Args:
        session: Any object with `.infer(x: (1, 3, h, w) float32 in [0, 1]) -> list[np.ndarray]`.
        pictures: (name, image bytes or path, truth (m, 5) [class, x1, y1, x2, y2] px) of each image; an `EvaluationSet`
            fits.
        imgsz: Network size, px, one number or (h, w).
        classes: Number of classes, or their names.
        kind: Meaning of the model's output, see output.py; a bundle's manifest states it.
        conf: Lowest score of a detection.
        iou: IoU above which NMS removes the weaker of two boxes.
        max_det: Most detections of one image.
        progress: Called with the number of images done.
        seen: Called with each image's outputs and its letterbox, for a caller that uses one inference twice.

    Returns:
        The accuracy, and the (n, 6) detections of each image in image px, in order, for `accuracy.match`.
    """
    count = int(classes) if isinstance(classes, (int, np.integer)) else len(classes)
    found, truths = [], []
    for name, source, truth in pictures:
        x, box = letterbox(decode(source, name), imgsz)
        outputs = session.infer(x)
        dets = detections(outputs, kind, classes=count, conf=conf, iou=iou, max_det=max_det, multi_label=True)
        found.append(box.undo(dets))
        truths.append(truth)
        if seen:
            seen(outputs, box)
        if progress:
            progress(len(found))
    return match(found, truths, classes).accuracy(), found


def _checked(listing: dict, what: str) -> dict:
    schema.check("truth", listing, f"{what}: truth.json")
    names = [entry["name"] for entry in listing["pictures"]]
    if len(set(names)) != len(names):
        raise InputError(f"{what}: truth.json: a picture's name stands twice")
    return listing


def _is_link(info: zipfile.ZipInfo) -> bool:
    return stat.S_ISLNK(info.external_attr >> 16)


def _store(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), data)  # no clock: reproducible
