"""Calibration: measures the values of a network's tensors on real images, and derives the thresholds for clipping.

The module does not depend on Q/DQ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx
from edgeprune_device.errors import InputError
from edgeprune_device.hint import unknown
from edgeprune_device.option import named
from edgeprune_device.runtimes import ort
from onnx import TensorProto, helper

from edgeprune.quantize.graph import MOVES, Graph, copy_of

__all__ = ["METHODS", "Ranges", "TensorRange", "calibrate"]

# Bins of |x|, as many as in TensorRT's calibrator.
BINS = 2048
# Values of a tensor in the histogram, per image; the extremes cover all values.
SAMPLES = 16384
# Share of the values that "percentile" keeps.
PERCENTILE = 0.9999
# The levels of |x| in symmetric INT8.
LEVELS = 128


@dataclass
class TensorRange:
    """The values of one tensor: exact extremes, and a histogram of samples.

    `histogram` has 2 x BINS equal bins over [-reach, reach]. `reach` is a power of two. A greater value doubles it and
    merges pairs of bins, which loses no counts. One pass over the images is therefore enough.

    Attributes:
        low: The least value.
        high: The greatest value.
        reach: The end of the histogram.
        histogram: (2 * BINS,) int64 counts.
    """

    low: float = 0.0
    high: float = 0.0
    reach: float = 0.0
    histogram: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(2 * BINS, np.int64))

    @property
    def amax(self) -> float:
        """The greatest |x|, exact; infinite if the network overflows in FP32."""
        return max(abs(self.low), abs(self.high)) if np.isfinite([self.low, self.high]).all() else float("inf")

    def add(self, low: float, high: float, samples: npt.NDArray[np.float32]) -> None:
        """Count the samples of one image.

        Args:
            low: The least value of the whole tensor.
            high: The greatest value of the whole tensor.
            samples: (n,) a part of its values.
        """
        self.low, self.high = float(np.minimum(self.low, low)), float(np.maximum(self.high, high))
        if not np.isfinite([self.low, self.high]).all():
            return
        self._reach_out(self.amax)
        if self.reach:
            places = ((samples / self.reach + 1) * BINS).astype(np.int64).clip(0, 2 * BINS - 1)
            self.histogram += np.bincount(places, minlength=2 * BINS)

    def folded(self) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.floating]]:
        """Counts of |x| in BINS bins, and the centre of each bin."""
        counts = self.histogram[BINS:] + self.histogram[:BINS][::-1]
        return counts, (np.arange(BINS) + 0.5) * (self.reach / BINS)

    def _reach_out(self, amax: float) -> None:
        if amax <= self.reach:
            return
        wanted = float(2.0 ** np.ceil(np.log2(amax)))
        if not self.histogram.any():
            self.reach = wanted
        while self.reach < wanted:
            inner = self.histogram.reshape(-1, 2).sum(1)
            self.histogram = np.concatenate([np.zeros(BINS // 2, np.int64), inner, np.zeros(BINS // 2, np.int64)])
            self.reach *= 2


@dataclass
class Ranges:
    """The ranges of a network's inner tensors.

    Example: `ranges.thresholds("mse")["/model.0/act/Mul_output_0"]` is the |x| at which clipping and rounding cost
    least together.

    Attributes:
        tensors: Tensor name -> its range.
        pictures: The number of images.
        given: The thresholds set by `fixed`; else None.
    """

    tensors: dict[str, TensorRange]
    pictures: int
    given: dict[str, float] | None = None

    def amax(self) -> dict[str, float]:
        """The greatest |x| of each tensor, exact."""
        return {name: r.amax for name, r in self.tensors.items()}

    def thresholds(self, method: str = "mse") -> dict[str, float]:
        """Tensor name -> the |x| at which it is clipped.

        Args:
            method: `max`, `percentile`, `mse` or `entropy`.

        Raises:
            InputError: The method is unknown.
        """
        if self.given is not None:
            return dict(self.given)
        if method not in METHODS:
            raise InputError(unknown("calibration: unknown method", method, list(METHODS)))
        return {name: METHODS[method](r) for name, r in self.tensors.items()}

    def fixed(self, thresholds: Mapping[str, float]) -> Ranges:
        """The same ranges with given thresholds, which `thresholds` returns for every method.

        Quantization-aware training gives the thresholds that it used for the quantized tensors (training/qat.py).

        Args:
            thresholds: Tensor name -> the |x| at which it is clipped.

        Raises:
            InputError: A threshold names a tensor that was not measured, because it belongs to another network.
        """
        foreign = next((name for name in thresholds if name not in self.tensors), None)
        if foreign is not None:
            raise InputError(
                f"INT8 scales: made for another network (this network has no tensor {foreign}); quantize "
                f"without the scales, or train again with {named('qat')}"
            )
        return Ranges(self.tensors, self.pictures, dict(thresholds))

    def scales(self, method: str = "mse") -> dict[str, float]:
        """The step of symmetric INT8 for each tensor: threshold / 127."""
        return {name: threshold / 127 for name, threshold in self.thresholds(method).items()}


def calibrate(model: onnx.ModelProto, pictures: Iterable[npt.NDArray[np.float32]], *, threads: int = 1) -> Ranges:
    """Run the FP32 network over images and measure its inner tensors.

    The extremes and a strided sample are computed inside the graph (three small nodes per tensor). ONNX Runtime
    therefore frees each feature map after its use, and the memory does not grow with the number of images.

    Args:
        model: The FP32 network.
        pictures: Each (1, 3, h, w) float32, RGB in 0..1.
        threads: The number of inference threads.

    Raises:
        InputError: No image is given, or the shape of one differs from the model's input.
    """
    import onnxruntime

    graph = Graph(model)
    names = _measured(graph)
    probe = _probe(graph, names).SerializeToString()
    session = onnxruntime.InferenceSession(probe, ort.options(threads), providers=[ort.CPU])
    entry = session.get_inputs()[0]
    ranges = Ranges({name: TensorRange() for name in (entry.name, *names)}, 0)
    for picture in pictures:
        if list(picture.shape) != list(entry.shape):
            raise InputError(
                f"calibration image: wrong shape (found {picture.shape}, expected {tuple(entry.shape)}); letterbox the "
                "images to the model's input"
            )
        values = session.run(None, {entry.name: np.ascontiguousarray(picture, np.float32)})
        flat = picture.reshape(-1)
        ranges.tensors[entry.name].add(flat.min(), flat.max(), flat[:: _stride(flat.size)])
        for i, name in enumerate(names):
            ranges.tensors[name].add(*values[3 * i : 3 * i + 3])
        ranges.pictures += 1
    if not ranges.pictures:
        raise InputError("calibration: no images (expected at least one); add training images to data.yaml")
    return ranges


def _measured(graph: Graph) -> list[str]:
    """The activations of the body. Moved values repeat others and gates are in 0..1; both are left out."""
    return [
        name
        for node in graph.nodes
        if graph.in_body(node) and node.op_type not in MOVES | {"Sigmoid"}
        for name in node.output
        if graph.is_activation(name)
    ]


def _stride(size: int) -> int:
    """An odd step that selects about SAMPLES of `size` values, and does not follow the columns of a feature map."""
    return max(1, size // SAMPLES) | 1


def _probe(graph: Graph, names: list[str]) -> onnx.ModelProto:
    """The model with, for every named tensor, three outputs instead of its own: minimum, maximum, samples."""
    probe = copy_of(graph.model)
    del probe.graph.output[:]
    add = probe.graph.node.append
    constants = {"ep_flat": [-1], "ep_start": [0], "ep_end": [np.iinfo(np.int64).max], "ep_axis": [0]}
    for name, value in constants.items():
        probe.graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [1], value))
    for i, name in enumerate(names):
        step = _stride(int(np.prod(graph.shapes[name])))
        probe.graph.initializer.append(helper.make_tensor(f"ep_step{i}", TensorProto.INT64, [1], [step]))
        low, high, flat, some = (f"ep_{kind}{i}" for kind in ("low", "high", "flat", "some"))
        add(helper.make_node("ReduceMin", [name], [low], keepdims=0))
        add(helper.make_node("ReduceMax", [name], [high], keepdims=0))
        add(helper.make_node("Reshape", [name, "ep_flat"], [flat]))
        add(helper.make_node("Slice", [flat, "ep_start", "ep_end", "ep_axis", f"ep_step{i}"], [some]))
        for output, shape in ((low, []), (high, []), (some, None)):
            probe.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, shape))
    return probe


def _clip_max(r: TensorRange) -> float:
    """The greatest |x|: nothing is clipped, and one rare value makes all steps coarse."""
    return r.amax


def _clip_percentile(r: TensorRange) -> float:
    """The |x| below which 99.99 % of the samples lie."""
    counts, centres = r.folded()
    if not counts.sum():
        return r.amax
    place = np.searchsorted(np.cumsum(counts), PERCENTILE * counts.sum())
    return float(min(centres[min(place, BINS - 1)] + centres[0], r.amax))


def _clip_mse(r: TensorRange) -> float:
    """The threshold with the least squared error, among 100 between 10 % and 100 % of the greatest |x|."""
    counts, centres = r.folded()
    if not counts.sum():
        return r.amax
    used = np.flatnonzero(counts)
    counts, centres = counts[used].astype(np.float64), centres[used]
    candidates = r.amax * np.linspace(0.1, 1.0, 100)
    steps = (candidates / (LEVELS - 1))[:, None]
    rounded = np.minimum(np.rint(centres / steps), LEVELS - 1) * steps
    # Values are assumed uniform within a bin; otherwise the error of a bin centred on a level would be zero.
    spread = np.minimum(steps, r.reach / BINS) ** 2 / 12
    return float(candidates[(counts * ((rounded - centres) ** 2 + spread)).sum(1).argmin()])


def _clip_entropy(r: TensorRange) -> float:
    """The threshold with the least Kullback-Leibler divergence at 128 levels, as in TensorRT's calibrator.

    Source: S. Migacz, "8-bit Inference with TensorRT", GTC 2017; every eighth bin is tried.
    """
    folded, _ = r.folded()
    if not folded.sum():
        return r.amax
    top = int(np.flatnonzero(folded)[-1]) + 1
    # The first bin holds zeros and near-zeros, which every threshold represents; they would outweigh all others.
    counts = folded.astype(np.float64)
    counts[0] = counts[1]
    best, width = (np.inf, top), r.reach / BINS
    for end in range(min(LEVELS, top), top + 1, 8):
        best = min(best, (_divergence(counts[:top], end), end))
    return float(min(best[1] * width, r.amax))


def _divergence(counts: npt.NDArray[np.float64], end: int) -> float:
    """KL(P || Q): P is the histogram clipped at `end`, Q the same histogram at 128 levels."""
    inside = counts[:end]
    clipped = inside.copy()
    clipped[-1] += counts[end:].sum()
    level = np.arange(end) * LEVELS // end
    filled = inside > 0
    mass = np.bincount(level, weights=inside, minlength=LEVELS)
    members = np.bincount(level, weights=filled, minlength=LEVELS)
    seen = np.where(filled, (mass / np.maximum(members, 1))[level], 0.0)
    if not seen.sum() or not clipped.sum():
        return float("inf")
    p, q = clipped / clipped.sum(), seen / seen.sum()
    both = (p > 0) & (q > 0)
    # Where Q is zero, it is replaced by one part in a million, so that the divergence stays finite.
    lost = p[(p > 0) & (q == 0)]
    return float((p[both] * np.log(p[both] / q[both])).sum() + (lost * np.log(lost / 1e-6)).sum())


METHODS: dict[str, Callable[[TensorRange], float]] = {
    "mse": _clip_mse,
    "percentile": _clip_percentile,
    "entropy": _clip_entropy,
    "max": _clip_max,
}
