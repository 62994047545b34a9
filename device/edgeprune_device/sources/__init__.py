"""Frames to measure on: `open(text) -> Source`.

Adding a source is adding one file here, and its name to `KINDS`. It has

    takes(text) -> bool      whether it is meant where the text names no kind; the first of KINDS that returns True wins
    open(text, bundle_pictures, once) -> Source

`Paced` turns the frames of any source into those of a camera.
"""

from __future__ import annotations

import importlib
from typing import Optional

from edgeprune_device.errors import InputError
from edgeprune_device.sources.paced import Paced
from edgeprune_device.sources.source import Frame, Source
from edgeprune_device.vision.evaluation import EvaluationSet

__all__ = ["KINDS", "Frame", "Paced", "Source", "open"]

KINDS = ("bundle", "camera", "pictures", "video")  # in the order they are asked


def open(text: str = "bundle", bundle_pictures: Optional[EvaluationSet] = None, once: bool = False) -> Source:
    """Open a source.

    Args:
        text: One of
            "bundle": the bundle's evaluation set, `bundle_pictures`;
            a folder, a glob or a file: images, or a video;
            "/dev/video0": a camera by Video4Linux; "csi" or "csi:1": a Jetson's own; or a GStreamer pipeline;
            "video:PATH": a file with its kind, where the text does not show it.
        bundle_pictures: The bundle's evaluation set.
        once: Images and videos end instead of starting again.

    Raises:
        InputError: There is no such source, or it cannot be read.
        RuntimeUnavailable: A program is missing.
    """
    kind, colon, rest = text.partition(":")
    if colon and rest and kind in KINDS:
        return _module(kind).open(rest, bundle_pictures, once)
    for kind in KINDS:
        if text and _module(kind).takes(text):
            return _module(kind).open(text, bundle_pictures, once)
    raise InputError(
        f"{text}: no such source of frames; give bundle, a folder or glob of pictures, a video file, /dev/video0, csi, "
        "or a GStreamer pipeline (with ' ! ')"
    )


def _module(kind: str):
    return importlib.import_module(f"{__name__}.{kind}")
