import os
import shutil
from dataclasses import replace

import pytest
from edgeprune_device import clock
from edgeprune_device.errors import InputError, SignatureError
from edgeprune_device.releases import Release, Releases, identity
from edgeprune_device.trust import keys
from edgeprune_device.trust.bundle import Bundle


@pytest.fixture
def releases(tmp_path):
    root = tmp_path / "root"
    (root / "releases").mkdir(parents=True)
    return Releases(root)


@pytest.fixture
def put(releases, manifest, tiny_onnx, tmp_path):
    """put(number, **fields) -> a release whose bundle differs by that number."""

    def put(number, key=None, **fields):
        key = key or keys.load_or_create()
        bundle = Bundle.write(tmp_path / "a.epb", {**manifest, "lineage": {"n": number}, "evaluation": None},
                              {"model.fp32.onnx": tiny_onnx}, key)  # fmt: skip
        release = Release(
            bundle.sha256, "tiny", number, bundle.key_fingerprint, True, clock.wall(), sequence=number, **fields
        )
        releases.folder(release).mkdir()
        shutil.move(str(bundle.path), str(releases.folder(release) / "bundle.epb"))
        return releases.write(release)

    return put


def test_releases_are_listed_newest_first_without_unfinished_ones(releases, put):
    first, second = put(1, state="good"), put(2)
    (releases.root / "releases" / ".new-0123456789abcdef").mkdir()
    (releases.root / "releases" / ("0" * 16)).mkdir()  # without a record
    assert releases.all() == [second, first]
    assert releases.get(first.identity[:6]) == first
    with pytest.raises(InputError, match="no release 'ffff"):
        releases.get("ffffffffffffffff")


def test_current_is_a_relative_link_to_the_switched_release(releases, put):
    assert releases.current() is None
    first, second = put(1), put(2)
    for release in (first, second):
        releases.switch(release)
        assert releases.current() == release
        assert os.readlink(str(releases.root / "current")) == f"releases/{release.identity}"
    releases.switch(None)
    assert releases.current() is None
    releases.switch(None)


@pytest.mark.parametrize("target", ["/etc", "releases/../../etc", "releases/", "elsewhere/0123456789abcdef"])
def test_current_link_that_leads_elsewhere_is_not_followed(releases, target):
    os.symlink(target, str(releases.root / "current"))
    with pytest.raises(InputError, match="expected the folder of a release"):
        releases.current()


def test_fallback_is_the_newest_good_release_not_in_use(releases, put):
    first, second, third, fourth = put(1, state="good"), put(2, state="good"), put(3, state="bad"), put(4)
    releases.switch(fourth)
    assert releases.fallback() == second
    releases.switch(second)
    assert releases.fallback() == first
    releases.mark(first, "bad", "by a test")
    assert releases.fallback() is None and third in releases.all()


def test_reason_is_one_printable_line(releases, put):
    marked = releases.mark(put(1), "bad", "it\nbroke \x1b[2J" + "x" * 2000)
    assert marked.reason.startswith("it broke ?[2J") and len(marked.reason) == 1000
    assert releases.all() == [marked]


def test_a_release_that_is_confirmed_raises_the_counter_and_an_older_one_does_not_lower_it(releases, put):
    assert releases.counters == {}
    old, new = put(5), put(9)
    releases.started(new)
    assert releases.counters == {}  # a trial alone blocks nothing
    assert releases.confirm(new).state == "good" and releases.counters == {new.key_fingerprint: 9}
    releases.confirm(old)
    assert releases.counters == {new.key_fingerprint: 9}


def test_a_counter_is_a_keys_own_and_can_be_forgotten(releases, put):
    first = put(9007199254740991)
    other = replace(put(2), key_fingerprint="SHA256:" + "B" * 22)
    releases.confirm(first)
    releases.confirm(other)
    assert releases.counters == {first.key_fingerprint: 9007199254740991, other.key_fingerprint: 2}
    assert releases.forget(first.key_fingerprint) is True and releases.forget(first.key_fingerprint) is False
    assert releases.counters == {other.key_fingerprint: 2}


def test_the_counters_stay_a_small_file(releases, put):
    release = put(1)
    for number in range(300):
        releases.confirm(replace(release, counter=number + 1, key_fingerprint=f"SHA256:{number:022}"))
    assert len(releases.counters) == 256 and min(releases.counters.values()) == 45
    assert (releases.root / "state.json").stat().st_size < 1 << 15


@pytest.mark.parametrize(
    "text",
    [
        "", "{}", "[]", '{"schema_version": 1, "counter": 7}', '{"schema_version": 2, "counters": []}',
        '{"schema_version": 2, "counters": {"a": -1}}', '{"schema_version": 2, "counters": {"a": true}}',
    ],
)  # fmt: skip
def test_a_damaged_counter_is_no_counter_of_0(releases, text):
    (releases.root / "state.json").write_text(text)
    with pytest.raises(InputError, match=r"state\.json: holds no counters .*; remove the file"):
        _ = releases.counters


def test_release_is_verified_whenever_it_is_opened(releases, put):
    first, second = put(1), put(2)
    assert releases.open(first).sha256 == first.bundle_sha256
    path = releases.folder(first) / "bundle.epb"
    shutil.copy(str(releases.folder(second) / "bundle.epb"), str(path))
    with pytest.raises(SignatureError, match="not the bundle of release"):
        releases.open(first)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SignatureError):
        releases.open(first)


def test_untrusted_release_opens_only_if_it_was_installed_as_such(releases, put):
    from nacl.signing import SigningKey

    foreign = put(1, key=SigningKey.generate())
    with pytest.raises(SignatureError, match="not trusted"):
        releases.open(foreign)
    from dataclasses import replace

    assert not releases.open(replace(foreign, trusted=False)).trusted


def test_tidying_keeps_the_release_in_use_then_good_ones_then_new_ones(releases, put):
    made = [put(n, state=state) for n, state in enumerate(["good", "good", "bad", "trial", "good", "bad"], 1)]
    releases.switch(made[0])
    (releases.root / "releases" / ".new-abc").mkdir()
    (releases.root / "releases" / "of a person").mkdir()
    (releases.root / ".current.1234").symlink_to("releases/x")
    assert set(releases.tidy(4)) == {made[2].identity, made[3].identity}
    assert releases.all() == [made[5], made[4], made[1], made[0]]
    releases.tidy(2)
    assert releases.all() == [made[4], made[0]]
    assert sorted(path.name for path in (releases.root / "releases").iterdir())[-1] == "of a person"
    assert not [path for path in releases.root.rglob(".*") if path.name != ".state.lock"]


def test_only_one_installation_runs_at_a_time(releases):
    with releases.locked(), pytest.raises(BlockingIOError), Releases(releases.root).locked():
        pass
    with releases.locked():
        pass


def test_id_is_the_beginning_of_the_bundles_hash():
    assert identity("0123456789abcdef" * 4) == "0123456789abcdef"


def test_record_of_another_release_or_version_is_refused(releases, put):
    first, second = put(1), put(2)
    record = releases.folder(first) / "release.json"
    record.write_bytes((releases.folder(second) / "release.json").read_bytes())
    assert releases.all() == [second]
    releases.switch(first)
    with pytest.raises(InputError, match="belongs to another release"):
        releases.current()
