"""A comparison of models: plain JSON, rendered as text, as a page and in notebooks."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from edgeprune_device.errors import InputError
from edgeprune_device.files import write_atomic

from edgeprune.comparison import page
from edgeprune.comparison.facts import SCHEMA_VERSION, Facts
from edgeprune.comparison.gallery import Box, Boxes, Gallery, GalleryEntry, boxes_of, match, task_of
from edgeprune.comparison.row import Row
from edgeprune.comparison.table import as_text


class Drawing(str):
    """SVG text that a notebook displays as a drawing."""

    def _repr_html_(self) -> str:
        return str(self)


class Comparison(Facts):
    """A comparison of models; the first is the reference for the others. `Facts` describes the fields."""

    def to_json(self) -> dict[str, Any]:
        """The comparison as JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any], what: str = "comparison") -> Comparison:
        """Create a comparison from the result of `to_json`.

        Args:
            data: the JSON.
            what: name of its source, for the error message.

        Raises:
            InputError: the JSON is not a comparison, has another version, or is damaged.
        """
        known = {f.name for f in fields(cls)}
        if not isinstance(data, dict) or data.get("schema_version") != SCHEMA_VERSION or set(data) != known:
            raise InputError(f"{what}: not a comparison of this version of edgeprune; run edgeprune compare again")
        try:
            tuples = {k: tuple(data[k]) for k in ("reproduce", "classes", "gates")}
            return cls(**{**data, **tuples, "items": tuple(Row(**item) for item in data["items"])})
        except TypeError as error:
            raise InputError(f"{what}: damaged ({error}); run edgeprune compare again") from error

    @cached_property
    def _html(self) -> str:
        return page.render(self)

    def html(self) -> str:
        """The page as one HTML document, with its images."""
        return self._html

    def save_html(self, path: str | Path) -> Path:
        """Write the page atomically, and return its path."""
        return write_atomic(Path(path), self.html())

    def save_json(self, path: str | Path) -> Path:
        """Write the JSON behind the page, and return its path."""
        # Keys are not sorted, because the layers are in the order of the network.
        return write_atomic(Path(path), json.dumps(self.to_json(), allow_nan=False) + "\n")

    def pareto(self) -> Drawing:
        """The plot of latency against mAP, as SVG in the colours of the surrounding text."""
        return Drawing(page.pareto(self))

    def found(self, picture: GalleryEntry, name: str) -> list[int | None]:
        """Match a model's detections in an image of the gallery to its labelled objects.

        Args:
            picture: one of `gallery["pictures"]`.
            name: the model's name.

        Returns:
            For each of `picture["found"][name]` the index of its object in `picture["truth"]`; None for a false alarm.

        Raises:
            InputError: the comparison has no gallery.
        """
        gallery = self._gallery
        return match(picture["truth"], picture["found"][name], gallery["iou"], task=task_of(gallery))

    def outline(self, box: Box) -> Boxes:
        """The corners of a labelled or detected box of the gallery, for drawing.

        Args:
            box: one of `picture["truth"]`, or of a model's detections.

        Returns:
            (4, 2) x and y of the corners in order, px.

        Raises:
            InputError: the comparison has no gallery.
        """
        task = task_of(self._gallery)
        corners: Boxes = task.corners(boxes_of([box], task))[0]
        return (corners[[0, 1, 2, 1, 2, 3, 0, 3]] if len(corners) == 4 else corners).reshape(-1, 2)

    @property
    def _gallery(self) -> Gallery:
        if self.gallery is None:
            raise InputError("comparison: no gallery; compare with data")
        return self.gallery

    def _repr_html_(self) -> str:
        return page.fragment(self)

    def __str__(self) -> str:
        return as_text(self.items, self.data)

    __repr__ = __str__
