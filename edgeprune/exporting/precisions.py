"""Makes the reduced-precision files of a target and checks their accuracy drop, with layer fallback for INT8."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import torch
from edgeprune_device.errors import GateError
from edgeprune_device.machine.environment import Environment
from edgeprune_device.option import named
from edgeprune_device.progress import Say
from edgeprune_device.target import Target
from edgeprune_device.vision.accuracy import Accuracy, Matches

from edgeprune import options
from edgeprune import quantize as q
from edgeprune.exporting import device_variant
from edgeprune.measuring import per_class
from edgeprune.measuring.accuracy import bootstrap
from edgeprune.measuring.sessions import OnnxSession, ReferenceSession, Session

#: The number of images for the output divergence of layers, and for bias correction.
PROBED, CORRECTED = 8, 16


#: Session -> mAP50-95 on the selection images, which are neither calibration nor validation images.
Score = Callable[[Session], float]
#: (precision, session) -> the figures on the validation images.
Judge = Callable[[str, Session], tuple[Accuracy, Matches]]


@dataclass(frozen=True)
class PrecisionRequest:
    """The requested precisions and the limit of their accuracy drop.

    Attributes:
        target: The target of the build.
        precisions: The requested precisions, `fp16`, `int8` or both.
        max_drop: The limit of the accuracy drop, mAP50-95.
        input: The value of the option `input`: whether device variants are judged.

    Raises:
        InputError: The limit is outside its range.
    """

    target: Target
    precisions: Sequence[str]
    max_drop: float
    input: str = "auto"

    def __post_init__(self) -> None:
        options.declared(options.PrecisionOptions)["max_drop"].check(self.max_drop)

    @property
    def names(self) -> list[str]:
        """The target's precisions that the request covers, without FP32."""
        return [p for p in self.target.precisions if p != "fp32" and p.split("-")[0] in self.precisions]

    def delivered(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The file that the bundle carries: the device variant of a finished file, or the file itself."""
        return device_variant.of(model) if device_variant.flies(self.input, self.target) else model


class Judged(NamedTuple):
    """The figures of one file on the validation images.

    Attributes:
        accuracy: Its mAP.
        matches: The matches behind the mAP.
        described: The runtime that computed it, as text.
    """

    accuracy: Accuracy
    matches: Matches
    described: str


class AccuracyDrop(GateError):
    """A precision loses more accuracy than `max_drop` allows.

    Attributes:
        judged: Precision -> its figures, for all measured precisions.
    """

    def __init__(self, text: str, judged: Mapping[str, Judged]) -> None:
        super().__init__(text)
        self.judged = judged


@dataclass(frozen=True)
class Made:
    """The files of a target and their figures.

    Attributes:
        files: Precision -> model, without FP32.
        judged: Precision -> its figures, with FP32.
        drops: Precision -> its accuracy drop against FP32, mAP50-95.
        details: Precision -> the record of how the file was made.
    """

    files: dict[str, onnx.ModelProto]
    judged: dict[str, Judged]
    drops: dict[str, float]
    details: dict[str, dict[str, Any]]


def make(
    fp32: onnx.ModelProto,
    pictures: Sequence[npt.NDArray[np.float32]],
    request: PrecisionRequest,
    score: Score,
    judge: Judge,
    *,
    thresholds: Mapping[str, float] | None = None,
    finish: Callable[[onnx.ModelProto], onnx.ModelProto] = lambda model: model,
    progress: Say = lambda text: None,
) -> Made:
    """Make the requested files that the target supports, other than FP32.

    If INT8 loses more than the limit according to `score`, its most sensitive layers fall back until it does not. If it
    still loses more according to `judge`, further layers fall back. The record states how many layers fell back because
    of the validation images, since their figure is then no longer independent.

    Args:
        fp32: The FP32 file.
        pictures: Calibration images, each (1, 3, H, W) float32, RGB in 0..1.
        request: The requested precisions and the limit of their accuracy drop.
        score: Decides between candidates.
        judge: Decides whether a file is within the limit.
        thresholds: The clipping thresholds from quantization-aware training (training/qat.py), for signed activations.
            They replace the calibration methods. A target with unsigned activations ignores them.
        finish: Makes the last change to every file (nms.py). The finished file is returned; the delivered form of it
            (`PrecisionRequest.delivered`) is measured.
        progress: Receives a line of text.

    Raises:
        AccuracyDrop: A precision still loses more than the limit; the error carries the figures.
    """
    target, names = request.target, request.names
    files: dict[str, onnx.ModelProto] = {}
    details: dict[str, dict[str, Any]] = {}
    int8 = None
    if names:
        progress("measuring ranges")
        ranges = q.calibrate(fp32, pictures, threads=torch.get_num_threads())
        fp32_nodes = _fp32_nodes(fp32, ranges, finish, request)
        if "fp16" in names:
            half = q.to_fp16(fp32, ranges)
            files["fp16"] = half.model
            details["fp16"] = {**half.to_json(), "fp32_nodes": fp32_nodes}
        if any(name.startswith("int8") for name in names):
            methods = tuple(q.METHODS)
            if thresholds is not None and target.int8_activations == "signed":
                ranges, methods = ranges.fixed(thresholds), ("qat",)
            int8 = Int8(fp32, ranges, pictures, target, progress)
            int8.settle(methods, score, request.max_drop)
            files.update(int8.files)

    def judged(name: str) -> Judged:
        opened = session(target, name, request.delivered(finish(files.get(name, fp32))))
        return Judged(*judge(name, opened), opened.description)

    figures = {name: judged(name) for name in ("fp32", *files)}
    if int8:
        _climb(int8, files, figures, judged, request.max_drop)
        details["int8"] = {**int8.to_json(), "fp32_nodes": fp32_nodes}
    trainable = thresholds is None and target.int8_activations == "signed"
    drops = gate(figures, request.max_drop, int8.fallbacks if int8 else 0, trainable=trainable)
    return Made({name: finish(model) for name, model in files.items()}, figures, drops, details)


def _fp32_nodes(
    fp32: onnx.ModelProto,
    ranges: q.Ranges,
    finish: Callable[[onnx.ModelProto], onnx.ModelProto],
    request: PrecisionRequest,
) -> list[str]:
    """The nodes that stay FP32 if FP16 is a flag for the whole network.

    They include the nodes that `finish` adds, because the area of a box of 256 px exceeds FP16, and those that pass on
    coordinates in a device variant.
    """
    own, finished = {node.name for node in fp32.graph.node}, finish(fp32)
    added = [node.name for node in finished.graph.node if node.name not in own]
    return [*q.fp32_nodes(fp32, ranges), *added, *device_variant.fp32_nodes(request.delivered(finished))]


def _climb(
    int8: Int8,
    files: dict[str, onnx.ModelProto],
    figures: dict[str, Judged],
    judged: Callable[[str], Judged],
    max_drop: float,
) -> None:
    """Let further layers fall back until INT8 is within the limit on the validation images, or none is left."""

    def loses(names: Iterable[str]) -> bool:
        return any(not _drop(figures, name) <= max_drop for name in names if name in figures)

    # If FP16 itself loses too much, a fallback to FP16 does not help.
    while not loses(["fp16"]) and loses(int8.files) and int8.climb():
        files.update(int8.files)
        for name in int8.files:
            figures.pop(name, None)
        for name in int8.files:
            figures[name] = judged(name)
            if loses([name]):  # one failure is enough: the other file need not be measured
                break


class Int8:
    """The INT8 files of a target, and their layer fallback.

    `settle` chooses the calibration method and the layers that fall back, on the selection images; `climb` adds the
    next layers.

    Args:
        fp32: The FP32 file.
        ranges: Its measured ranges.
        pictures: The calibration images.
        target: The target of the build.
        progress: Receives a line of text.

    Attributes:
        files: Precision -> model.
    """

    def __init__(
        self,
        fp32: onnx.ModelProto,
        ranges: q.Ranges,
        pictures: Sequence[npt.NDArray[np.float32]],
        target: Target,
        progress: Say,
    ) -> None:
        self._fp32, self._ranges, self._pictures = fp32, ranges, pictures
        self._target, self._progress = target, progress
        # The file is measured with this CPU's kernels. 7 bits are safe on any CPU, but cost YOLOv8n COCO two thirds of
        # a point (128 images: 0.465 in FP32, 0.462 with 8, 0.455 with 7).
        self._narrow = target.int8_activations == "unsigned" and Environment.read().saturates
        rests = {"int8": "fp32", "int8-fp16": "fp16"}
        self._rests = {name: rest for name, rest in rests.items() if name in target.precisions}
        self._method = ""
        self._chosen: dict[str, Any] = {}  # the record of the choice of the method
        self._ladder: q.Ladder | None = None
        self._rung = 0
        self._tried: list[dict[str, float]] = []
        self._settled = 0  # the rung that was chosen on the selection images
        self.files: dict[str, onnx.ModelProto] = {}

    @property
    def fallbacks(self) -> int:
        """The number of layers that have fallen back from INT8."""
        return self._ladder.rungs[self._rung] if self._ladder else 0

    def settle(self, methods: Sequence[str], score: Score, max_drop: float) -> None:
        """Choose the calibration method with the best score; then let layers fall back until INT8 is within the limit.

        If no rung is within the limit, the rung with the smallest drop is chosen.

        Args:
            methods: Calibration methods to try.
            score: Decides between candidates.
            max_drop: The limit of the accuracy drop, mAP50-95.
        """

        def scored(model: onnx.ModelProto) -> float:
            return score(session(self._target, "int8", model))

        self._progress("choosing the calibration method")
        choice = q.choose(lambda method: self._build(method, ()), scored, methods)
        self._method, self._chosen = choice.method, choice.to_json()
        before = score(session(self._target, "fp32", self._fp32))
        drops = [before - choice.scores[choice.method]]
        self._note(drops[0])
        while not drops[-1] <= max_drop and (ladder := self._next()):
            drops.append(before - scored(self._build(self._method, ladder.layers(self._rung))))
            self._note(drops[-1])
        if not drops[-1] <= max_drop:
            self._rung = int(np.argmin(np.nan_to_num(drops, nan=np.inf)))
        self._settled = self._rung
        self._make()

    def climb(self) -> bool:
        """Let the layers of the next rung fall back; return False if there is no further rung."""
        if self._next() is None:
            return False
        self._make()
        return True

    def to_json(self) -> dict[str, Any]:
        """The method, the share of the MACs in INT8, and the layers that fell back, with their errors."""
        record: dict[str, Any] = {
            **self._chosen,
            "activations": self._target.int8_activations,
            "weight_bits": 7 if self._narrow else 8,
            "share_of_macs": round(q.int8_share(next(iter(self.files.values()))), 4),
            "rescued": [],
        }
        if self._ladder:
            asked = self._ladder.rungs[self._settled]
            record.update(
                rescued=self._ladder.to_json(self._rung),
                rescued_by_selection=asked,
                rescued_by_validation=self.fallbacks - asked,
                selection=self._tried,
            )
        return record

    def _next(self) -> q.Ladder | None:
        """Step to the next rung; return the ladder, or None if there is no further rung."""
        if self._ladder is None:
            self._ladder = self._measure()
        if self._rung + 1 >= len(self._ladder.rungs):
            return None
        self._rung += 1
        self._progress(f"layer fallback: {self.fallbacks} of at most {len(self._ladder.fallbacks)} layers")
        return self._ladder

    def _note(self, drop: float) -> None:
        self._tried.append({"rescued": self.fallbacks, "drop_map50_95": float(drop)})

    def _measure(self) -> q.Ladder:
        """Measure the cost of each layer on some of the calibration images."""
        method, count = self._method, len(self._pictures)
        chosen = [self._pictures[i] for i in np.linspace(0, count - 1, min(PROBED, count)).round().astype(int)]
        probe = q.Probe(self._fp32, chosen, threads=torch.get_num_threads())
        corrected = method != "qat"  # as in `_build`
        whole = self._quantized(method, ())
        shifts = q.bias_shifts(self._fp32, whole, self._pictures[:CORRECTED]) if corrected else {}

        def build(exclude: Sequence[str]) -> onnx.ModelProto:
            model = self._quantized(method, exclude)
            return q.shifted(model, shifts) if corrected else model

        def progress(fraction: float, _layer: str) -> None:
            self._progress(f"measuring the INT8 error of each layer: {fraction:.0%}")

        sensitivities = q.sensitivities(self._fp32, build, probe, progress=progress)
        return q.Ladder.of(sensitivities, q.int8_share(whole))

    def _make(self) -> None:
        layers = self._ladder.layers(self._rung) if self._ladder else ()
        self.files = {name: self._build(self._method, layers, rest) for name, rest in self._rests.items()}

    def _build(self, method: str, exclude: Sequence[str], rest: str = "fp32") -> onnx.ModelProto:
        model = self._quantized(method, exclude, rest)
        if method != "qat":  # quantization-aware training has fitted the biases to this rounding
            model = q.correct_bias(self._fp32, model, self._pictures[:CORRECTED])
        q.check(model, activations=self._target.int8_activations)
        return model

    def _quantized(self, method: str, exclude: Sequence[str], rest: str = "fp32") -> onnx.ModelProto:
        return q.to_int8(
            self._fp32,
            self._ranges,
            method=method,
            activations=self._target.int8_activations,
            rest=rest,
            exclude=exclude,
            reduce_range=self._narrow,
        )


def session(target: Target, precision: str, model: onnx.ModelProto) -> Session:
    """Open the session that measures a file or its device variant.

    A file for a CPU is computed as it will run there, a file for a GPU as written.

    Args:
        target: The target of the build.
        precision: The precision of the file.
        model: The file.
    """
    if precision == "fp32" or target.int8_activations == "unsigned":
        return OnnxSession(model)
    return ReferenceSession(model)


def _drop(figures: Mapping[str, Judged], name: str) -> float:
    """The accuracy drop of a precision, mAP50-95; NaN if a figure is missing, which fails every limit."""
    return _map50_95(figures["fp32"].accuracy) - _map50_95(figures[name].accuracy)


def _map50_95(accuracy: Accuracy) -> float:
    return float("nan") if accuracy.map50_95 is None else accuracy.map50_95


def gate(figures: Mapping[str, Judged], max_drop: float, fallbacks: int, *, trainable: bool) -> dict[str, float]:
    """Check the accuracy drop of each precision against FP32, in absolute mAP50-95, and return the drops.

    Args:
        figures: Precision -> its figures, with FP32.
        max_drop: The limit, mAP50-95.
        fallbacks: The number of layers that fell back from INT8.
        trainable: Whether the error may advise quantization-aware training.

    Raises:
        AccuracyDrop: A precision loses more than `max_drop`, or one of the two is not a number. The message contains
            the figures, the bootstrap interval, the worst class, small objects, and the number of layers that fell
            back.
    """
    drops = {name: _drop(figures, name) for name in figures if name != "fp32"}
    # Written so that NaN fails.
    failed = [name for name, drop in drops.items() if not drop <= max_drop]
    if failed:
        after = f"; {fallbacks} layers had already fallen back from INT8" if fallbacks else ""
        advice = ""
        if trainable and any(name.startswith("int8") for name in failed):
            advice = f" or train for INT8 with {named('qat')}"
        losses = "; ".join(f"{name} loses {_loss(figures['fp32'], figures[name])}" for name in failed)
        raise AccuracyDrop(
            f"{losses}{after}; the limit is {named('max_drop', f'{max_drop:g}')}. Nothing was delivered. If the "
            f"interval includes the limit, use more validation images{advice}",
            figures,
        )
    return {name: round(drop, 6) for name, drop in drops.items()}


def _loss(before: Judged, after: Judged) -> str:
    a, b = before.accuracy, after.accuracy
    drop, low, high = bootstrap(before.matches, after.matches, lambda x: x.map50_95, samples=200)
    parts = [
        f"{_map50_95(a):.4f} -> {_map50_95(b):.4f}",
        f"95 %: {low:.4f} to {high:.4f} on {a.pictures} images",
    ]
    if lost := per_class.worst(per_class.figures_of(a), per_class.figures_of(b)):
        parts.append(f"worst class {lost[0]} {lost[2] - lost[1]:+.4f}")
    if a.small_map50_95 is not None and b.small_map50_95 is not None:
        parts.append(f"small objects {b.small_map50_95 - a.small_map50_95:+.4f}")
    return f"{drop:.4f} mAP50-95 ({'; '.join(parts)})"
