"""The README's first command as a whole, in an empty folder, with the promised figures. It takes ten minutes."""

import json
import os
import subprocess
import sys

import pytest
from edgeprune_device.trust.bundle import Bundle

pytestmark = pytest.mark.slow

MEASURED = """
import resource, sys
from edgeprune_device import cli
code = cli.main(sys.argv[1:])
print("PEAK", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(code)
"""


def test_the_default_build_reaches_the_documented_figures(tmp_path):
    words = ["build", "--ratio", "0.2", "--target", "jetson-orin"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *words], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "built-in demo" in done.stderr
    peak_kib = int(done.stdout.rsplit("PEAK", 1)[1])
    assert peak_kib <= 4 * 1024**2
    out = tmp_path / "runs" / "demo-jetson-orin-0p2"
    record = json.loads((out / "build.json").read_text())
    models, pictures = record["models"], record["pictures"]
    assert pictures["val"] >= 400 and pictures["val_boxes"] >= 4000 and pictures["train_in_val"] == 0
    original, tuned = models["original"], models["tuned"]
    assert tuned["parameters"] <= 0.75 * original["parameters"]
    assert tuned["macs"] <= 0.78 * original["macs"]
    assert tuned["map50_95"] >= original["map50_95"] - 0.005
    assert models["fp32"]["latency_ms"]["rounds"] == len(models["fp32"]["latency_ms"]["samples"]) > 0
    for precision in ("fp16", "int8", "int8-fp16"):
        assert models[precision]["map50_95"] >= models["fp32"]["map50_95"] - 0.003
    assert Bundle.open(out / "demo-jetson-orin-0p2.epb", allow_untrusted=True)
    page = out / "report.html"
    assert record["page"] == page.name and 200_000 < page.stat().st_size <= 3_000_000
    text = page.read_text()
    assert "All 7 gates passed" in text and "left out" not in text and text.count("data:image/jpeg") == 12
