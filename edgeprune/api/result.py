"""What all results of the verbs have in common: they print, they show themselves in a notebook, they hold a network."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune.model import checkpoint
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.training import qat

if TYPE_CHECKING:
    from torch import nn
    from ultralytics import YOLO

_STYLE = (
    "border-collapse:collapse;font-variant-numeric:tabular-nums", "text-align:left;padding:.2em .9em .2em 0",
    "text-align:right;padding:.2em .9em;border-top:1px solid rgba(128,128,128,.35)",
)  # fmt: skip


class Network:
    """A result that holds a network. `checkpoint`: it, with the training arguments of the one it came from."""

    checkpoint: Checkpoint

    @property
    def model(self) -> nn.Module:
        """The network: an Ultralytics DetectionModel, float32, in eval mode, on the CPU."""
        return self.checkpoint.model

    @property
    def yolo(self) -> YOLO:
        """The network as an Ultralytics YOLO of its own: predict, val, export."""
        return checkpoint.as_yolo(self.checkpoint)

    def save(self, path: str | Path) -> Path:
        """Write it as a stock checkpoint that Ultralytics opens without edgeprune. InputError: it cannot be written."""
        path = Path(path)
        write(path, self.checkpoint)
        return path


def write(path: Path, source: Checkpoint) -> None:
    """The same weights in a file, with the quantization scales that they were trained for."""
    scales = {qat.KEY: source.extra[qat.KEY]} if qat.KEY in source.extra else None
    checkpoint.save(path, source.model, like=source, extra=scales)


def as_table(head: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> str:
    """A small HTML table for a notebook, in its own colours. The first column names, the others are figures."""
    table, name, figure = _STYLE
    cells = "".join(f'<th style="{name if i == 0 else figure}">{html.escape(c)}</th>' for i, c in enumerate(head))
    body = "".join(
        "<tr>"
        + f'<th scope="row" style="{name}">{html.escape(row[0])}</th>'
        + "".join(f'<td style="{figure}">{html.escape(c)}</td>' for c in row[1:])
        + "</tr>"
        for row in rows
    )
    said = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    return f'<table style="{table}"><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>{said}'
