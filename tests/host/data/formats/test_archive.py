"""archive: unpacked once, completely or not at all, and only into the cache."""

import pytest
from edgeprune_device.errors import InputError

from edgeprune.data import dataset


def zipped(data, target):
    import zipfile

    with zipfile.ZipFile(target, "w") as archive:
        for file in data.parent.rglob("*"):
            archive.write(file, f"set/{file.relative_to(data.parent)}")
    return target


def tarred(data, target):
    import tarfile

    with tarfile.open(target.with_suffix(".tar.gz"), "w:gz") as archive:
        archive.add(data.parent, "set")
    return target.with_suffix(".tar.gz")


@pytest.mark.parametrize("packed", [zipped, tarred])
def test_an_archive_is_unpacked_once(data, tmp_path, packed, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = packed(data, tmp_path / "pictures.zip")
    loaded = [dataset.load(file) for _ in range(2)]
    assert loaded[0].sha256 == dataset.load(data).sha256 and loaded[0].train == loaded[1].train
    assert len(list((tmp_path / "cache/edgeprune/data").iterdir())) == 1
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(InputError, match=r"cannot be unpacked|not an archive"):
        dataset.load(file)
    assert len(list((tmp_path / "cache/edgeprune/data").iterdir())) == 1


def test_an_archive_writes_only_into_the_cache(tmp_path, monkeypatch):
    import io
    import tarfile
    import zipfile

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("../../../../escaped", "x")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("../../../../escaped"), io.BytesIO())
    for name in ("a.zip", "a.tar"):
        with pytest.raises(InputError):
            dataset.load(tmp_path / name)
    # Four folders up would be the cache's folder; an archive is unpacked below the cache's data.
    assert all(tmp_path / "cache/edgeprune/data" in path.parents for path in tmp_path.rglob("escaped"))
