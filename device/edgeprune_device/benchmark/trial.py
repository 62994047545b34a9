"""Chooses the fastest runtime for a CPU by a short, alternating measurement of the bundle's models.

The fastest runtime depends on the CPU, the precision and the release of the library. The measurement runs in a separate
process, so that neither a crash nor its memory affects the caller.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Tuple

import numpy as np

from edgeprune_device import interpreter, layouts, runtimes, strict_json
from edgeprune_device.benchmark.precision import choose_precision
from edgeprune_device.errors import EdgepruneError, InputError
from edgeprune_device.trust.bundle import Bundle

__all__ = ["Trial", "choose", "main"]

_CODE = "from edgeprune_device.benchmark.trial import main; main()"
_WARMUP, _ROUNDS, _LEAST_ROUNDS, _SECONDS = 2, 15, 3, 2.0
_LONGEST_S = 30.0  # limit of the whole process: a model may never return


@dataclass(frozen=True)
class Trial:
    """The result of a measurement, e.g. `Trial("openvino", {"ort": 43.1, "openvino": 30.2})`.

    Attributes:
        runtime: The runtime to use.
        times_ms: {runtime: median time of an inference, ms; None if the runtime could not run the model}.
    """

    runtime: str
    times_ms: Mapping[str, Optional[float]]

    def __str__(self) -> str:
        figures = ", ".join(f"{n} failed" if ms is None else f"{n} {ms:.2f} ms" for n, ms in self.times_ms.items())
        return f"runtime {self.runtime} is the fastest here (median time of an inference: {figures})"


def choose(
    bundle: Bundle,
    runtime: str,
    precision: str = "auto",
    threads: Optional[int] = None,
    limit_s: float = _LONGEST_S,
) -> Tuple[str, Optional[Trial]]:
    """Choose the runtime for a bundle; for "auto", measure the runtimes if several run on the CPU.

    Args:
        bundle: The bundle.
        runtime: Name of the runtime, or "auto".
        precision: Precision of the model, or "auto".
        threads: CPU threads; None: each library's own choice.
        limit_s: Time limit of the measurement, s, at most 30, because a model may never return. A runtime that is not
            finished by then counts as failed.

    Returns:
        (the name of the runtime, the measurement or None if only one runtime was possible).

    Raises:
        RuntimeUnavailable: The runtime is unknown or not available here; for "auto", no runtime is available.
        InputError: The bundle has no model for the runtime.
    """
    names = runtimes.candidates(runtime)
    if len(names) == 1:
        return names[0], None
    payloads = {n: bundle.manifest.models[choose_precision(bundle.manifest, n, precision)]["payload"] for n in names}
    order = {"bundle": str(bundle.path), "sha256": bundle.sha256, "threads": threads, "payloads": payloads}
    times = _measured(order, names, min(limit_s, _LONGEST_S))
    # If no runtime could be measured, the first is used, and opening it reports the reason.
    best = min(names, key=lambda n: times[n] or float("inf"))
    return best, Trial(best, times)


def _measured(order: Mapping[str, Any], names: List[str], limit_s: float) -> Dict[str, Optional[float]]:
    command = interpreter.command(_CODE, json.dumps(order), mortal=True)
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=limit_s
        )
        times = strict_json.loads(done.stdout.splitlines()[-1] if done.stdout else b"{}", "the trial of the runtimes")
    except (OSError, subprocess.TimeoutExpired, InputError):
        times = {}
    return {name: times.get(name) for name in names}


def main() -> None:
    """Run the order in the command line: measure each runtime, and print {runtime: ms or null} as the last line."""
    order = json.loads(sys.argv[1])
    # The caller has verified the key; the hash proves that this is the same bundle.
    bundle = Bundle.open(order["bundle"], allow_untrusted=True)
    if bundle.sha256 != order["sha256"]:
        raise SystemExit(1)
    settings = runtimes.RuntimeSettings(
        threads=order["threads"]
    )  # threads yield; spinning threads would slow down the other sessions
    sessions: Dict[str, runtimes.Session] = {}
    for name, payload in order["payloads"].items():
        try:
            sessions[name] = runtimes.open(bundle.read(payload), name, settings)
        except EdgepruneError:
            continue
    x = layouts.noise(bundle.manifest.layout, bundle.manifest.imgsz)
    print(json.dumps({**{name: None for name in order["payloads"]}, **_times(sessions, x)}))


def _times(sessions: Mapping[str, runtimes.Session], x: np.ndarray) -> Dict[str, float]:
    """Median time of an inference of `x` with each session, ms; the sessions take turns."""
    times: Dict[str, List[float]] = {name: [] for name in sessions}
    until = None
    for i in range(_WARMUP + _ROUNDS):
        if i == _WARMUP:
            until = time.monotonic() + _SECONDS
        if until is not None and i >= _WARMUP + _LEAST_ROUNDS and time.monotonic() > until:
            break
        for name, session in sessions.items():
            began = time.perf_counter()
            session.infer(x)
            if i >= _WARMUP:
                times[name].append((time.perf_counter() - began) * 1e3)
    return {name: statistics.median(taken) for name, taken in times.items()}
