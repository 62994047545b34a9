"""card: the summary at the end of `build`, from a shortened record of the README's first command."""

import copy
import re
import shlex
from pathlib import Path

import pytest
from edgeprune_device.terminal import Look

from edgeprune.workflow.card import card, show

OUT = Path("runs/demo jetson")


def model(path, size, accuracy, latency=None, speedup=None, **more):
    took = latency and {"p50": latency, "p90": latency * 1.1, "speedup": speedup, "runtime": "onnxruntime 1.32.0"}
    return {
        "path": path, "parameters": None, "macs": None, "channels": None, "size_bytes": size, "latency_ms": took,
        "map50_95": accuracy, "map50": accuracy and accuracy + 0.2, "small_map50_95": accuracy and accuracy - 0.1,
        **more,
    }  # fmt: skip


@pytest.fixture
def record():
    cost = {"parameters": 1_660_000, "macs": 780_000_000, "channels": 6003}
    fast = {"fps_end_to_end": 61.0}
    return copy.deepcopy(
        {
            "inputs": {"options": {"name": "demo", "budget": "ratio 0.2", "target": "jetson-orin", "max_drop": 0.003}},
            "pictures": {"train": 200, "val": 400, "val_boxes": 8865, "train_in_val": 0},
            "models": {
                "original": model(
                    "/w/best.pt", 12_500_000, 0.2471, 13.2, 1.0, stripped_size_bytes=6_250_000, fps_end_to_end=50.0,
                    parameters=3_010_000, macs=1_010_000_000, channels=7504,
                ),
                "pruned": model("pruned.pt", 3_500_000, 0.2468, **cost),
                "tuned": model("tuned.pt", 3_500_000, 0.2502, **cost),
                "fp32": model("model.fp32.onnx", 6_700_000, 0.2502, 11.0, 1.21, **cost, **fast),
                "fp16": model("model.fp16.onnx", 3_400_000, 0.2503),
                "int8": model("model.int8.onnx", 1_900_000, 0.2495, 9.0, 1.46),
            },
            "stages": [
                {"name": "prune", "seconds": 40.0, "oracle_relative_error": 3.1e-16},
                {"name": "finetune", "seconds": 240.2, "epochs": 10},
                {"name": "export", "seconds": 8.0, "parity": {
                    "max_box_px": 2e-4, "max_score": 4e-6, "pictures": 8, "compared": 5120, "unmatched": 0}},
                {"name": "quantize", "seconds": 240.0, "max_drop": 0.003},
                {"name": "pack", "seconds": 0.8, "bundle": "demo.epb", "signed_by": "SHA256:abc"},
            ],
        }
    )  # fmt: skip


def lines_of(text):
    return [re.sub(r" {2,}", "  ", line) for line in text.splitlines()]


def test_the_card_names_the_head_that_map_was_measured_on(record):
    sentence = "mAP measured with the one-to-one head without NMS"
    assert sentence not in card(record, OUT)
    record["models"]["original"]["head"] = "one-to-one"
    assert sentence in card(record, OUT) and "unless nms=False" in card(record, OUT)


def test_the_card_compares_before_and_after(record):
    lines = lines_of(card(record, OUT))
    assert lines[:2] == ["", "demo: ratio 0.2 for jetson-orin, in 8:49"]
    for line in (
        "  original  tuned",
        "parameters  3.01 M  1.66 M  1.81x fewer (55%)",
        "MACs  1.01 G  0.78 G  1.29x fewer (77%)",
        "channels  7,504  6,003  1.25x fewer (80%)",
        "checkpoint  6.25 MB  3.50 MB  1.79x smaller (56%)",  # without the optimiser that best.pt may hold
        "latency, FP32  13.2 ms  11.0 ms  1.21x as fast",
        "FPS, FP32  50.0  61.0  1.22x as fast",
        "mAP50-95  0.247  0.250  +0.003",
    ):
        assert line in lines, line


def test_the_card_names_the_worst_class_even_if_the_mean_rose(record):
    assert "worst class" not in card(record, OUT)
    before, after = record["models"]["original"], record["models"]["tuned"]
    before["per_class"] = [{"name": name, "boxes": 300, "map50_95": 0.245} for name in ("person", "car")]
    after["per_class"] = [{"name": n, "boxes": 300, "map50_95": ap} for n, ap in (("person", 0.176), ("car", 0.35))]
    assert "worst class: person  0.245  0.176  -0.069" in lines_of(card(record, OUT))
    for entry in (*before["per_class"], *after["per_class"]):
        entry["boxes"] = 29
    assert "worst class" not in card(record, OUT)


def test_the_card_states_a_subset_of_images_and_the_intervals(record):
    assert "95 %" not in card(record, OUT)
    record["pictures"]["val_total"] = 5000
    record["models"]["original"]["map50_95_interval"] = [0.221, 0.274]
    text = " ".join(card(record, OUT).split())
    assert "mAP: 400 of 5000 validation images, evenly spread, 8865 boxes" in text
    assert "95 % intervals of mAP50-95: original 0.221 to 0.274." in text


