"""What a real package says of its functions, for comparison with a fake's."""

import re


def parameters(text):
    """What Cython's and Boost's signatures name: "f(size_t count, kind: cudaMemcpyKind)" -> ["count", "kind"]."""
    inside = re.sub(r"[\[\]]", "", text.partition("(")[2].rpartition(")")[0])
    return [
        part.partition(":")[0].partition("=")[0].split()[-1].split(")")[-1]
        for part in inside.split(",")
        if part.strip()
    ]
