"""CPU threads: every core this process may use, or what OMP_NUM_THREADS says, and how they wait for each other.

By OpenMP's default they spin at the end of every layer until all are there. On a quiet machine that saves a tenth. When
another program wants a core, a layer waits for that program's time slice while the other threads burn theirs: a pass
takes three times as long, and fifty times beside a program that spins, too (`benchmarks/threads.py`). So they yield
here, as do ONNX Runtime's (`edgeprune_device.runtimes.ort`).
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeprune.console.progress import Reporter

__all__ = ["DECIDES", "prepare", "ready", "use_all_cores", "wanted"]

#: Who has set one of them has decided how threads wait: OpenMP's own, GNU's, and LLVM's and Intel's.
DECIDES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
_TOO_LATE = (
    "torch was imported before edgeprune, so its threads spin while they wait: beside other programs everything takes "
    "several times as long; import edgeprune first, or set OMP_WAIT_POLICY=PASSIVE before Python starts"
)
_late = False  # torch was there first, and nobody has said yet that it spins


def prepare() -> None:
    """Set what torch and Ultralytics read when they load, and what children inherit. What the user set stays."""
    global _late
    # Ultralytics would otherwise set one thread.
    os.environ.setdefault("OMP_NUM_THREADS", str(_cores()))
    if not any(name in os.environ for name in DECIDES):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        _late = "torch" in sys.modules


def use_all_cores() -> None:
    """Undo what Ultralytics has set: it leaves one core idle (of two, on a small machine), and says so anew whenever it
    selects a device."""
    import torch

    torch.set_num_threads(wanted())


def wanted() -> int:
    """Threads that OMP_NUM_THREADS asks for: the first of its list (one a nesting level); all cores if it is none."""
    first = os.environ["OMP_NUM_THREADS"].split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) else _cores()


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def ready(reporter: Reporter) -> Reporter:
    """The reporter of a verb that computes for long, which begins now: on all cores; told once where they spin."""
    global _late
    use_all_cores()
    if _late and wanted() > 1:
        reporter.warn(_TOO_LATE)
        _late = False
    return reporter
