"""Tests of a bundle assembled from pieces that a host sent and from installed releases."""

import os
import random
import shutil

import pytest
from edgeprune_device.errors import InputError, SignatureError
from edgeprune_device.installation import assembly
from edgeprune_device.releases import Release, Releases
from edgeprune_device.trust import keys
from edgeprune_device.trust.bundle import Bundle
from edgeprune_device.trust.manifest import Manifest, Payload
from nacl.signing import SigningKey


def noise(size, seed):
    return random.Random(seed).getrandbits(8 * size).to_bytes(size, "little") if size else b""


@pytest.fixture
def releases(tmp_path):
    return Releases(tmp_path / "root")


@pytest.fixture
def make(tmp_path, manifest):
    """make(name, payloads) -> a signed bundle."""

    def make(name, payloads, key=None):
        plain = {**manifest, "models": {}, "evaluation": None, "name": name}
        return Bundle.write(tmp_path / f"{name}.epb", plain, payloads, key or keys.load_or_create())

    return make


@pytest.fixture
def install(releases):
    """install(bundle): a good release, as an installer leaves it."""

    def install(bundle, sequence=1):
        release = Release(
            bundle.sha256, bundle.manifest.name, 0, bundle.key_fingerprint, bundle.trusted, "2026-11-24T12:00:00Z",
            sequence, state="good",
        )  # fmt: skip
        folder = releases.folder(release)
        folder.mkdir(parents=True)
        shutil.copy(str(bundle.path), str(folder / "bundle.epb"))
        releases.write(release)
        return folder / "bundle.epb"

    return install


@pytest.fixture
def arrive(tmp_path):
    """arrive(bundle, held) -> the folder with the parts that a host sent."""

    def arrive(bundle, held=()):
        folder = tmp_path / "incoming" / bundle.sha256
        folder.mkdir(parents=True)
        data = bundle.path.read_bytes()
        (folder / "envelope").write_bytes(data[: bundle.envelope_bytes])
        for payload in assembly.missing(bundle.manifest, held):
            for piece in assembly.pieces(payload):
                at = bundle.envelope_bytes + payload.offset_bytes + piece.offset_bytes
                (folder / piece.name).write_bytes(data[at : at + piece.size_bytes])
        return folder

    return arrive


@pytest.mark.parametrize(
    "size, expected, count",
    [
        (1, 1 << 16, 1),
        (65536, 1 << 16, 1),
        (65537, 1 << 16, 2),
        (3_200_000, 1 << 16, 49),
        (60_000_000, 1 << 16, 916),
        (1 << 30, 1 << 20, 1024),
        (8 << 30, 1 << 22, 2048),
    ],
)
def test_small_payloads_have_small_pieces_and_pieces_cover_the_payload(size, expected, count):
    assert assembly.piece_bytes(size) == expected
    pieces = assembly.pieces(Payload("a", 0, size, "0" * 64))
    assert len(pieces) == count and len({piece.name for piece in pieces}) == count
    at = 0
    for piece in pieces:
        assert piece.offset_bytes == at and 0 < piece.size_bytes <= expected
        at += piece.size_bytes
    assert at == size


def test_all_pieces_give_the_same_bundle(tmp_path, releases, make, arrive):
    bundle = make("a", {"x": noise(200_000, 1), "y": b"", "z": noise(65536, 2), "x-again": noise(200_000, 1)})
    folder = arrive(bundle)
    assert len(list(folder.iterdir())) == 1 + 4 + 1  # identical content is sent once
    done = assembly.assemble(folder, releases, tmp_path / "bundle.epb")
    assert done.read_bytes() == bundle.path.read_bytes()
    assert [path.name for path in tmp_path.glob("*bundle*")] == ["bundle.epb"]


def test_payloads_of_a_release_are_reused(tmp_path, releases, make, install, arrive):
    same, other = noise(300_000, 1), noise(100_000, 2)
    install(make("former", {"int8": noise(100_000, 3), "fp32": same}))
    bundle = make("next", {"fp32": same, "int8": other})
    known = assembly.held(releases)
    assert [payload.name for payload in assembly.missing(bundle.manifest, known)] == ["int8"]
    folder = arrive(bundle, known)
    assert len(list(folder.iterdir())) == 1 + 2
    assembly.assemble(folder, releases, tmp_path / "bundle.epb")
    assert Bundle.open(tmp_path / "bundle.epb").sha256 == bundle.sha256


