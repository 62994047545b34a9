"""memory: facts by a file's identity, and no failure without a cache."""

import os
import sqlite3

import pytest

from edgeprune.data import memory


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/edgeprune"


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_SETTLED_S", 0)
    (tmp_path / "file").write_text("one")
    return tmp_path / "file"


def test_a_fact_is_found_until_the_file_changes(base, file):
    key = memory.identity("size", os.stat(file))
    assert memory.recall([key]) == {}
    memory.keep({key: b"3"})
    assert memory.recall([key, b"another"]) == {key: b"3"}
    assert memory.identity("other", os.stat(file)) != key
    (file.parent / "link").symlink_to(file)
    assert memory.identity("size", os.stat(file.parent / "link")) == key
    before = os.stat(file)
    file.write_text("two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # same size, same time
    assert memory.identity("size", os.stat(file)) != key


def test_a_file_that_has_just_changed_has_no_key(file, monkeypatch):
    monkeypatch.setattr(memory, "_SETTLED_S", 60)
    assert memory.identity("size", os.stat(file)) is None


def test_oldest_facts_are_deleted_first(base, monkeypatch):
    monkeypatch.setattr(memory, "_MOST", 3)
    keys = [bytes([i]) for i in range(5)]
    for key in keys:
        memory.keep({key: b"x"})
    assert sorted(memory.recall(keys)) == keys[2:]


def test_more_keys_than_fit_in_one_query_are_read(base):
    facts = {i.to_bytes(4, "big"): b"x" for i in range(2500)}
    memory.keep(facts)
    assert memory.recall(facts) == facts


def _folder(base):
    (base / "files.sqlite").mkdir(parents=True)


def _file_in_its_place(base):
    base.parent.mkdir()
    base.write_text("")


def _other_table(base):
    base.mkdir(parents=True)
    with sqlite3.connect(base / "files.sqlite") as database:
        database.execute("CREATE TABLE facts (a)")


@pytest.mark.parametrize("spoil", [_folder, _file_in_its_place, _other_table])
def test_unusable_cache_raises_no_error(base, spoil):
    spoil(base)
    memory.keep({b"a": b"b"})
    assert memory.recall([b"a"]) == {}


def test_a_damaged_cache_is_replaced(base):
    base.mkdir(parents=True)
    (base / "files.sqlite").write_bytes(b"junk" * 1000)
    assert memory.recall([b"a"]) == {}
    memory.keep({b"a": b"b"})
    assert memory.recall([b"a"]) == {b"a": b"b"}


def test_locked_cache_is_not_waited_for(base, monkeypatch):
    monkeypatch.setattr(memory, "_WAIT_S", 0.1)
    memory.keep({b"a": b"b"})
    with sqlite3.connect(base / "files.sqlite") as database:
        database.execute("BEGIN EXCLUSIVE")
        memory.keep({b"c": b"d"})
        assert memory.recall([b"a"]) == {}


def test_without_a_home_folder_nothing_is_cached(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/proc/nowhere")
    memory.keep({b"a": b"b"})
    assert memory.recall([b"a"]) == {}
