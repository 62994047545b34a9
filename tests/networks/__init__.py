"""One trained tiny detector of each family, and the images that it was trained for.

`path("yolo26")` is its checkpoint; `scenes(folder)` draws images that were not used in training, with a data.yaml.
README.md describes the weights and their accuracy; train.py trains them again.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

FAMILIES = ("yolov5", "yolov8", "yolov9", "yolov10", "yolo11", "yolo12", "yolo26")
#: Families that also have a head with one box per object, without NMS.
ONE_TO_ONE = ("yolov10", "yolo26")
NAMES = ("disc", "square", "triangle")
SIZE = 128  # px, the training size of the networks
WIDTH, HEIGHT = 160, 120  # px of an image, which is not square, so that letterboxing matters
#: Seeds of the images: for training, and for images that were not used in training.
TRAINING, UNSEEN = 1, 2

_COLOURS = np.array([(200, 60, 50), (60, 180, 70), (70, 90, 210)])


def path(family: str) -> Path:
    """The trained checkpoint of a family: path("yolo26")."""
    return Path(__file__).with_name(f"{family}.pt")


def scenes(folder: Path, val: int = 24, seed: int = UNSEEN, *, train: int = 12) -> Path:
    """Draw a data set into `folder`; return its data.yaml. The same seed gives the same images."""
    for number, (split, count) in enumerate((("train", train), ("val", val))):
        images, labels = folder / "images" / split, folder / "labels" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for i in range(count):
            picture, rows = scene(np.random.default_rng([seed, number, i]))
            picture.save(images / f"{i:04d}.png", compress_level=1)
            text = "".join(f"{c} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for c, x, y, w, h in rows)
            (labels / f"{i:04d}.txt").write_text(text)
    names = "".join(f"  {i}: {name}\n" for i, name in enumerate(NAMES))
    (folder / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames:\n{names}")
    return folder / "data.yaml"


def scene(rng: np.random.Generator) -> tuple[Image.Image, list[tuple[int, float, float, float, float]]]:
    """One image, and its boxes (class, cx, cy, w, h), normalised: one to four coloured shapes on mottled ground."""
    ground = Image.fromarray(rng.integers(60, 200, (8, 10, 3), dtype=np.uint8)).resize((WIDTH, HEIGHT), Image.BICUBIC)
    draw, taken, rows = ImageDraw.Draw(ground), [], []
    for _ in range(int(rng.integers(1, 5))):
        kind, colour = int(rng.integers(len(NAMES))), rng.integers(-45, 46, 3)
        w, h = (int(v) for v in rng.integers(18, 60, 2))
        x, y = int(rng.integers(0, WIDTH - w)), int(rng.integers(0, HEIGHT - h))
        if any(x < b[2] and b[0] < x + w and y < b[3] and b[1] < y + h for b in taken):
            continue
        taken.append((x, y, x + w, y + h))
        fill = tuple(int(v) for v in np.clip(_COLOURS[kind] + colour, 0, 255))
        corners = (x, y, x + w - 1, y + h - 1)  # Pillow also draws the last pixel
        if NAMES[kind] == "disc":
            draw.ellipse(corners, fill)
        elif NAMES[kind] == "square":
            draw.rectangle(corners, fill)
        else:
            draw.polygon([(x, y + h - 1), (x + w - 1, y + h - 1), (x + w // 2, y)], fill)
        rows.append((kind, (x + w / 2) / WIDTH, (y + h / 2) / HEIGHT, w / WIDTH, h / HEIGHT))
    noisy = np.asarray(ground, dtype=int) + rng.integers(-12, 13, (HEIGHT, WIDTH, 1))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)), rows
