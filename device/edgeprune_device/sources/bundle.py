"""The evaluation set of the bundle: the same images on every machine."""

from __future__ import annotations

from typing import Optional

from edgeprune_device.errors import InputError
from edgeprune_device.option import named
from edgeprune_device.sources.pictures import Pictures
from edgeprune_device.vision.evaluation import EvaluationSet

__all__ = ["open", "takes"]


def takes(text: str) -> bool:
    """Whether the text is the word "bundle"."""
    return text == "bundle"


def open(text: str, bundle_pictures: Optional[EvaluationSet], once: bool = False) -> Pictures:
    """Open the bundle's images.

    Raises:
        InputError: The bundle has no images.
    """
    if not bundle_pictures:
        raise InputError(f"the bundle has no evaluation images; give other frames with {named('source')}")
    pictures = [(picture.name, picture.data) for picture in bundle_pictures]
    return Pictures("bundle", "the bundle's evaluation set", pictures, once)
