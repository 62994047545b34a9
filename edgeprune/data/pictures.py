"""The kinds of image files, by the endings of their names."""

from __future__ import annotations

READABLE = {".bmp", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp"}

#: Kinds that Ultralytics lists as images too, and that are not decoded here.
UNREADABLE = {".avif", ".dng", ".heic", ".heif", ".jp2"}

PICTURES = READABLE | UNREADABLE
