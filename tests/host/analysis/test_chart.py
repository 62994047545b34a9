"""chart and table: every outcome of an analysis."""

import pytest
from edgeprune_device.option import as_flags

from edgeprune.analysis import analyze, chart, findings, table
from edgeprune.analysis.findings import Advice, BudgetPoint
from edgeprune.model.count import Cost

from .points import point


@pytest.mark.parametrize("kept", [0.95, 0.3, None])
def test_plot_and_table_render_every_outcome(kept):
    from edgeprune_device.vision.accuracy import Accuracy

    groups = tuple(findings.GroupSensitivity((f"model.{i}.conv",), 16, 8, 0.1, 0.1 * i) for i in range(30))
    points = (point(0.9, kept), point(0.8, kept))
    accuracy = Accuracy(0.6, 0.0 if kept is None else 1.0, None, 8, 20, 0, ())
    if kept is None:
        points = tuple(BudgetPoint(r.budget, r.value, 1, 1, 1, 1, 0.0, 0.0, 0.0, None, None) for r in points)
    analysis = analyze.Analysis(
        "best.pt", "macs", "energy", 8, 96, Cost(2, 2, 2), accuracy, points, (), groups, Advice.of(list(points))
    )
    assert chart.png(analysis).startswith(b"\x89PNG")
    text = table.table(analysis)
    with as_flags():
        assert ("recommended: --macs 0.8" in table.table(analysis)) == (kept == 0.95)
    assert {0.95: "recommended: macs=0.8", 0.3: "recommended: no pruning", None: "no recommendation"}[kept] in text
    assert "10 more" in text and "model.29.conv" in text and "model.0.conv" in text and "model.15.conv" not in text
