"""The names of a model's layers, in the notation of users and of exported graphs. Imports nothing."""

from __future__ import annotations

from typing import List

__all__ = ["layer_of_node"]


def layer_of_node(name: str) -> str:
    """The layer of an exported operator: `/model.22/cv2.0/cv2.0.1/conv/Conv` belongs to `model.22.cv2.0.1.conv`.

    A name without a path is returned unchanged.
    """
    parts: List[str] = []
    for part in name.strip("/").split("/")[:-1]:
        # PyTorch repeats the path inside a Sequential or ModuleList: cv2.0, then cv2.0.1.
        if parts and part.startswith(parts[-1] + "."):
            parts[-1] = part
        else:
            parts.append(part)
    return ".".join(parts) or name
