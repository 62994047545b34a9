"""Measures a bundle with `edgeprune bench` in a separate process, before the bundle is used."""

from __future__ import annotations

import hashlib
import os
import selectors
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Dict, List, Optional, Tuple, cast

from edgeprune_device import interpreter
from edgeprune_device.errors import DeviceError, GateError, InputError
from edgeprune_device.installation.options import InstallOptions, measure_s
from edgeprune_device.option import named
from edgeprune_device.printable import printable
from edgeprune_device.releases import Releases
from edgeprune_device.trust.bundle import Bundle

__all__ = ["Measured", "described", "engines", "measure", "run_tool", "untrusted_option"]

_MOST_BYTES = 1 << 20  # largest output of a command: the table of a report, the description of an engine
_GRACE_S = 8.0  # for a command to end after SIGTERM; with a model that never ends it takes five seconds
_MEASURE_S, _WARMUP_S, _IDLE_S = 2.0, 2.0, 0.5


@dataclass(frozen=True)
class Measured:
    """The result of the measurement.

    Attributes:
        precision: Precision that was measured.
        runtime: Name of the runtime.
        report: Id of the report.
        accuracy: {"map50_95", "host_map50_95", "delta"}, None if not measured.
    """

    precision: str
    runtime: str
    report: str
    accuracy: Optional[Dict[str, Optional[float]]]


# --- measure ---------------------------------------------------------------------------------------------------------
def measure(releases: Releases, bundle: Bundle, folder: Path, options: InstallOptions) -> Measured:
    """Measure a bundle with `edgeprune bench` in a separate process, which also builds the engine.

    A crash of native code there fails the installation, but does not end this process. The report waits in the spool
    for `edgeprune collect`.

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
    from edgeprune_device.reports.report import BenchReport  # imported late, because it imports numpy

    path = folder / "report.json"
    run_tool(
        releases,
        ["bench", str(bundle.path), "--runtime", options.runtime, "--precision", options.precision,
         "--mode", "single", "--seconds", f"{_MEASURE_S:g}", "--warmup", f"{_WARMUP_S:g}", "--idle", f"{_IDLE_S:g}",
         "--max-drop", f"{options.max_drop:g}", "--limit", f"{options.limit_s:g}",
         "--report", str(path), *untrusted_option(bundle)],
        measure_s(options.limit_s),
    )  # fmt: skip
    report = BenchReport.from_bytes(path.read_bytes(), "the benchmark's report")
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
    return f"{measured.precision} by {measured.runtime}, mAP50-95 {here} here, {host} on the host"


def run_tool(releases: Releases, arguments: List[str], limit_s: float) -> bytes:
    """Run an `edgeprune` command of this environment.

    Args:
        releases: The releases; their folder of engines is used.
        arguments: The command and its arguments.
        limit_s: Longest time of the command, s. A command has its own, shorter limits; this one is for a command that
            hangs.

    Returns:
        Its standard output.

    Raises:
        GateError: The command ended with exit code 1; the message is its last line.
        InputError: The command ended with exit code 2.
        DeviceError: The command was killed, ended with another code, or took longer than `limit_s`.
    """
    environment = {**os.environ, "EDGEPRUNE_ENGINES": str(engines(releases))}
    process = subprocess.Popen(
        interpreter.command(_TOOL, *arguments, mortal=True),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
    )  # fmt: skip
    try:
        out, err = _outputs(process, limit_s, arguments[0])
    finally:  # also on Ctrl-C and SIGTERM
        _end(process)
    if process.returncode == -signal.SIGALRM:  # see `deadline`
        raise GateError(f"{arguments[0]}: the model did not finish within the time limit; raise {named('limit')}")
    if process.returncode == 0:
        return out
    if process.returncode == -signal.SIGKILL:
        raise DeviceError(
            f"{arguments[0]}: killed, probably because memory ran out while the release in use is running; stop "
            "the service during the installation, or add swap"
        )
    lines = [line.strip() for line in err.decode("utf-8", "replace").splitlines() if line.strip()]
    words = lines[-1] if lines else f"exit code {process.returncode} without a message"
    words = words[len("edgeprune: error: ") :] if words.startswith("edgeprune: error: ") else words
    kind = {1: GateError, 2: InputError}.get(process.returncode, DeviceError)
    raise kind(f"{arguments[0]}: {printable(words[:1000])}")


def _outputs(process: subprocess.Popen[bytes], limit_s: float, name: str) -> Tuple[bytes, bytes]:
    """(standard output, standard error) of a process until its end, at most the last `_MOST_BYTES` of each."""
    until_s = time.monotonic() + limit_s
    streams = (cast(IO[bytes], process.stdout), cast(IO[bytes], process.stderr))
    kept = {stream.fileno(): b"" for stream in streams}
    with selectors.DefaultSelector() as selector:
        for descriptor in kept:
            selector.register(descriptor, selectors.EVENT_READ)
        while selector.get_map():
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                raise DeviceError(f"{name}: killed after {limit_s:.0f} s, because it did not finish")
            for key, _ in selector.select(min(left_s, 60.0)):
                data = os.read(key.fd, 1 << 16)
                if not data:
                    selector.unregister(key.fd)
                kept[key.fd] = (kept[key.fd] + data)[-_MOST_BYTES:]
    with suppress(subprocess.TimeoutExpired):
        process.wait(max(until_s - time.monotonic(), _GRACE_S))
    out, err = kept.values()
    return out, err


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process: first SIGTERM, so that it can remove its files, then SIGKILL."""
    try:
        if process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_S)
    finally:  # also on another Ctrl-C
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


_TOOL = "from edgeprune_device.cli import main; sys.exit(main())"


def engines(releases: Releases) -> Path:
    """The folder of the engines of these releases."""
    return Path(os.environ.get("EDGEPRUNE_ENGINES") or releases.root / "engines")


def untrusted_option(bundle: Bundle) -> List[str]:
    """["--allow-untrusted"] for a bundle that is not trusted, else no option."""
    return [] if bundle.trusted else ["--allow-untrusted"]