def test_damaged_release_provides_no_payloads(releases, make, install, arrive, tmp_path):
    payloads = {"x": noise(1000, 1)}
    path = install(make("former", payloads))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert assembly.held(releases) == []
    bundle = make("next", payloads)
    assembly.assemble(arrive(bundle), releases, tmp_path / "bundle.epb")
    assert (tmp_path / "bundle.epb").read_bytes() == bundle.path.read_bytes()


@pytest.mark.parametrize("lacks", ["envelope", "first", "last", "short"])
def test_missing_pieces_are_reported_and_nothing_is_written(tmp_path, releases, make, arrive, lacks):
    bundle = make("a", {"x": noise(200_000, 1)})
    folder = arrive(bundle)
    names = sorted(path.name for path in folder.iterdir() if path.name != "envelope")
    if lacks == "short":
        os.truncate(str(folder / names[1]), 1000)
    else:
        (folder / {"envelope": "envelope", "first": names[0], "last": names[-1]}[lacks]).unlink()
    with pytest.raises(InputError, match="continue the transfer"):
        assembly.assemble(folder, releases, tmp_path / "bundle.epb")
    assert not list(tmp_path.glob("*bundle*"))


def test_piece_with_a_wrong_hash_is_refused_and_removed(tmp_path, releases, make, arrive):
    bundle = make("a", {"x": noise(200_000, 1), "y": noise(100_000, 2)})
    folder = arrive(bundle)
    piece = sorted(folder.glob(f"{bundle.payloads['x'].sha256}.*"))[2]
    data = bytearray(piece.read_bytes())
    data[100] ^= 1
    piece.write_bytes(data)
    with pytest.raises(SignatureError, match="x: does not match its signed SHA-256"):
        assembly.assemble(folder, releases, tmp_path / "bundle.epb")
    left = [path.name.split(".")[0] for path in folder.iterdir()]
    assert bundle.payloads["x"].sha256 not in left and left.count(bundle.payloads["y"].sha256) == 2
    assert not list(tmp_path.glob("*bundle*"))


def test_signature_is_checked_before_anything_is_parsed(tmp_path, releases, make, arrive, monkeypatch):
    parsed = []
    bundle = make("a", {"x": noise(1000, 1)})
    folder = arrive(bundle)
    real = Manifest.from_json
    monkeypatch.setattr(Manifest, "from_json", lambda *a, **k: (parsed.append(1), real(*a, **k))[1])
    envelope = bytearray((folder / "envelope").read_bytes())
    envelope[200] ^= 1
    (folder / "envelope").write_bytes(envelope)
    with pytest.raises(SignatureError, match="invalid signature"):
        assembly.assemble(folder, releases, tmp_path / "bundle.epb")
    assert parsed == []


def test_untrusted_bundle_needs_the_option(tmp_path, releases, make, arrive):
    bundle = make("a", {"x": noise(1000, 1)}, key=SigningKey.generate())
    folder = arrive(bundle)
    with pytest.raises(SignatureError, match="not trusted"):
        assembly.assemble(folder, releases, tmp_path / "bundle.epb")
    assembly.assemble(folder, releases, tmp_path / "bundle.epb", allow_untrusted=True)
    assert (tmp_path / "bundle.epb").read_bytes() == bundle.path.read_bytes()


def test_bundle_with_a_different_hash_than_announced_is_refused(tmp_path, releases, make, arrive):
    folder = arrive(make("a", {"x": noise(1000, 1)}))
    moved = folder.with_name("0" * 64)
    folder.rename(moved)
    with pytest.raises(SignatureError, match="wrong bundle"):
        assembly.assemble(moved, releases, tmp_path / "bundle.epb")
    assert not list(tmp_path.glob("*bundle*"))


def test_endless_envelope_is_refused(tmp_path, releases):
    folder = tmp_path / ("0" * 64)
    folder.mkdir()
    with open(str(folder / "envelope"), "wb") as stream:
        stream.truncate(1 << 34)
    with pytest.raises(SignatureError, match="too large for an envelope"):
        assembly.assemble(folder, releases, tmp_path / "bundle.epb")


def test_full_disk_is_reported_before_anything_is_written(tmp_path, releases, make, arrive, monkeypatch):
    folder = arrive(make("a", {"x": noise(1000, 1)}))
    usage = shutil.disk_usage(str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(InputError, match="free some"):
        assembly.assemble(folder, releases, tmp_path / "bundle.epb")
    assert not list(tmp_path.glob("*bundle*"))
