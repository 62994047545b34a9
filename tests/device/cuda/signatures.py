"""Reads the signatures of a real package's functions, for comparison with a fake."""

import re


def parameters(text):
    """The parameters of a Cython or Boost signature: "f(size_t count, kind: cudaMemcpyKind)" -> ["count", "kind"]."""
    inside = re.sub(r"[\[\]]", "", text.partition("(")[2].rpartition(")")[0])
    return [
        part.partition(":")[0].partition("=")[0].split()[-1].split(")")[-1]
        for part in inside.split(",")
        if part.strip()
    ]
