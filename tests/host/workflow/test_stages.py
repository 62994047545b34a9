"""stages: an original that detects nothing."""

from dataclasses import replace

import pytest
from edgeprune_device.errors import InputError

from edgeprune.console.progress import Reporter
from edgeprune.workflow import build

from ..builds import fitted_inputs, request


@pytest.mark.parametrize("weights_find", [False, True])
def test_an_original_that_detects_nothing_is_refused_unless_allowed(inputs, tmp_path, monkeypatch, weights_find):
    from edgeprune.workflow import stages

    monkeypatch.setattr(stages, "pipeline", lambda options: [("baseline", stages.baseline)])
    folder, out = fitted_inputs(inputs, tmp_path) if weights_find else inputs, tmp_path / "out"
    careful = request(folder, allow_poor_baseline=False, imgsz=64)
    if weights_find:
        original = build.run_build(replace(careful, imgsz=96), out, Reporter(quiet=True))["models"]["original"]
        assert original["map50_95"] > stages.POOR and original["head"] is None
        return
    with pytest.raises(InputError, match=r"mAP50-95 0\.00\d on 4 validation .* check the data") as caught:
        build.run_build(careful, out, Reporter(quiet=True))
    assert "imgsz=64 (trained at 96), or build anyway with allow_poor_baseline=True" in str(
        caught.value
    ) and "\n" not in str(caught.value)
    assert not out.exists()
    again = request(folder, imgsz=64)
    record = build.run_build(again, out, Reporter(quiet=True), resume=(out / "build.json").exists())
    assert [stage["name"] for stage in record["stages"]] == ["baseline"]
