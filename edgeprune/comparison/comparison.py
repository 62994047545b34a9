"""Models side by side: plain JSON, shown as text, as a page and in notebooks."""

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
    """SVG text that a notebook shows as the picture it is."""

    def _repr_html_(self) -> str:
        return str(self)


@dataclass(frozen=True, repr=False)
class Comparison:
    """Models side by side; the first is what the others are compared with.

    kind: "compare" or "build"; reproduce: shell lines; data: {path, sha256, pictures, boxes, train_in_val} of the
    pictures that judged; machine, versions: where it was measured; gates: {name, limit, found, passed}; gallery: see
    gallery.choose; more: what a build has to say beside.
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
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any], what: str = "comparison") -> Comparison:
        """The inverse of to_json. InputError: it is none, or of another version."""
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
        """The whole page: self-contained, pictures included."""
        return self._html

    def save_html(self, path: str | Path) -> Path:
        """Write the page, whole or not at all."""
        return write_atomic(Path(path), self.html())

    def save_json(self, path: str | Path) -> Path:
        """Write what the page is made from."""
        # In the order that things have: that of the layers is the network's.
        return write_atomic(Path(path), json.dumps(self.to_json(), allow_nan=False) + "\n")

    def pareto(self) -> Drawing:
        """The plot of latency against mAP, as SVG in the colours of the text around it."""
        return Drawing(page.pareto(self.to_json()))

    def _repr_html_(self) -> str:
        return page.fragment(self.to_json())

    def __str__(self) -> str:
        return as_text(self.items, self.data)

    __repr__ = __str__
