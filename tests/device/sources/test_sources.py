"""Tests of the source that a text selects."""

import pytest
from edgeprune_device import sources
from edgeprune_device.errors import InputError

from .clips import save


@pytest.mark.parametrize(
    "text, kind",
    [
        ("bundle", "bundle"),
        ("csi", "camera"),
        ("csi:1", "camera"),
        ("/dev/video0", "camera"),
        ("/dev/v4l/by-id/usb-cam", "camera"),
        ("videotestsrc ! identity", "camera"),
        ("folder", "pictures"),
        ("folder/a.JPG", "pictures"),
        ("folder/*.jpg", "pictures"),
        ("flight.mp4", "video"),
        ("odd [1].mp4", "video"),
    ],
)
def test_text_selects_the_kind(text, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for name in ("folder/a.JPG", "flight.mp4", "odd [1].mp4"):
        (tmp_path / name).touch()
    takers = [name for name in sources.KINDS if sources._module(name).takes(text)]
    assert takers[0] == kind


def test_text_can_name_the_kind(tmp_path):
    save(tmp_path / "frame.mp4", format="PNG")  # an image despite its suffix
    with sources.open(f"pictures:{tmp_path / 'frame.mp4'}") as source:
        assert source.name == "pictures" and "PNG" in source.description


@pytest.mark.parametrize("text", ["nowhere", "nowhere.mp4", "bundle2", ""])
def test_error_of_an_unknown_source_lists_the_sources(text):
    with pytest.raises(InputError, match="give bundle, a folder") as caught:
        sources.open(text)
    assert "\n" not in str(caught.value)
