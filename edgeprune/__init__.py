"""Prune an Ultralytics YOLO for real, and prove it on the drone."""

from importlib.metadata import version

__version__ = version("edgeprune")
