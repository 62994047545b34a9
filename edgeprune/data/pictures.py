"""The image files that count, by the ending of their names."""

from __future__ import annotations

READABLE = {".bmp", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp"}

#: What Ultralytics lists as pictures too, and nothing here decodes.
UNREADABLE = {".avif", ".dng", ".heic", ".heif", ".jp2"}

PICTURES = READABLE | UNREADABLE