def test_the_card_lists_every_file_with_its_accuracy_drop(record):
    lines = lines_of(card(record, OUT))
    assert "pruned.pt  3.50  -  0.247  0.447  0.147" in lines
    assert "model.fp32.onnx  6.70  11.0  0.250  0.450  0.150" in lines
    assert "model.fp16.onnx  3.40  -  0.250  0.450  0.150  +0.0001" in lines
    assert "model.int8.onnx  1.90  9.0  0.249  0.450  0.149  -0.0007" in lines


def test_the_card_shows_a_verdict_for_every_gate(record):
    text = card(record, OUT)
    assert (
        "  passed  The pruned network equals the original with masked channels: 3.1e-16, limit: 1e-09 relative" in text
    )
    assert "  passed  INT8 keeps mAP50-95: 0.2502 -> 0.2495 (-0.0007), limit: loses at most 0.003" in text
    assert "FAILED" not in text and "WARNING" not in text
    record["pictures"]["train_in_val"] = 7
    record["models"]["int8"]["map50_95"] = 0.2
    text = card(record, OUT)
    assert "  FAILED  INT8 keeps mAP50-95: 0.2502 -> 0.2000" in text
    assert "WARNING: 7 validation images are also training images, so no mAP of this build can be trusted." in text


def test_the_next_commands_can_be_pasted_into_a_shell(record):
    text = card(record, OUT)
    commands = [line[9:] for line in text.splitlines() if line[9:].startswith("edgeprune ")]
    words = [shlex.split(command, comments=True) for command in commands]
    assert words == [
        ["edgeprune", "bench", "runs/demo jetson/demo.epb"],
        ["edgeprune", "setup", "user@drone"],
        ["edgeprune", "deploy", "runs/demo jetson/demo.epb", "user@drone"],
        ["edgeprune", "collect", "user@drone"],
    ]
    assert "bundle   runs/demo jetson/demo.epb  (signed by SHA256:abc)" in text and "page " not in text
    assert "page     runs/demo jetson/report.html" in card({**record, "page": "report.html"}, OUT)


def test_the_card_omits_figures_that_were_not_measured(record):
    for entry in record["models"].values():
        entry.update(latency_ms=None, fps_end_to_end=None, map50_95=None, map50=None, small_map50_95=None)
    lines = lines_of(card(record, OUT))
    assert not any(line.startswith(("latency", "FPS", "ms:", "mAP50", "small")) for line in lines)
    assert "model.int8.onnx  1.90  -  -  -  -  -" in lines and not any("keeps mAP" in line for line in lines)
    assert "parameters  3.01 M  1.66 M  1.81x fewer (55%)" in lines


def test_worse_figures_are_shown_in_yellow(record):
    record["models"]["tuned"].update(map50_95=0.2, parameters=6_020_000)
    record["models"]["fp32"]["latency_ms"]["speedup"] = 0.8
    text = card(record, OUT, Look(colour=True))
    for change in ("-0.047", "2.00x more (200%)", "0.80x as fast"):
        assert f"\x1b[33m{change}\x1b[0m" in text
    record["models"]["fp32"]["latency_ms"]["speedup"] = 1.001
    assert lines_of(card(record, OUT)).count("latency, FP32  13.2 ms  11.0 ms  the same") == 1


def test_after_qat_the_card_compares_the_qat_network(record):
    record["models"]["qat"] = {**record["models"]["tuned"], "path": "qat.pt", "map50_95": 0.26}
    lines = lines_of(card(record, OUT))
    assert "  original  qat" in lines and "mAP50-95  0.247  0.260  +0.013" in lines


def test_the_card_is_plain_ascii_unless_the_terminal_supports_more(record, capsys, monkeypatch):
    plain = card(record, OUT)
    assert plain.isascii() and "\x1b" not in plain
    coloured = card(record, OUT, Look(colour=True, unicode=True))
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == plain and "\x1b[32m1.21x as fast\x1b[0m" in coloured
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    show(record, OUT)
    assert capsys.readouterr().out == f"{plain}\n"


@pytest.mark.parametrize("width", [40, 56, 80, 200])
def test_tables_and_prose_fit_a_terminal(record, width):
    text = card(record, Path("o"), width=width)
    pasted = [line for line in text.splitlines() if line[9:].startswith("edgeprune ")]
    for line in text.splitlines():
        assert len(line) <= width or line in pasted or line.startswith("bundle "), line
    assert any("against FP32" in line for line in text.splitlines())
    assert ("#" in pasted[0]) == (width >= 80)  # the comment with the purpose, if it fits


def test_the_card_lists_the_engines_of_a_reference_device(record):
    bench = {"infer_p50_ms": 3.2, "fps_end_to_end": 120.0, "map50_95": None, "verdict": "clean"}
    engines = {
        "fp16.orin": {"payload": "x", "builder": "TensorRT 10.3.0", "for": "Orin (SM 8.7)", "bench": bench},
        "int8.orin": {"payload": None, "reason": "no memory"},
    }
    record["stages"].append({"name": "reference", "seconds": 5.0, "engines": engines})
    text = card(record, OUT)
    assert "engine   fp16.orin: 3.20 ms p50 inference, 120.0 FPS end to end, mAP50-95 not measured, by TensorRT" in text
    assert "engine   int8.orin: none (no memory)" in text
