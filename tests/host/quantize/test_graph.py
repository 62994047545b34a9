"""graph: the end of a detector's body."""

from edgeprune.quantize.graph import Graph, layer_of


def test_body_ends_at_the_last_convolutions_of_the_head(fp32):
    graph = Graph(fp32)
    last = sorted(layer_of(graph.producer[name]) for name in graph.last_convolutions)
    assert last == sorted(f"model.22.{tower}.{level}.2" for tower in ("cv2", "cv3") for level in (0, 1, 2))
    assert len(graph.body_convolutions()) == 57
    assert not any(n.op_type == "Softmax" and graph.in_body(n) for n in graph.nodes)
