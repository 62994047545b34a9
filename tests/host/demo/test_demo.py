"""The embedded default: scenes, their boxes, the data set made of them, and the weights that go with them."""

import hashlib
import pickletools
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from edgeprune_device.errors import InputError

from edgeprune.demo import NAMES, WEIGHTS, dataset, render, scenes, write_dataset
from edgeprune.demo.camera import SUPERSAMPLE, CameraView
from edgeprune.demo.objects import MAKERS
from edgeprune.demo.solids import MARGIN, Stage
from edgeprune.demo.surroundings import CLUTTER, building, clutter, tree
from edgeprune.demo.train import LR0, LR_END, WARMUP_STEPS, Pace

DIGEST = """
import hashlib
from edgeprune.demo import render
print(*(hashlib.sha256(b"".join(part.tobytes() for part in render(seed))).hexdigest() for seed in range(3)))
"""


def digest(seed: int) -> str:
    return hashlib.sha256(b"".join(part.tobytes() for part in render(seed))).hexdigest()


def stage(size: int = 320, px_per_m: float = 10, tilt: float = 0.4) -> Stage:
    """An empty stage of one colour that nothing else has."""
    canvas = np.full((size * SUPERSAMPLE,) * 2 + (3,), (255, 0, 254), np.uint8)
    return Stage(canvas, CameraView(size, px_per_m, tilt, 0.5), sun_azimuth=0.7, sun_slope=1.0)


def painted(place: Stage) -> np.ndarray:
    return (place.canvas != (255, 0, 254)).any(axis=2)


def inner(place: Stage) -> np.ndarray:
    return place.ids[MARGIN:-MARGIN, MARGIN:-MARGIN]


def bounds(mask: np.ndarray) -> np.ndarray:
    """[x0, y0, x1, y1] of the true pixels, the far edges exclusive."""
    y, x = np.nonzero(mask)
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])


# ---------------------------------------------------------------------------------------------- scenes


