"""The reduced-precision files of a target: made, measured and held to a limit, with layer fallback for INT8."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx
import torch
from edgeprune_device.errors import GateError
from edgeprune_device.machine.environment import Environment
from edgeprune_device.target import Target
from edgeprune_device.vision.accuracy import Accuracy, Matches

from edgeprune import quantize as q
from edgeprune.measuring.accuracy import bootstrap
from edgeprune.measuring.sessions import OnnxSession, ReferenceSession

#: The number of images for the output divergence of layers, and for bias correction.
PROBED, CORRECTED = 8, 16


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
    """A precision loses more accuracy than `--max-drop` allows.

    Attributes:
        judged: Precision -> its figures, of all that were measured.
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
        said: Precision -> the record of how the file was made.
    """

    files: dict[str, onnx.ModelProto]
    judged: dict[str, Judged]
    drops: dict[str, float]
    said: dict[str, dict]


def make(
    fp32: onnx.ModelProto,
    pictures: Sequence[np.ndarray],
    target: Target,
    wanted: Sequence[str],
    max_drop: float,
    score: Callable[[object], float],
    judge: Callable[[str, object], tuple[Accuracy, Matches]],
    *,
    thresholds: Mapping[str, float] | None = None,
    finish: Callable[[onnx.ModelProto], onnx.ModelProto] = lambda model: model,
    progress: Callable[[str], None] = lambda what: None,
) -> Made:
    """Make the files besides FP32 that `target` takes and `wanted` asks for.

    INT8 that loses more than `max_drop` by `score` lets its most sensitive layers fall back until it does not. If it
    still loses more by `judge`, further layers fall back. The record tells how many layers the validation images
    decided on, because their figure is then a selected one.

    Args:
        fp32: The FP32 file.
        pictures: Calibration images, each (1, 3, H, W) float32, RGB in 0..1.
        target: The target of the build.
        wanted: The precisions that are wanted, of `fp16` and `int8`.
        max_drop: The limit of the accuracy drop, mAP50-95.
        score: Session -> mAP50-95 on the selection images, which are neither calibration nor validation images. Choices
            are made by it.
        judge: (precision, session) -> the figures on the validation images.
        thresholds: Where the tensors were clipped in training (training/qat.py), for signed activations. No calibration
            method is tried then. A target with unsigned activations ignores them.
        finish: The last change to every file (nms.py); the finished file is the one that is measured and returned.
        progress: called with a line of text.

    Raises:
        AccuracyDrop: A precision loses more than `max_drop` in the end; the error carries the figures.
    """
    names = [p for p in target.precisions if p != "fp32" and p.split("-")[0] in wanted]
    files: dict[str, onnx.ModelProto] = {}
    said: dict[str, dict] = {}
    int8 = None
    if names:
        progress("measuring ranges")
        ranges = q.calibrate(fp32, pictures, threads=torch.get_num_threads())
        # Where FP16 is a flag for the whole network, the nodes that `finish` adds have to stay FP32, too: the area of a
        # box of 256 px is beyond FP16.
        own = {node.name for node in fp32.graph.node}
        added = [node.name for node in finish(fp32).graph.node if node.name not in own]
        fp32_nodes = [*q.fp32_nodes(fp32, ranges), *added]
    if "fp16" in names:
        half = q.to_fp16(fp32, ranges)
        files["fp16"] = half.model
        said["fp16"] = {**half.to_json(), "fp32_nodes": fp32_nodes}
    if any(name.startswith("int8") for name in names):
        methods = tuple(q.METHODS)
        if thresholds is not None and target.int8_activations == "signed":
            ranges, methods = ranges.fixed(thresholds), ("qat",)
        int8 = Int8(fp32, ranges, pictures, target, progress)
        int8.settle(methods, score, max_drop)
        files.update(int8.files)

    def judged(name: str) -> Judged:
        opened = session(target, name, finish(files.get(name, fp32)))
        return Judged(*judge(name, opened), opened.description)

    found = {name: judged(name) for name in ("fp32", *files)}

    def loses(names) -> bool:
        return any(_drop(found, name) > max_drop for name in names if name in found)

    # Where FP16 itself loses too much, no fallback to FP16 helps.
    while int8 and not loses(["fp16"]) and loses(int8.files) and int8.climb():
        files.update(int8.files)
        for name in int8.files:
            found.pop(name, None)
        for name in int8.files:
            found[name] = judged(name)
            if _drop(found, name) > max_drop:  # that decides: the other file need not be measured
                break
    if int8:
        said["int8"] = {**int8.to_json(), "fp32_nodes": fp32_nodes}
    trainable = thresholds is None and target.int8_activations == "signed"
    drops = gate(found, max_drop, int8.fallbacks if int8 else 0, trainable=trainable)
    return Made({name: finish(model) for name, model in files.items()}, found, drops, said)


class Int8:
    """The INT8 files of a target, and their layer fallback.

    `settle` chooses the calibration method and the layers that fall back, on the selection images; `climb` adds the
    next layers.

    Args:
        fp32: The FP32 file.
        ranges: Its measured ranges.
        pictures: The calibration images.
        target: The target of the build.
        progress: called with a line of text.

    Attributes:
        files: Precision -> model.
    """

    def __init__(
        self, fp32: onnx.ModelProto, ranges: q.Ranges, pictures, target: Target, progress: Callable[[str], None]
    ) -> None:
        self._fp32, self._ranges, self._pictures = fp32, ranges, pictures
        self._target, self._progress = target, progress
        # The file is measured as it runs here. 7 bits are safe everywhere, and cost YOLOv8n COCO two thirds of a point
        # (128 images: 0.465 in FP32, 0.462 with 8, 0.455 with 7).
        self._narrow = target.int8_activations == "unsigned" and Environment.read().saturates
        rests = {"int8": "fp32", "int8-fp16": "fp16"}
        self._rests = {name: rest for name, rest in rests.items() if name in target.precisions}
        self._ladder: q.Ladder | None = None
        self._rung = 0
        self._choice: q.Choice | None = None
        self._tried: list[dict] = []
        self._settled = 0  # the rung that was chosen on the selection images
        self.files: dict[str, onnx.ModelProto] = {}

    @property
    def fallbacks(self) -> int:
        """The number of layers that have fallen back from INT8."""
        return self._ladder.rungs[self._rung] if self._ladder else 0

    def settle(self, methods: Sequence[str], score: Callable[[object], float], max_drop: float) -> None:
        """Choose the method that scores best; then let layers fall back until the accuracy drop is within the limit.

        If no rung is within the limit, the best of them is taken.

        Args:
            methods: Calibration methods to try.
            score: Session -> mAP50-95 on the selection images.
            max_drop: The limit of the accuracy drop, mAP50-95.
        """

        def scored(model) -> float:
            return score(session(self._target, "int8", model))

        self._progress("choosing the calibration")
        self._choice = q.choose(lambda method: self._build(method, ()), scored, methods)
        before = score(session(self._target, "fp32", self._fp32))
        drops = [before - self._choice.scores[self._choice.method]]
        self._note(drops[0])
        while drops[-1] > max_drop and self._next():
            self._progress(f"layer fallback: {self.fallbacks} of {len(self._ladder.fallbacks)} that may be")
            drops.append(before - scored(self._build(self._choice.method, self._ladder.layers(self._rung))))
            self._note(drops[-1])
        if drops[-1] > max_drop:
            self._rung = int(np.argmin(drops))
        self._settled = self._rung
        self._make()

    def climb(self) -> bool:
        """Let the layers of the next rung fall back; False where no more may."""
        if not self._next():
            return False
        self._progress(f"layer fallback: {self.fallbacks} of {len(self._ladder.fallbacks)} that may be")
        self._make()
        return True

    def to_json(self) -> dict:
        """The method, the share of the MACs, and the layers that fell back, with the reasons and the images that
        decided.
        """
        said = {
            **self._choice.to_json(),
            "activations": self._target.int8_activations,
            "weight_bits": 7 if self._narrow else 8,
            "share_of_macs": round(q.int8_share(next(iter(self.files.values()))), 4),
            "rescued": [],
        }
        if self._ladder:
            asked = self._ladder.rungs[self._settled]
            said.update(
                rescued=self._ladder.to_json(self._rung),
                rescued_by_selection=asked,
                rescued_by_validation=self.fallbacks - asked,
                selection=self._tried,
            )
        return said

    def _next(self) -> bool:
        if self._ladder is None:
            self._ladder = self._measure()
        if self._rung + 1 >= len(self._ladder.rungs):
            return False
        self._rung += 1
        return True

    def _note(self, drop: float) -> None:
        self._tried.append({"rescued": self.fallbacks, "drop_map50_95": float(drop)})

    def _measure(self) -> q.Ladder:
        """Measure the cost of each layer on some of the calibration images."""
        method, count = self._choice.method, len(self._pictures)
        chosen = [self._pictures[i] for i in np.linspace(0, count - 1, min(PROBED, count)).round().astype(int)]
        probe = q.Probe(self._fp32, chosen, threads=torch.get_num_threads())
        corrected = method != "qat"  # as in `_build`
        whole = self._quantized(method, ())
        shifts = q.bias_shifts(self._fp32, whole, self._pictures[:CORRECTED]) if corrected else {}

        def build(exclude: Sequence[str]) -> onnx.ModelProto:
            model = self._quantized(method, exclude)
            return q.shifted(model, shifts) if corrected else model

        def progress(fraction: float) -> None:
            self._progress(f"what each layer's rounding costs: {fraction:.0%}")

        found = q.sensitivities(self._fp32, build, probe, progress=progress)
        return q.Ladder.of(found, q.int8_share(whole))

    def _make(self) -> None:
        layers = self._ladder.layers(self._rung) if self._ladder else ()
        self.files = {name: self._build(self._choice.method, layers, rest) for name, rest in self._rests.items()}

    def _build(self, method: str, exclude: Sequence[str], rest: str = "fp32") -> onnx.ModelProto:
        model = self._quantized(method, exclude, rest)
        if method != "qat":  # there the biases were trained for this very rounding
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


def session(target: Target, precision: str, model: onnx.ModelProto):
    """The session that measures a file: for a CPU target as the file will run, for a GPU target as it is written.

    Args:
        target: The target of the build.
        precision: The precision of the file.
        model: The file.
    """
    if precision == "fp32" or target.int8_activations == "unsigned":
        return OnnxSession(model)
    return ReferenceSession(model)


def _drop(found: Mapping[str, Judged], name: str) -> float:
    return found["fp32"].accuracy.map50_95 - found[name].accuracy.map50_95


def gate(found: Mapping[str, Judged], max_drop: float, fallbacks: int, *, trainable: bool) -> dict[str, float]:
    """The accuracy drop of each precision against FP32, in absolute mAP50-95, held to the limit.

    Args:
        found: Precision -> its figures, with FP32.
        max_drop: The limit, mAP50-95.
        fallbacks: The number of layers that fell back from INT8.
        trainable: Whether the error may advise --qat.

    Raises:
        AccuracyDrop: A precision loses more than `max_drop`. The message has the figures, the bootstrap interval, the
            worst class, small objects, and the number of layers that fell back.
    """
    drops = {name: _drop(found, name) for name in found if name != "fp32"}
    failed = [f"{name} loses {_told(found['fp32'], found[name])}" for name, drop in drops.items() if drop > max_drop]
    if failed:
        after = f"; {fallbacks} layers had already fallen back from INT8" if fallbacks else ""
        advice = ", or train for INT8 with --qat" if trainable and any(f.startswith("int8") for f in failed) else ""
        raise AccuracyDrop(
            f"{'; '.join(failed)}{after}; the limit is --max-drop {max_drop:g}. Nothing was delivered. Where the "
            f"interval holds the limit, more validation pictures decide{advice}",
            found,
        )
    return {name: round(drop, 6) for name, drop in drops.items()}


def _told(before: Judged, after: Judged) -> str:
    a, b = before.accuracy, after.accuracy
    drop, low, high = bootstrap(before.matches, after.matches, lambda x: x.map50_95, samples=200)
    return (
        f"{drop:.4f} mAP50-95 ({a.map50_95:.4f} -> {b.map50_95:.4f}; 95 %: {low:.4f} to {high:.4f} on {a.pictures} "
        f"pictures; {_worst(a, b)})"
    )


def _worst(before: Accuracy, after: Accuracy) -> str:
    """The class that loses most, and the loss of small objects."""
    pairs = zip(before.per_class, after.per_class)
    loss, name = max((b.map50_95 - a.map50_95, str(b.name)) for b, a in pairs if b.map50_95 is not None)
    text = f"most: {name} {-loss:+.4f}"
    if before.small_map50_95 is None or after.small_map50_95 is None:
        return text
    return f"{text}, small objects {after.small_map50_95 - before.small_map50_95:+.4f}"
