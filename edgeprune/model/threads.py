"""The number of CPU threads (all available cores, or OMP_NUM_THREADS), and how they wait for each other.

By default OpenMP's threads spin at the end of every layer until all have arrived, which is faster on an idle machine.
If another program needs a core, the layer waits for that program's time slice while the other threads waste theirs. The
cost of each policy depends on the processor (`benchmarks/results/threads.md`). edgeprune lets the threads yield, as in
ONNX Runtime (`edgeprune_device.runtimes.ort`), because a build shares its machine with other work.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from edgeprune.workers import wanted

if TYPE_CHECKING:
    from edgeprune.console.progress import Reporter

__all__ = ["DECIDES", "prepare", "ready", "use_all_cores", "wanted"]

#: Environment variables that decide how threads wait: OpenMP's, GNU's, and LLVM's and Intel's.
DECIDES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
_TOO_LATE = (
    "torch was imported before edgeprune, so its threads spin while they wait, and other programs can slow a job down "
    "a lot; import edgeprune first, or set OMP_WAIT_POLICY=PASSIVE before Python starts"
)
_late = False  # torch was loaded first, and the warning has not been shown yet


def prepare() -> None:
    """Set the environment variables that torch and Ultralytics read at import and that child processes inherit.

    Variables that the user has set keep their values.
    """
    global _late
    # Ultralytics would otherwise set one thread.
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    if not any(name in os.environ for name in DECIDES):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        _late = "torch" in sys.modules


def use_all_cores() -> None:
    """Undo Ultralytics' thread count, which leaves one core idle and is set whenever it selects a device."""
    import torch

    torch.set_num_threads(wanted())


def ready(reporter: Reporter) -> Reporter:
    """Prepare for a long computation: use all cores, and warn once if the threads spin.

    Args:
        reporter: Shows the warning.

    Returns:
        The same reporter.
    """
    global _late
    use_all_cores()
    if _late and wanted() > 1:
        reporter.warn(_TOO_LATE)
        _late = False
    return reporter
