"""The shape of a data set's images, as a size of the network's input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from edgeprune_device.size import Size

#: The share of the images that must give the same rectangle.
_COMMON = 0.95


def rectangle(shapes: Iterable[tuple[int, int]], longer: int, stride: int) -> Size | None:
    """The smallest input in the shape of the images.

    Args:
        shapes: (height, width) of each image, px.
        longer: The longer side of the input, px.
        stride: The sides of the input are multiples of it.

    Returns:
        The size into which an image fits when its longer side is scaled to `longer`; None if fewer than 95 % of the
            images give the same size.
    """
    sizes = Counter(
        Size(*(max(round(side * longer / max(shape)), 1) for side in shape)).rounded(stride) for shape in shapes
    )
    if not sizes:
        return None
    size, count = sizes.most_common(1)[0]
    return size if count >= _COMMON * sizes.total() else None
