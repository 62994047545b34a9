"""CPU threads: every core this process may use, or what OMP_NUM_THREADS says, and how they wait for each other.

By OpenMP's default they spin at the end of every layer until all have arrived, which is faster on a quiet machine. When
another program needs a core, a layer waits for that program's time slice while the other threads burn theirs. How much
each way costs differs from processor to processor (`benchmarks/results/threads.md`). The threads yield here, as do ONNX
Runtime's (`edgeprune_device.runtimes.ort`), because a build shares its machine with other work.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeprune.console.progress import Reporter

__all__ = ["DECIDES", "prepare", "ready", "use_all_cores", "wanted"]

#: Environment variables that decide how threads wait: OpenMP's own, GNU's, and LLVM's and Intel's.
DECIDES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
_TOO_LATE = (
    "torch was imported before edgeprune, so its threads spin while they wait: beside other programs a job can run "
    "much slower; import edgeprune first, or set OMP_WAIT_POLICY=PASSIVE before Python starts"
)
_late = False  # torch was loaded first, and the warning is still to be shown


def prepare() -> None:
    """Set the environment variables that torch and Ultralytics read when they load, and that child processes inherit.

    Variables that the user has set keep their values.
    """
    global _late
    # Ultralytics would otherwise set one thread.
    os.environ.setdefault("OMP_NUM_THREADS", str(_cores()))
    if not any(name in os.environ for name in DECIDES):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        _late = "torch" in sys.modules


def use_all_cores() -> None:
    """Undo Ultralytics' thread count, which it sets anew whenever it selects a device: it leaves one core idle."""
    import torch

    torch.set_num_threads(wanted())


def wanted() -> int:
    """The number of threads: the first number of OMP_NUM_THREADS (which has one for each nesting level), or all cores
    where that is no number.
    """
    first = os.environ["OMP_NUM_THREADS"].split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) else _cores()


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def ready(reporter: Reporter) -> Reporter:
    """Prepare a verb that computes for long and begins now: use all cores, and warn once where the threads spin.

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
