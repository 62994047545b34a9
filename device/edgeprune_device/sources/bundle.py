"""The evaluation set that travels in the bundle: the same pictures on every machine."""

from __future__ import annotations

from typing import Optional

from edgeprune_device.errors import InputError
from edgeprune_device.sources.pictures import Pictures
from edgeprune_device.vision.evaluation import EvaluationSet

__all__ = ["open", "takes"]


def takes(text: str) -> bool:
    """The word itself."""
    return text == "bundle"


def open(text: str, bundle_pictures: Optional[EvaluationSet], once: bool = False) -> Pictures:
    """InputError: the bundle has no pictures."""
    if not bundle_pictures:
        raise InputError("the bundle has no evaluation pictures: give other frames (--source)")
    pictures = [(picture.name, picture.data) for picture in bundle_pictures]
    return Pictures("bundle", "the bundle's evaluation set", pictures, once)
