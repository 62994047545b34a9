"""A bundle measured by `edgeprune bench` in a process of its own, before anything depends on it."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional

from edgeprune_device import interpreter, strict_json
from edgeprune_device.errors import DeviceError, GateError, InputError
from edgeprune_device.installation.options import InstallOptions
from edgeprune_device.printable import printable
from edgeprune_device.releases import Releases
from edgeprune_device.trust.bundle import Bundle

__all__ = ["Measured", "described", "engines", "measure", "run_tool", "untrusted_option"]

_MEASURE_S, _WARMUP_S, _IDLE_S = 2.0, 2.0, 0.5


@dataclass(frozen=True)
class Measured:
    precision: Optional[str]
    runtime: Optional[str]
    report: Optional[str]
    accuracy: Optional[Dict[str, Optional[float]]]


# --- measure ---------------------------------------------------------------------------------------------------------
def measure(releases: Releases, bundle: Bundle, folder: Path, options: InstallOptions) -> Measured:
    """By `edgeprune bench` in a process of its own, which builds the engine, too: native code that crashes there ends
    the installation, not this process. Its report waits for `edgeprune collect`."""
    from edgeprune_device.reports.report import BenchReport  # brings numpy, which whoever only follows does without

    path = folder / "report.json"
    run_tool(
        releases,
        ["bench", str(bundle.path), "--runtime", options.runtime, "--precision", options.precision,
         "--mode", "single", "--seconds", f"{_MEASURE_S:g}", "--warmup", f"{_WARMUP_S:g}", "--idle", f"{_IDLE_S:g}",
         "--max-drop", f"{options.max_drop:g}", "--report", str(path), *untrusted_option(bundle)],
    )  # fmt: skip
    report = BenchReport.from_json(strict_json.loads(path.read_bytes(), "the benchmark's report"))
    path.unlink()
    return Measured(
        precision=report.precision,
        runtime=report.runtime["name"],
        report=hashlib.sha256(report.to_bytes()).hexdigest(),
        accuracy={
            "map50_95": None if report.accuracy is None else report.accuracy.map50_95,
            "host_map50_95": None if report.host_accuracy is None else report.host_accuracy["map50_95"],
            "delta": report.map50_95_delta,
        },
    )


def described(measured: Measured) -> str:
    accuracy = measured.accuracy or {}
    figures = [accuracy.get(name) for name in ("map50_95", "host_map50_95")]
    here, host = ("not measured" if value is None else f"{value:.4f}" for value in figures)
    return f"{measured.precision} by {measured.runtime}, mAP50-95 {here}, on the host {host}"


def run_tool(releases: Releases, arguments: List[str]) -> bytes:
    """An `edgeprune` of this environment. Its standard output; what it says last on failure, as the same kind of
    error."""
    environment = {**os.environ, "EDGEPRUNE_ENGINES": str(engines(releases))}
    process = subprocess.Popen(
        interpreter.command(_TOOL, *arguments, mortal=True),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
    )  # fmt: skip
    try:
        out, err = process.communicate()
    except BaseException:
        process.terminate()
        process.communicate()
        raise
    if process.returncode == 0:
        return out
    if process.returncode == -signal.SIGKILL:
        raise DeviceError(
            f"{arguments[0]}: was killed, most likely because memory ran out: the release in use runs beside it; stop "
            "the service meanwhile, or add swap"
        )
    lines = [line.strip() for line in err.decode("utf-8", "replace").splitlines() if line.strip()]
    words = lines[-1] if lines else f"it ended with {process.returncode}"
    words = words[len("edgeprune: error: ") :] if words.startswith("edgeprune: error: ") else words
    kind = {1: GateError, 2: InputError}.get(process.returncode, DeviceError)
    raise kind(f"{arguments[0]}: {printable(words[:1000])}")


_TOOL = "from edgeprune_device.cli import main; sys.exit(main())"


def engines(releases: Releases) -> Path:
    """Where the engines of these releases are kept."""
    return Path(os.environ.get("EDGEPRUNE_ENGINES") or releases.root / "engines")


def untrusted_option(bundle: Bundle) -> List[str]:
    return [] if bundle.trusted else ["--allow-untrusted"]
