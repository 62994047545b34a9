"""Frames to measure on: `open(text) -> Source`.

To add a source, add one file here with the members of `Kind`, and its name to `KINDS`. `Paced` turns the frames
of any source into those of a camera.
"""

from __future__ import annotations

from typing import Optional, Protocol, cast

from edgeprune_device import plugins
from edgeprune_device.errors import InputError
from edgeprune_device.sources.paced import Paced
from edgeprune_device.sources.source import Frame, Source
from edgeprune_device.vision.evaluation import EvaluationSet

__all__ = ["KINDS", "Frame", "Kind", "Paced", "Source", "open"]

#: The kinds of sources, in the order in which they are asked.
KINDS = ("bundle", "camera", "pictures", "video")


class Kind(Protocol):
    """The module of a kind of source."""

    def takes(self, text: str) -> bool:
        """Whether a text without a kind means this one; the first of `KINDS` that returns True is used."""

    def open(self, text: str, bundle_pictures: Optional[EvaluationSet], once: bool) -> Source:
        """Open a source; see `open`."""


def open(text: str = "bundle", bundle_pictures: Optional[EvaluationSet] = None, once: bool = False) -> Source:
    """Open a source.

    Args:
        text: One of
            "bundle": the bundle's evaluation set, `bundle_pictures`;
            a folder, a glob or a file: images, or a video;
            "/dev/video0": a Video4Linux camera; "csi" or "csi:1": a Jetson's own camera; or a GStreamer pipeline;
            "video:PATH": a file with its kind, if the text does not show it.
        bundle_pictures: The bundle's evaluation set.
        once: Images and videos end instead of starting again.

    Raises:
        InputError: The source does not exist or cannot be read.
        RuntimeUnavailable: A program is missing.
    """
    kind, colon, rest = text.partition(":")
    if colon and rest and kind in KINDS:
        return _module(kind).open(rest, bundle_pictures, once)
    for kind in KINDS:
        if text and _module(kind).takes(text):
            return _module(kind).open(text, bundle_pictures, once)
    raise InputError(
        f"{text}: no such source of frames; give bundle, a folder or glob of images, a video file, /dev/video0, csi, "
        "or a GStreamer pipeline (with ' ! ')"
    )


def _module(kind: str) -> Kind:
    return cast(Kind, plugins.load(__name__, kind))
