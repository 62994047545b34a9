"""demo: importing it is cheap, and its weights are stock."""

import pickletools
import subprocess
import sys
import zipfile
from pathlib import Path

from edgeprune.demo import NAMES, WEIGHTS, dataset, render


def test_import_of_the_demo_needs_no_torch():
    code = "import sys, edgeprune.demo; print([m for m in ('torch', 'ultralytics') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def pickled(path: Path) -> list[tuple[str, str]]:
    """(module, class) of every global in the pickle of a checkpoint."""
    with zipfile.ZipFile(path) as archive:
        data = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    strings, names = [], []
    for op, value, _ in pickletools.genops(data):
        if op.name == "GLOBAL":
            names.append(tuple(value.split(" ", 1)))
        elif op.name == "STACK_GLOBAL":
            names.append(tuple(strings[-2:]))
        elif isinstance(value, str):
            strings.append(value)
    return names


def test_weights_hold_stock_classes_and_no_path():
    assert {module.split(".")[0] for module, _ in pickled(WEIGHTS)} <= {
        "torch",
        "ultralytics",
        "collections",
        "__builtin__",
    }
    assert WEIGHTS.stat().st_size < 8e6
    with zipfile.ZipFile(WEIGHTS) as archive:
        content = b"".join(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    for place in (b"/work", b"/home", b"/root", b"/tmp", b"/usr"):
        assert place not in content


def test_weights_open_in_stock_ultralytics_and_detect_objects():
    import torch
    from ultralytics import YOLO

    assert torch.load(WEIGHTS, weights_only=False)["model"].model[0].conv.weight.dtype == torch.float16
    model = YOLO(WEIGHTS)
    assert tuple(model.names.values()) == NAMES
    hits = wanted = 0
    for seed in range(dataset.VAL_SEED, dataset.VAL_SEED + 12):
        picture, boxes = render(seed)
        result = model.predict(picture[..., ::-1], imgsz=320, conf=0.25, device="cpu", verbose=False)[0].boxes
        large = boxes[boxes[:, 3] * boxes[:, 4] * 320**2 > 200]
        wanted += len(large)
        for cls, cx, cy, _, _ in large:
            x, y = cx * 320, cy * 320
            b = result.xyxy.numpy()
            hit = (b[:, 0] < x) & (x < b[:, 2]) & (b[:, 1] < y) & (y < b[:, 3]) & (result.cls.numpy() == cls)
            hits += bool(hit.any())
    assert hits > 0.7 * wanted
