"""Models side by side: plain JSON, rendered as text, as a page and in notebooks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from edgeprune_device.errors import InputError
from edgeprune_device.files import write_atomic

from edgeprune.comparison import page
from edgeprune.comparison.row import Row
from edgeprune.comparison.table import as_text

SCHEMA_VERSION = 2


class Drawing(str):
    """SVG text that a notebook displays as a drawing."""

    def _repr_html_(self) -> str:
        return str(self)


@dataclass(frozen=True, repr=False)
class Comparison:
    """Models side by side; the first is the reference for the others.

    Attributes:
        title: heading of the page.
        kind: "compare" or "build".
        created: time of the comparison.
        reproduce: shell lines that measure the same.
        data: {path, sha256, pictures, boxes, train_in_val} of the validation images; None without a data set.
        machine: the machine that measured, and its package versions.
        items: one Row a model.
        classes: class names.
        gates: {name, limit, found, passed} of each gate.
        gallery: the images of the gallery (`gallery.choose`); None: none.
        more: the further facts of a build: stages, layer fallbacks, bundle.
        schema_version: version of this JSON.
    """

    title: str
    kind: str
    created: str
    reproduce: tuple[str, ...]
    data: Mapping[str, Any] | None
    machine: Mapping[str, Any]
    items: tuple[Row, ...]
    classes: tuple[str, ...] = ()
    gates: tuple[Mapping[str, Any], ...] = ()
    gallery: Mapping[str, Any] | None = None
    more: Mapping[str, Any] | None = None
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> dict[str, Any]:
        """The comparison as JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any], what: str = "comparison") -> Comparison:
        """The inverse of `to_json`.

        Args:
            data: the JSON.
            what: name of its source, for the error message.

        Raises:
            InputError: the JSON is no comparison, is of another version, or is damaged.
        """
        known = {f.name for f in fields(cls)}
        if not isinstance(data, dict) or data.get("schema_version") != SCHEMA_VERSION or set(data) != known:
            raise InputError(f"{what}: not a comparison of this version of edgeprune")
        try:
            tuples = {k: tuple(data[k]) for k in ("reproduce", "classes", "gates")}
            return cls(**{**data, **tuples, "items": tuple(Row(**item) for item in data["items"])})
        except TypeError as error:
            raise InputError(f"{what}: damaged ({error})") from error

    @cached_property
    def _html(self) -> str:
        return page.render(self.to_json())

    def html(self) -> str:
        """The page as one HTML document, with its images."""
        return self._html

    def save_html(self, path: str | Path) -> Path:
        """Write the page, whole or not at all, and return its path."""
        return write_atomic(Path(path), self.html())

    def save_json(self, path: str | Path) -> Path:
        """Write the JSON that the page is made from, and return its path."""
        # Keys are not sorted, because the order of the layers is the network's.
        return write_atomic(Path(path), json.dumps(self.to_json(), allow_nan=False) + "\n")

    def pareto(self) -> Drawing:
        """The plot of latency against mAP, as SVG in the colours of the surrounding text."""
        return Drawing(page.pareto(self.to_json()))

    def _repr_html_(self) -> str:
        return page.fragment(self.to_json())

    def __str__(self) -> str:
        return as_text(self.items, self.data)

    __repr__ = __str__
