"""cache: a folder appears after it is complete, and is made once for each content."""

import pytest
from edgeprune_device.errors import InputError

from edgeprune.data.formats import cache


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/edgeprune/data"


def test_a_folder_is_made_once_by_name_and_key(base):
    calls = []

    def make(place):
        calls.append(place)
        (place / "a").write_text("a")

    first = cache.made("my set (1)", "0123456789abcdef0123", make)
    assert first == base / "my-set-1--0123456789abcdef" and (first / "a").read_text() == "a"
    assert cache.made("my set (1)", "0123456789abcdef0123", make) == first and len(calls) == 1
    assert cache.made("my set (1)", "f" * 20, make) != first and len(calls) == 2
    assert len(list(base.iterdir())) == 2


def test_a_failed_conversion_leaves_no_folder(base):
    def make(place):
        (place / "half").write_text("")
        raise ValueError

    with pytest.raises(ValueError):
        cache.made("set", "0", make)
    assert list(base.iterdir()) == []


def test_a_folder_from_another_process_is_used(base):
    def make(place):
        (base / "set-0").mkdir()
        (base / "set-0" / "theirs").write_text("")
        (place / "ours").write_text("")

    assert [p.name for p in cache.made("set", "0", make).iterdir()] == ["theirs"]
    assert [p.name for p in base.iterdir()] == ["set-0"]


def test_an_unwritable_cache_is_named(base):
    base.parent.parent.mkdir()
    base.parent.write_text("no folder")
    with pytest.raises(InputError, match=r"cannot be written .*XDG_CACHE_HOME"):
        cache.made("set", "0", lambda place: None)