def test_a_seed_gives_the_same_bytes_in_every_process():
    here = [digest(seed) for seed in range(3)]
    assert here == [digest(seed) for seed in range(3)]
    assert len(set(here)) == 3
    other = subprocess.run([sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True)
    assert other.stdout.split() == here


def test_shapes_and_ranges():
    picture, boxes = render(5)
    assert picture.shape == (320, 320, 3) and picture.dtype == np.uint8
    assert boxes.ndim == 2 and boxes.shape[1] == 5 and boxes.dtype == np.float32
    assert render(5, size=256)[0].shape == (256, 256, 3)


@pytest.mark.parametrize("seed", range(8))
def test_boxes_are_the_bounds_of_the_visible_pixels(seed):
    _, boxes, ids = scenes.render_with_masks(seed)
    seen = {tuple(bounds(ids == tag)) for tag in np.unique(ids) if tag}
    side = len(ids)
    centre, half = boxes[:, 1:3] * side, boxes[:, 3:5] * side / 2
    for corners in np.concatenate([centre - half, centre + half], axis=1).round().astype(int):
        assert tuple(corners) in seen
    assert (boxes[:, 1:] >= 0).all() and (boxes[:, 1:] <= 1).all()
    assert len(boxes) <= len(seen)


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("tilt", [0.0, 0.6])
def test_the_mask_is_what_was_painted_and_no_shadow(kind, tilt):
    for turn in range(6):
        place = stage(tilt=tilt)
        thing = MAKERS[kind](np.random.default_rng(turn), np.array([1.0, -2.0]), turn * 1.1)
        place.tag = 1
        thing.paint(place)
        mask, drawn = inner(place) == 1, painted(place)
        assert np.abs(bounds(mask) - bounds(drawn)).max() <= SUPERSAMPLE  # smoothed edges: one pixel of the picture
        assert (mask & drawn).sum() >= 0.97 * mask.sum()
        # What counts as the whole object, for the share that is visible, is all of it.
        assert (scenes._patch(place, thing) == 1).sum() == (place.ids == 1).sum()


def test_things_without_a_label_hide_what_lies_under_them():
    rng = np.random.default_rng(0)
    covers = [clutter(rng, np.zeros(2), 0.3, kind) for kind in CLUTTER]
    covers += [tree(rng, np.zeros(2), 2.0, 3.0), building(rng, np.zeros(2), 0.4, 9, 7)]
    for thing in covers:
        assert thing.kind is None
        place = stage()
        place.ids[:] = 7
        thing.paint(place)
        solid = cv2.erode(painted(place).astype(np.uint8), np.ones((3, 3))) == 1  # without its smoothed edge
        assert (inner(place)[solid] == 0).mean() > 0.97


def test_an_object_mostly_hidden_has_no_box():
    ids = np.zeros((640, 640), np.uint8)
    ids[100:140, 200:240] = 1
    ids[300:340, 300:312] = 2
    whole = [(1, 2, 1600), (2, 0, 1600)]  # 100 % and 30 % visible
    boxes = scenes._boxes(ids, whole, 320)
    np.testing.assert_allclose(boxes, [[2, 220 / 640, 120 / 640, 40 / 640, 40 / 640]], rtol=1e-6)


def test_an_object_cut_by_the_edge_counts_whole():
    place = stage(tilt=0.0)
    place.tag = 1
    edge = place.view.ground(320, 160)  # the right edge's middle: half of it is outside
    thing = MAKERS["car"](np.random.default_rng(1), np.array(edge), 0.0)
    thing.paint(place)
    visible, whole = (inner(place) == 1).sum(), (scenes._patch(place, thing) == 1).sum()
    assert 0.3 < visible / whole < 0.7


@pytest.mark.slow  # others that are alike run always
def test_the_validation_scenes_hold_thousands_of_boxes_of_every_class(monkeypatch):
    """At least 4,000 in the 400; counting stops where that is proven."""
    monkeypatch.setattr(scenes, "shoot", lambda rng, canvas, size: canvas)  # the lens comes after the boxes
    found: list[np.ndarray] = []
    for seed in range(dataset.VAL_SEED, dataset.VAL_SEED + 400):
        found.append(render(seed)[1])
        if sum(map(len, found)) >= 4000:
            break
    boxes = np.concatenate(found)
    assert len(boxes) >= 4000
    assert np.bincount(boxes[:, 0].astype(int), minlength=len(NAMES)).min() >= 100
    assert any(len(b) == 0 for b in found)
    side = np.sqrt(boxes[:, 3] * boxes[:, 4]) * 320
    assert np.percentile(side, 5) < 9 and np.percentile(side, 99) > 45  # pixels: small ones, and a wide range


def test_importing_the_demo_needs_no_torch():
    code = "import sys, edgeprune.demo; print([m for m in ('torch', 'ultralytics') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# -------------------------------------------------------------------------------------------- data set


def test_the_ranges_of_seeds_never_meet():
    firsts = sorted([dataset.WEIGHTS_SEED, dataset.TUNE_SEED, dataset.VAL_SEED, dataset.CHECK_SEED])
    assert (np.diff(firsts) >= dataset.RANGE).all()


def test_the_data_set_opens_in_ultralytics_and_can_be_moved(tmp_path):
    from ultralytics.data import YOLODataset
    from ultralytics.data.utils import check_det_dataset

    first = write_dataset(tmp_path / "a", 4, 3)
    assert "path" not in first.read_text()
    moved = (tmp_path / "a").rename(tmp_path / "b") / "data.yaml"
    info = check_det_dataset(str(moved))
    assert tuple(info["names"].values()) == NAMES
    total = 0
    for split, count in (("train", 4), ("val", 3)):
        opened = YOLODataset(img_path=info[split], data=info, imgsz=320, augment=False)
        assert len(opened) == count
        total += sum(len(label["cls"]) for label in opened.labels)
    assert total == sum(dataset.boxes(moved).values())


def test_pictures_and_labels_are_those_of_their_seed(tmp_path):
    data = write_dataset(tmp_path / "set", 1, 1, first_train_seed=5)
    picture, boxes = render(5)
    stored = cv2.imread(str(data.parent / "images/train/scene-00000005.jpg"))[..., ::-1]
    assert np.abs(stored.astype(int) - picture).mean() < 6
    rows = np.loadtxt(data.parent / "labels/train/scene-00000005.txt", ndmin=2)
    np.testing.assert_allclose(rows, boxes, atol=1e-6)


def test_processes_change_nothing(tmp_path):
    files = [write_dataset(tmp_path / str(n), 3, 1, processes=n).parent for n in (1, 2)]
    names = [sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file()) for root in files]
    assert names[0] == names[1] and len(names[0]) == 10
    assert all((files[0] / name).read_bytes() == (files[1] / name).read_bytes() for name in names[0])


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    real, calls = dataset._write_scene, []

    def third_fails(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(dataset, "_write_scene", third_fails)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "set", 2, 2)
    assert list(tmp_path.iterdir()) == []
    write_dataset(tmp_path / "set", 2, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_a_complete_set_is_used_again_and_another_replaced(tmp_path, monkeypatch):
    data = write_dataset(tmp_path / "set", 1, 1)
    before = data.stat().st_ino
    with monkeypatch.context() as patch:
        patch.setattr(dataset, "render", None)
        assert write_dataset(tmp_path / "set", 1, 1) == data
    assert data.stat().st_ino == before
    write_dataset(tmp_path / "set", 2, 1)
    assert len(list((tmp_path / "set/images/train").iterdir())) == 2


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(InputError, match="holds other files"):
        write_dataset(tmp_path, 1, 1)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_training_and_validation_may_not_share_scenes(tmp_path):
    with pytest.raises(InputError, match="overlap"):
        write_dataset(tmp_path / "set", 10, 10, first_train_seed=100, first_val_seed=105)
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------------------- training


class FakeTrainer:
    """What Pace sees of Ultralytics' trainer: 4 epochs of 100 steps."""

    def __init__(self):
        self.epochs, self.train_loader, self.epoch, self.stop, self.saves = 4, range(100), 0, False, 0
        self.optimizer = SimpleNamespace(param_groups=[{"lr": 0.1}, {"lr": 0.1}])
        self.tloss = {"box_loss": 1.0}

    def save_model(self):
        self.saves += 1


def paced(tmp_path, budget_s, clock, steps) -> tuple[FakeTrainer, list[float]]:
    """The learning rates of so many steps; the clock gains a second a step."""
    trainer, pace, rates = FakeTrainer(), Pace(tmp_path, budget_s), []
    pace.started = pace.saved = clock[0]
    for _ in range(steps):
        pace.before_batch(trainer)
        rates.append(trainer.optimizer.param_groups[1]["lr"])
        clock[0] += 1
        pace.after_batch(trainer)
        if trainer.stop:
            break
    pace.save(trainer)
    return trainer, rates


def test_the_learning_rate_follows_the_clock_and_survives_an_interruption(tmp_path, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr("edgeprune.demo.train.time.monotonic", lambda: clock[0])
    first, rates = paced(tmp_path, 300, clock, 200)
    assert rates[0] == pytest.approx(LR0 / WARMUP_STEPS, rel=0.01)
    assert max(rates) < LR0 and rates[-1] < rates[160]
    assert not first.stop and first.saves == 1
    clock[0] += 5000  # nobody trains meanwhile
    second, rest = paced(tmp_path, 300, clock, 500)
    assert second.stop and len(rest) == 101
    assert rest[0] == pytest.approx(rates[-1], rel=0.05)
    assert rest[-1] == pytest.approx(LR0 * LR_END, rel=0.05)


def test_without_a_budget_the_learning_rate_follows_the_steps(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("edgeprune.demo.train.time.monotonic", lambda: clock[0])
    trainer, rates = paced(tmp_path, None, clock, 400)
    assert not trainer.stop and rates[-1] == pytest.approx(LR0 * LR_END, rel=0.05)
    assert trainer.saves == 2  # once after four minutes, once at the end


# --------------------------------------------------------------------------------------------- weights


def pickled(path: Path) -> list[tuple[str, str]]:
    """(module, class) of everything that loading a checkpoint would look up."""
    with zipfile.ZipFile(path) as archive:
        data = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    strings, found = [], []
    for op, value, _ in pickletools.genops(data):
        if op.name == "GLOBAL":
            found.append(tuple(value.split(" ", 1)))
        elif op.name == "STACK_GLOBAL":
            found.append(tuple(strings[-2:]))
        elif isinstance(value, str):
            strings.append(value)
    return found


def test_the_weights_hold_stock_classes_and_no_path():
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


def test_the_weights_open_in_stock_ultralytics_and_find_objects():
    import torch
    from ultralytics import YOLO

    assert torch.load(WEIGHTS, weights_only=False)["model"].model[0].conv.weight.dtype == torch.float16
    model = YOLO(WEIGHTS)
    assert tuple(model.names.values()) == NAMES
    found = wanted = 0
    for seed in range(dataset.VAL_SEED, dataset.VAL_SEED + 12):
        picture, boxes = render(seed)
        result = model.predict(picture[..., ::-1], imgsz=320, conf=0.25, device="cpu", verbose=False)[0].boxes
        large = boxes[boxes[:, 3] * boxes[:, 4] * 320**2 > 200]
        wanted += len(large)
        for cls, cx, cy, _, _ in large:
            x, y = cx * 320, cy * 320
            b = result.xyxy.numpy()
            hit = (b[:, 0] < x) & (x < b[:, 2]) & (b[:, 1] < y) & (y < b[:, 3]) & (result.cls.numpy() == cls)
            found += bool(hit.any())
    assert found > 0.7 * wanted


def test_the_card_names_this_file():
    card = WEIGHTS.with_name("MODEL_CARD.md").read_text()
    assert hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() in card
    assert "AGPL-3.0" in card and "mAP50-95" in card
