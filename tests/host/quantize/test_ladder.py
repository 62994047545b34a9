"""ladder: the order of layer fallback, and the number of layers on each rung."""

from edgeprune import quantize as q


def sensitivity(layer, error, share):
    return q.LayerSensitivity(layer, error, share)


def test_ladder_takes_the_most_error_per_mac_first_and_keeps_enough_in_int8():
    layers = [
        sensitivity("cheap", 0.1, 0.01), sensitivity("dear", 0.2, 0.2), sensitivity("tiny", 0.001, 1e-6),
        sensitivity("worst", 0.3, 0.05), sensitivity("light", 0.01, 0.015),
    ]  # fmt: skip
    ladder = q.Ladder.of(layers, share=0.98, least=0.9)
    assert [s.layer for s in ladder.fallbacks] == [
        "worst",
        "cheap",
        "light",
        "tiny",
    ]  # "dear" would leave too little INT8
    assert ladder.rungs == (0, 1, 2, 3, 4) and ladder.layers(0) == () and ladder.layers(2) == ("worst", "cheap")
    assert ladder.to_json(1) == [{"layer": "worst", "disagreement": 0.3, "share_of_macs": 0.05}]


def test_ladder_rungs_grow():
    ladder = q.Ladder.of([sensitivity(str(i), 0.1, 1e-4) for i in range(30)], share=1.0)
    assert ladder.rungs == (0, 1, 2, 3, 4, 6, 9, 13, 19, 28, 30)
