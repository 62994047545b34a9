"""Prune an Ultralytics YOLO for real, and prove it on the drone."""

import os
from importlib.metadata import version

# Before Ultralytics is imported, which would otherwise set it to 1. What the user set stays.
os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))

__version__ = version("edgeprune")
