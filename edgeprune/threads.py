"""CPU threads: all cores this process may use, unless the user said otherwise.

Ultralytics leaves one core idle (one of two, on a small machine), and says so anew whenever it selects a device.
"""

from __future__ import annotations

import os

import torch


def use_all_cores() -> None:
    """OMP_NUM_THREADS, as the user set it before Ultralytics was imported, is respected."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
