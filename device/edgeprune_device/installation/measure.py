"""Measures a bundle by `edgeprune bench` in a separate process, before the bundle is used."""

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
    """The result of the measurement.

    Attributes:
        precision: Precision that was measured.
        runtime: Name of the runtime.
        report: Id of the report.
        accuracy: {"map50_95", "host_map50_95", "delta"}, None where not measured.
    """

    precision: Optional[str]
    runtime: Optional[str]
    report: Optional[str]
    accuracy: Optional[Dict[str, Optional[float]]]


# --- measure ---------------------------------------------------------------------------------------------------------
def measure(releases: Releases, bundle: Bundle, folder: Path, options: InstallOptions) -> Measured:
    """Measure a bundle by `edgeprune bench` in a separate process, which also builds the engine.

    Native code that crashes there ends the installation, not this process. The report waits in the spool for `edgeprune
    collect`.

    Args:
        releases: The releases.
        bundle: The bundle.
        folder: Folder for temporary files.
        options: How to install.

    Raises:
        GateError: The accuracy drop exceeds `options.max_drop`, or another gate failed.
        InputError: The benchmark refused its input.
        DeviceError: The benchmark failed or was killed.
    """
    from edgeprune_device.reports.report import BenchReport  # it imports numpy: only where needed

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
    """The measurement as one line of text."""
    accuracy = measured.accuracy or {}
    figures = [accuracy.get(name) for name in ("map50_95", "host_map50_95")]
    here, host = ("not measured" if value is None else f"{value:.4f}" for value in figures)
    return f"{measured.precision} by {measured.runtime}, mAP50-95 {here}, on the host {host}"


def run_tool(releases: Releases, arguments: List[str]) -> bytes:
    """Run an `edgeprune` command of this environment.

    Args:
        releases: The releases; their folder of engines is used.
        arguments: The command and its arguments.

    Returns:
        Its standard output.

    Raises:
        GateError: The command ended with exit code 1; the message is its last line.
        InputError: The command ended with exit code 2.
        DeviceError: The command was killed, or ended with another code.
    """
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
    """The folder of the engines of these releases."""
    return Path(os.environ.get("EDGEPRUNE_ENGINES") or releases.root / "engines")


def untrusted_option(bundle: Bundle) -> List[str]:
    """["--allow-untrusted"] for a bundle that is not trusted, else no option."""
    return [] if bundle.trusted else ["--allow-untrusted"]
