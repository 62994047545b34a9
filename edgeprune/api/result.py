"""The parts that the results of all verbs share: the network, its file, and the table in a notebook."""

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
    from ultralytics.models import YOLO

_STYLE = (
    "border-collapse:collapse;font-variant-numeric:tabular-nums", "text-align:left;padding:.2em .9em .2em 0",
    "text-align:right;padding:.2em .9em;border-top:1px solid rgba(128,128,128,.35)",
)  # fmt: skip


class Network:
    """Base of a result that holds a network.

    Attributes:
        checkpoint: the network, with the training arguments of the network that it was made from.
    """

    checkpoint: Checkpoint

    @property
    def model(self) -> nn.Module:
        """The network: an Ultralytics DetectionModel, float32, in eval mode, on the CPU."""
        return self.checkpoint.model

    @property
    def yolo(self) -> YOLO:
        """The network as a separate Ultralytics YOLO, with predict, val and export."""
        return checkpoint.as_yolo(self.checkpoint)

    def save(self, path: str | Path) -> Path:
        """Write the network as a stock checkpoint, which Ultralytics opens without edgeprune.

        Args:
            path: the file to write.

        Returns:
            The same path.

        Raises:
            InputError: the file cannot be written.
        """
        path = Path(path)
        write(path, self.checkpoint)
        return path


def write(path: Path, source: Checkpoint) -> None:
    """Write a checkpoint's weights, and the quantization scales of their training, to a file."""
    scales = {qat.KEY: source.extra[qat.KEY]} if qat.KEY in source.extra else None
    checkpoint.save(path, source.model, like=source, extra=scales)


def as_table(head: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> str:
    """Render a small HTML table for a notebook, in the notebook's own colours.

    Args:
        head: names of the columns.
        rows: cells of each row; the first names the row, the others are figures.
        notes: lines below the table.
    """
    table, name, figure = _STYLE
    cells = "".join(f'<th style="{name if i == 0 else figure}">{html.escape(c)}</th>' for i, c in enumerate(head))
    body = "".join(
        "<tr>"
        + f'<th scope="row" style="{name}">{html.escape(row[0])}</th>'
        + "".join(f'<td style="{figure}">{html.escape(c)}</td>' for c in row[1:])
        + "</tr>"
        for row in rows
    )
    paragraphs = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    return f'<table style="{table}"><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>{paragraphs}'
