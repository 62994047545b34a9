"""chart and table of any outcome."""

import pytest

from edgeprune.analysis import analyze, chart, findings, table
from edgeprune.analysis.findings import Advice, Rung
from edgeprune.model.count import Cost

from .rungs import rung


@pytest.mark.parametrize("kept", [0.95, 0.3, None])
def test_the_plot_and_the_table_of_any_outcome(kept):
    from edgeprune_device.vision.accuracy import Accuracy

    groups = tuple(findings.GroupSensitivity((f"model.{i}.conv",), 16, 8, 0.1, 0.1 * i) for i in range(30))
    rungs = (rung(0.9, kept), rung(0.8, kept))
    accuracy = Accuracy(0.6, 0.0 if kept is None else 1.0, None, 8, 20, 0, ())
    if kept is None:
        rungs = tuple(Rung(r.budget, r.value, 1, 1, 1, 1, 0.0, 0.0, 0.0, None, None) for r in rungs)
    found = analyze.Analysis(
        "best.pt", "macs", "energy", 8, 96, Cost(2, 2, 2), accuracy, rungs, (), groups, Advice.of(list(rungs))
    )
    assert chart.png(found).startswith(b"\x89PNG")
    said = table.table(found)
    assert {0.95: "recommended: --macs 0.8", 0.3: "recommended: no cut", None: "nothing to recommend"}[kept] in said
    assert "10 between" in said and "model.29.conv" in said and "model.0.conv" in said and "model.15.conv" not in said
