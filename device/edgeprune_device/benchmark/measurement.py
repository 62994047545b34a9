"""The facts that a benchmark gathers: the machine, the model, the timing of its frames, its accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence, Tuple

from edgeprune_device import probes, runtimes
from edgeprune_device.benchmark.feed import Feed
from edgeprune_device.benchmark.parity import RuntimeParity
from edgeprune_device.benchmark.precision import choose_precision
from edgeprune_device.benchmark.timing import FrameTimes, TimingPlan
from edgeprune_device.benchmark.trial import Trial
from edgeprune_device.benchmark.trial import choose as choose_runtime
from edgeprune_device.errors import InputError
from edgeprune_device.machine import board, preflight
from edgeprune_device.machine.environment import Environment
from edgeprune_device.options import LIMIT
from edgeprune_device.trust.bundle import Bundle
from edgeprune_device.trust.manifest import Manifest, Payload
from edgeprune_device.vision.accuracy import Accuracy
from edgeprune_device.vision.evaluation import EvaluationSet

__all__ = ["Checks", "Machine", "Recording", "Subject"]


@dataclass(frozen=True)
class Machine:
    """The machine before the run.

    Attributes:
        root: Root of the file system with its sensors.
        environment: The software.
        preflight: The state: clocks, power mode, users of the GPU.
        board: The hardware.
    """

    root: Path
    environment: Environment
    preflight: preflight.Preflight
    board: board.Board

    @classmethod
    def read(cls) -> Machine:
        """Read this machine now."""
        environment, root = Environment.read(), probes.sysroot()
        return cls(root, environment, preflight.read(root), board.read(root))


@dataclass(frozen=True)
class Subject:
    """The model to measure, with its images.

    Attributes:
        bundle: The bundle.
        runtime: Name of the runtime.
        precision: Precision of the model.
        payload: The model's place in the bundle.
        model: Bytes of the ONNX file.
        pictures: The evaluation set.
        trial: The measurement by which the runtime was chosen; None if there was no choice.
    """

    bundle: Bundle
    runtime: str
    precision: str
    payload: Payload
    model: bytes
    pictures: EvaluationSet
    trial: Optional[Trial] = None

    @classmethod
    def choose(
        cls,
        bundle: Bundle,
        runtime: str,
        precision: str,
        threads: Optional[int] = None,
        limit_s: float = LIMIT.default,
    ) -> Subject:
        """Choose one model of a bundle, and read it.

        Args:
            bundle: The bundle.
            runtime: Name of the runtime, or "auto".
            precision: Precision of the model, or "auto".
            threads: CPU threads of the runtime; None: its own choice.
            limit_s: Longest time of the measurement that chooses the runtime, s.

        Raises:
            InputError: The bundle has no such model, or no images.
            RuntimeUnavailable: The runtime cannot run here.
        """
        runtime, trial = choose_runtime(bundle, runtime, precision, threads, limit_s)
        precision = choose_precision(bundle.manifest, runtime, precision)
        payload = bundle.payloads[bundle.manifest.models[precision]["payload"]]
        pictures = _pictures(bundle)
        return cls(bundle, runtime, precision, payload, bundle.read(payload.name), pictures, trial)

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self.bundle.manifest

    @property
    def entry(self) -> Mapping[str, Any]:
        """The model's entry in the manifest."""
        return self.manifest.models[self.precision]


@dataclass(frozen=True)
class Recording:
    """The timing of all frames, and the machine's state during the run.

    Attributes:
        session: The session that ran the model.
        feed: The source of the frames.
        plan: How long to measure.
        load_ms: Time to open the session, ms.
        frames: Times of the frames.
        on_device: {stage of the device: ns of each frame}, measured with the GPU's clock.
        camera: As in the report; None if no camera was measured.
        idle: (begin, end) of the idle window, time.monotonic_ns; None without power sensors.
        other_load: {"before", "during"}: share of all cores that other programs used, None if not known.
        series: Samples of the sensors; None if there are none.
        problem: Why the sensors were not read; None if they were.
    """

    session: runtimes.Session
    feed: Feed
    plan: TimingPlan
    load_ms: float
    frames: FrameTimes
    on_device: Mapping[str, Sequence[int]]
    camera: Optional[Mapping[str, Any]]
    idle: Optional[Tuple[int, int]]
    other_load: Mapping[str, Optional[float]]
    series: Optional[probes.Series]
    problem: Optional[str]


@dataclass
class Checks:
    """The accuracy and the output divergence, if they were measured.

    Attributes:
        interrupted: Whether the run ended early.
        accuracy: The accuracy on the evaluation set; None if not measured.
        parity: The output divergence; None if not measured.
        remarks: Reasons why a figure is missing, one line each.
        peak_rss_bytes: Peak memory of the process before measuring the divergence; None if not known.
    """

    interrupted: bool
    accuracy: Optional[Accuracy] = None
    parity: Optional[RuntimeParity] = None
    remarks: Tuple[str, ...] = ()
    peak_rss_bytes: Optional[int] = None


def _pictures(bundle: Bundle) -> EvaluationSet:
    if bundle.manifest.evaluation is None:
        raise InputError(
            f"{bundle.path}: no evaluation images in this bundle; build the bundle again with edgeprune build"
        )
    name = bundle.manifest.evaluation["payload"]
    pictures = EvaluationSet.read(bundle.read(name), f"{bundle.path}: {name}")
    if not len(pictures):
        raise InputError(
            f"{bundle.path}: {name}: no images in this evaluation set; build the bundle again with edgeprune build"
        )
    return pictures
