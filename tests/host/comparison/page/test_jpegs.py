"""jpegs: pictures in the page, as large as there is room for."""

import base64
import io
import re
from pathlib import Path

import numpy as np
from PIL import Image

from edgeprune.comparison import page

from ... import page_comparisons as made


def embedded(text):
    return [Image.open(io.BytesIO(base64.b64decode(url))) for url in
            re.findall(r'<image href="data:image/jpeg;base64,([^"]+)"', text)]  # fmt: skip


def test_a_picture_is_embedded_once_and_upright(tmp_path):
    comparison = made.build(tmp_path, 1, 160)
    shot = comparison["gallery"]["pictures"][0]
    lying = np.zeros((120, 200, 3), np.uint8)
    lying[:, :40] = (255, 0, 0)  # left, which orientation 6 turns to the top
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(lying).save(shot["path"], exif=exif, quality=95)
    shot.update(width=120, height=200)
    (image,) = embedded(page.render(comparison))
    assert image.size == (120, 200)
    assert image.getpixel((60, 10))[0] > 200 and image.getpixel((60, 190))[0] < 60


def test_a_missing_damaged_or_changed_picture_is_said_in_its_place(tmp_path):
    comparison = made.build(tmp_path, 3, 160)
    first, second, third = comparison["gallery"]["pictures"]
    Path(first["path"]).unlink()
    Path(second["path"]).write_bytes(b"no picture")
    Image.new("RGB", (99, 50)).save(third["path"])
    text = page.render(comparison)
    assert f"The picture is not here: {first['name']}: the picture cannot be read (no such file" in text
    assert "not a picture that can be decoded" in text
    assert "it is 99 × 50 px, it was 160 × 160" in text
    assert len(embedded(text)) == 1


def test_the_page_stays_below_3_mb_and_says_what_was_left_out(tmp_path, monkeypatch):
    comparison = made.build(tmp_path, 1, 160)
    (shot,) = comparison["gallery"]["pictures"]
    noise = np.random.default_rng(0).integers(0, 256, (960, 960, 3), np.uint8)  # what no JPEG makes small
    Image.fromarray(noise).save(shot["path"], quality=70)
    comparison["gallery"]["pictures"] = [{**shot, "width": 960, "height": 960, "lost": 9 - i} for i in range(6)]
    text = page.render(comparison)
    assert len(text.encode()) <= 3_000_000
    assert len(embedded(text)) == 6 and max(embedded(text)[0].size) < 960
    monkeypatch.setattr(page, "MOST_BYTES", 480_000)
    text = page.render(comparison)
    assert len(text.encode()) <= 480_000
    kept = len(embedded(text))
    assert 0 < kept < 6 and f"{6 - kept} more picture" in text and "left out" in text
