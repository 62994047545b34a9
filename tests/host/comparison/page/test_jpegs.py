"""jpegs: images in the page, as large as the limit allows."""

import base64
import io
import re
from pathlib import Path

import numpy as np
from fakes import large
from PIL import Image

from edgeprune.comparison import page
from edgeprune.comparison.comparison import Comparison
from edgeprune.comparison.page import jpegs

from ... import page_comparisons as made


def embedded(text):
    return [Image.open(io.BytesIO(base64.b64decode(url))) for url in
            re.findall(r'<image href="data:image/jpeg;base64,([^"]+)"', text)]  # fmt: skip


def test_image_is_embedded_once_and_upright(tmp_path):
    comparison = made.build(tmp_path, 1, 160)
    shot = comparison["gallery"]["pictures"][0]
    lying = np.zeros((120, 200, 3), np.uint8)
    lying[:, :40] = (255, 0, 0)  # the left side, which orientation 6 turns to the top
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(lying).save(shot["path"], exif=exif, quality=95)
    shot.update(width=120, height=200)
    (image,) = embedded(page.render(Comparison.from_json(comparison)))
    assert image.size == (120, 200)
    assert image.getpixel((60, 10))[0] > 200 and image.getpixel((60, 190))[0] < 60


def test_missing_damaged_or_changed_image_is_reported_in_its_place(tmp_path):
    comparison = made.build(tmp_path, 3, 160)
    first, second, third = comparison["gallery"]["pictures"]
    Path(first["path"]).unlink()
    Path(second["path"]).write_bytes(b"no image")
    Image.new("RGB", (99, 50)).save(third["path"])
    text = page.render(Comparison.from_json(comparison))
    assert f"The image cannot be shown: {first['name']}: the image cannot be read (no such file" in text
    assert "not an image that can be decoded" in text
    assert "found 99 × 50 px, expected 160 × 160 px" in text
    assert len(embedded(text)) == 1


def test_page_stays_below_3_mb_and_states_how_many_images_were_left_out(tmp_path, monkeypatch):
    comparison = made.build(tmp_path, 1, 160)
    (shot,) = comparison["gallery"]["pictures"]
    noise = np.random.default_rng(0).integers(0, 256, (960, 960, 3), np.uint8)  # noise does not compress
    Image.fromarray(noise).save(shot["path"], quality=70)
    comparison["gallery"]["pictures"] = [{**shot, "width": 960, "height": 960, "lost": 9 - i} for i in range(6)]
    text = page.render(Comparison.from_json(comparison))
    assert len(text.encode()) <= 3_000_000
    assert len(embedded(text)) == 6 and max(embedded(text)[0].size) < 960
    monkeypatch.setattr(page, "MOST_BYTES", 480_000)
    text = page.render(Comparison.from_json(comparison))
    assert len(text.encode()) <= 480_000
    kept = len(embedded(text))
    assert 0 < kept < 6 and f"{6 - kept} more image" in text and "left out" in text


def test_image_that_is_too_large_is_reported_in_its_place(tmp_path):
    (tmp_path / "a.jpg").write_bytes(large.jpeg(9000, 8000))
    picture = jpegs.read(str(tmp_path / "a.jpg"))
    assert picture.pixels is None and "too large to decode" in picture.error
