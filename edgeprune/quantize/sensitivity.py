"""The output divergence caused by rounding each layer to INT8, measured one layer at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from edgeprune_device.progress import Progress, silent

from edgeprune import tasks
from edgeprune.model.head import output_of_file, task_of_file
from edgeprune.quantize.divergence import output_divergence
from edgeprune.quantize.graph import Graph, layer_of
from edgeprune.quantize.reference import reference_session

__all__ = ["LayerSensitivity", "Probe", "sensitivities"]


@dataclass(frozen=True)
class LayerSensitivity:
    """The sensitivity of one convolution.

    Example: `LayerSensitivity("model.2.cv1.conv", 0.0806, 0.006)`: 0.6 % of the MACs, a third of the error.

    Attributes:
        layer: Its layer.
        error: The output divergence when only this layer is INT8.
        macs_share: Its share of the MACs, 0..1.
    """

    layer: str
    error: float
    macs_share: float


class Probe:
    """Output divergence between any quantized form of one network and its FP32 form, on the same images.

    Args:
        fp32: The FP32 file.
        pictures: Each (1, 3, h, w) float32, RGB in 0..1.
        threads: The number of inference threads.
    """

    def __init__(self, fp32: onnx.ModelProto, pictures: Iterable[npt.NDArray[np.float32]], *, threads: int = 1) -> None:
        self.pictures = list(pictures)
        self.threads = threads
        self._kind, self._task = output_of_file(fp32), tasks.get(task_of_file(fp32)).on_device
        self._expected = self._outputs(fp32)

    def __call__(self, model: onnx.ModelProto) -> float:
        """The output divergence of `model`."""
        pairs = [output_divergence(a, b, self._kind, self._task) for a, b in zip(self._expected, self._outputs(model))]
        differs, total = np.sum(pairs, axis=0)
        return float(differs / max(total, 1e-9))

    def _outputs(self, model: onnx.ModelProto) -> list[npt.NDArray[np.float32]]:
        session = reference_session(model, threads=self.threads)
        entry = session.get_inputs()[0].name
        return [session.run(None, {entry: np.ascontiguousarray(p, np.float32)})[0] for p in self.pictures]


def sensitivities(
    fp32: onnx.ModelProto,
    build: Callable[[Sequence[str]], onnx.ModelProto],
    probe: Probe,
    *,
    progress: Progress = silent,
) -> list[LayerSensitivity]:
    """The sensitivity of every convolution that may become INT8, in the order of the graph.

    Args:
        fp32: The FP32 file.
        build: Layers that stay float -> the quantized model.
        probe: Measures the output divergence.
        progress: Receives the fraction done and the name of the current layer.
    """
    graph = Graph(fp32)
    total = sum(graph.macs(n) for n in graph.nodes if n.op_type == "Conv")
    nodes = {layer_of(n): n for n in graph.body_convolutions()}
    measured = []
    for i, (layer, node) in enumerate(nodes.items()):
        progress(i / len(nodes), layer)
        error = probe(build(others(nodes, [layer])))
        measured.append(LayerSensitivity(layer, error, graph.macs(node) / total))
    return measured


def others(layers: Iterable[str], chosen: Collection[str]) -> list[str]:
    """The layers that are not among the chosen ones."""
    return [layer for layer in layers if layer not in chosen]
