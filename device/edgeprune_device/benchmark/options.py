"""The options of a benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from edgeprune_device.options import LIMIT

__all__ = ["MODES", "BenchmarkOptions"]

#: The modes, and for how long each is measured by default, s.
MODES = {"single": 10.0, "sustained": 300.0, "camera": 30.0, "offline": 10.0}


@dataclass(frozen=True)
class BenchmarkOptions:
    """Settings for measuring a bundle, e.g. `BenchmarkOptions(runtime="ort", threads=1)`.

    Attributes:
        mode: One of `MODES`; None: "camera" for a live source or with `fps`, else "single".
        source: Text of the source, see `sources.open`.
        fps: Frame rate of mode "camera", frames/s.
        runtime: Name of the runtime, or "auto".
        precision: Precision of the model, or "auto".
        threads: CPU threads of the runtime; None: its own choice.
        cuda: CUDA backend, see `edgeprune_device.cuda.names`.
        cuda_graph: Run the network as a CUDA graph.
        workspace_bytes: Scratch memory for building an engine; None: chosen from the free memory.
        seconds: How long to measure, s; None: see `MODES`.
        warmup_seconds: Maximum warm-up, s.
        idle_seconds: How long the idle board is watched before the model is loaded, s; only if it has power sensors.
        with_accuracy: Measure the accuracy on the evaluation set.
        check: Measure the output divergence, see `parity`.
        limit_s: Longest time, s, for each of these steps: to load the model, to measure it beyond the time that was
            asked for, to check it. An engine build has a separate limit.
    """

    mode: Optional[str] = None
    source: str = "bundle"
    fps: Optional[float] = None
    runtime: str = "auto"
    precision: str = "auto"
    threads: Optional[int] = None
    cuda: str = "auto"
    cuda_graph: bool = False
    workspace_bytes: Optional[int] = None
    seconds: Optional[float] = None
    warmup_seconds: float = 10.0
    idle_seconds: float = 5.0
    with_accuracy: bool = True
    check: bool = False
    limit_s: float = LIMIT.default
