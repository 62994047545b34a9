"""CPU threads: every core this process may use, or what OMP_NUM_THREADS says (`edgeprune/__init__.py`).

Ultralytics leaves one core idle (of two, on a small machine), and says so anew whenever it selects a device.
"""

from __future__ import annotations

import os

import torch


def use_all_cores() -> None:
    """Undo what Ultralytics has set."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
