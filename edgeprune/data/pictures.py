"""The types of image files, by suffix."""

from __future__ import annotations

READABLE = {".bmp", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp"}

#: Types that Ultralytics lists as images, but edgeprune does not decode.
UNREADABLE = {".avif", ".dng", ".heic", ".heif", ".jp2"}

PICTURES = READABLE | UNREADABLE
