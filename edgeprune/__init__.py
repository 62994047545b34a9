"""Prune an Ultralytics YOLO for real, and prove it on the drone."""

import os
from importlib.metadata import version

import edgeprune_device  # noqa: F401  first: it keeps ONNX Runtime's telemetry off

# Before Ultralytics is imported, which would otherwise set one thread. What the user set stays.
os.environ.setdefault("YOLO_VERBOSE", "False")  # its greetings would stand between our results
os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))

__version__ = version("edgeprune")
