"""Tests of the choice of a release, without any process."""

import os

import pytest
from edgeprune_device.errors import InputError
from edgeprune_device.releases import Releases
from edgeprune_device.service.keeper import MOST_STARTS, Keeper
from fakes.service import Root


@pytest.fixture
def root(tmp_path, manifest):
    return Root(tmp_path / "root", manifest)


@pytest.fixture
def messages():
    return []


@pytest.fixture
def keeper(root, messages):
    return Keeper(root.releases, 30.0, messages.append)


def test_release_on_trial_has_three_starts(root, keeper, messages):
    former, fresh = root.add("former", b"ok", state="good"), root.add("new", b"ok")
    for _ in range(MOST_STARTS):
        chosen, _ = keeper.choose("it crashed")
        assert chosen.identity == fresh.identity
        keeper.count(chosen, 1)
    assert keeper.choose("it crashed")[0] == former
    assert root.releases.get(fresh.identity).reason == "3 starts, none with frames for 30 s (it crashed)"
    assert root.current() == "former" and len(messages) == 1


def test_starts_of_a_good_release_do_not_count(root, keeper):
    good = root.add("good", b"ok", state="good")
    for _ in range(10):
        assert keeper.choose(None)[0] == good
        keeper.count(good, 1)
    assert root.releases.get(good.identity).starts == 0


def test_start_can_be_taken_back(root, keeper):
    fresh = root.add("new", b"ok")
    keeper.count(fresh, 1)
    keeper.count(root.releases.get(fresh.identity), -1)
    keeper.count(root.releases.get(fresh.identity), -1)
    assert root.releases.get(fresh.identity).starts == 0


def test_newest_good_release_that_verifies_takes_over(root, keeper, messages):
    oldest = root.add("oldest", b"1", state="good")
    root.add("failed", b"2", state="bad")
    damaged = root.add("damaged", b"333", state="good")
    fresh = root.add("new", b"4")
    root.damage(damaged)
    assert keeper.fall_back(fresh, "why") == oldest
    assert root.current() == "oldest" and root.state(fresh) == "bad" and root.state(damaged) == "good"
    assert "cannot be used as the fallback" in messages[0]


def test_nothing_changes_if_no_release_verifies(root, keeper):
    former, fresh = root.add("former", b"123", state="good"), root.add("new", b"4")
    root.damage(former)
    assert keeper.fall_back(fresh, "why") is None
    assert root.current() == "new" and root.state(fresh) == "trial"


def test_release_installed_in_the_meantime_stays_in_use(root, keeper):
    root.add("former", b"1", state="good")
    fresh = root.add("new", b"2")
    root.add("newer", b"3")
    assert keeper.fall_back(fresh, "why").name == "newer"
    assert root.current() == "newer" and root.state(fresh) == "trial"
    assert keeper.confirm(fresh) == fresh and root.state(fresh) == "trial"


def test_bad_release_is_not_started_if_there_is_a_good_one(root, keeper):
    former = root.add("former", b"1", state="good")
    fresh = root.add("new", b"2", state="bad")
    assert keeper.choose(None)[0] == former and root.current() == "former"
    root.releases.mark(former, "bad", "bad in this test")
    assert keeper.choose(None)[0].identity == former.identity  # a bad release is better than none
    assert root.state(fresh) == "bad"


def test_release_with_an_unreadable_record_is_replaced(root, keeper):
    former, fresh = root.add("former", b"1", state="good"), root.add("new", b"2")
    (root.releases.folder(fresh) / "release.json").write_text("{")
    assert keeper.choose(None)[0] == former and root.current() == "former"


def test_confirming_raises_the_counter(root, keeper):
    fresh = root.add("new", b"ok")
    assert keeper.confirm(fresh).state == "good"
    assert root.state(fresh) == "good" and root.releases.counters == {fresh.key_fingerprint: fresh.counter}


class Full(Releases):
    """A fake of a full disk."""

    def write(self, release):
        raise InputError("release.json: no space left on device")

    def switch(self, release):
        raise InputError("current: no space left on device")


def test_full_disk_gives_the_same_decisions_from_memory(root, messages):
    former, fresh = root.add("former", b"1", state="good"), root.add("new", b"2")
    keeper = Keeper(Full(root.path), 30.0, messages.append)
    for _ in range(MOST_STARTS):
        assert keeper.choose(None)[0] == fresh
        keeper.count(fresh, 1)
    assert keeper.choose(None)[0] == former
    assert keeper.choose(None)[0] == former  # the choice is stable
    assert keeper.confirm(fresh) == fresh
    assert root.current() == "new" and any("no space left" in text for text in messages)
    keeper.forget()
    assert keeper.choose(None)[0] == fresh


def test_missing_release_is_reported(root, keeper):
    release, why = keeper.choose(None)
    assert release is None and "no release yet" in why
    os.symlink("releases/0123456789abcdef", str(root.path / "current"))
    release, why = keeper.choose(None)
    assert release is None and "0123456789abcdef" in why


def test_release_marked_good_in_the_meantime_stays_in_use(root, keeper):
    former, fresh = root.add("former", b"ok", state="good"), root.add("new", b"ok")
    root.releases.confirm(fresh)
    assert keeper.fall_back(fresh, "three starts").identity == fresh.identity
    assert root.current() == "new" and root.releases.get(former.identity) == former
    assert root.releases.get(fresh.identity).state == "good"


def test_switch_comes_before_the_mark_so_that_a_bad_release_is_never_in_use(root, keeper, monkeypatch):
    root.add("former", b"ok", state="good")
    fresh, seen = root.add("new", b"ok"), []
    mark = root.releases.mark
    monkeypatch.setattr(root.releases, "mark", lambda *words: (seen.append(root.current()), mark(*words))[1])
    keeper.fall_back(fresh, "why")
    assert seen == ["former"] and root.releases.get(fresh.identity).state == "bad"


def test_release_removed_at_this_moment_does_not_take_over(root, keeper, monkeypatch):
    oldest, former = root.add("oldest", b"1", state="good"), root.add("former", b"2", state="good")
    fresh, opened = root.add("new", b"3"), root.releases.open

    def opened_and_gone(release):
        bundle = opened(release)
        if release == former:
            root.releases.folder(former).rename(root.releases.root / "releases" / ".old")
        return bundle

    monkeypatch.setattr(root.releases, "open", opened_and_gone)
    assert keeper.fall_back(fresh, "why") == oldest and root.current() == "oldest"
