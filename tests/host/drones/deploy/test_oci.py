"""oci: a container image from a base image and a bundle, as the independent tools skopeo and umoci read it."""

import errno
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
from edgeprune_device import cli
from edgeprune_device.errors import EdgepruneError, InputError, SignatureError
from edgeprune_device.releases import Releases

from edgeprune.drones import wheels
from edgeprune.drones.deploy import DeploySettings, oci

from .... import fuzz
from ... import drone_root
from ...oci_layout import INDEX, LAYER, MANIFEST, SYSTEM, Base

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: owners")
BARE = DeploySettings(agent=False)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPRUNE_HOME", str(tmp_path / "home"))


@pytest.fixture
def fake_registry(tmp_path, monkeypatch):
    """The registry answers with a wheel made here; the device package's own wheel is real."""
    fetched = [drone_root.wheel(tmp_path)]
    monkeypatch.setattr(wheels, "fetch", lambda python, extras: (Path("pip.whl"), fetched))


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def pack(bundle, base, out, settings=BARE):
    messages = []
    oci.pack(bundle, base, out, settings, messages.append)
    return "\n".join(messages)


@pytest.fixture
def base(tmp_path):
    made = Base(tmp_path / "base")
    made.layer(SYSTEM)
    return made.index(made.image())


def opened(path):
    """{name: content} of an archive, and (config, manifest) of its image."""
    with tarfile.open(path) as archive:
        files = {member.name: archive.extractfile(member).read() for member in archive}
    (top,) = json.loads(files["index.json"])["manifests"]
    manifest = json.loads(files[f"blobs/sha256/{top['digest'][7:]}"])
    return files, json.loads(files[f"blobs/sha256/{manifest['config']['digest'][7:]}"]), manifest


def listed(files, manifest):
    """The names in the last layer."""
    with tarfile.open(fileobj=io.BytesIO(files[f"blobs/sha256/{manifest['layers'][-1]['digest'][7:]}"])) as layer:
        return layer.getnames()


@ROOT
@pytest.mark.needs("umoci", "skopeo")
def test_skopeo_and_umoci_unpack_the_container_to_a_deployment(tmp_path, bundle, fake_registry):
    root = drone_root.tree(tmp_path / "root")
    layout = f"{tmp_path}/layout"
    run("umoci", "init", "--layout", layout)
    run("umoci", "new", "--image", f"{layout}:base")
    run("umoci", "insert", "--image", f"{layout}:base", str(root), "/")
    run("umoci", "config", "--image", f"{layout}:base", "--architecture", "arm64", "--config.user", "pilot")
    out = tmp_path / "image.tar"
    output = pack(bundle, Path(layout), out, DeploySettings(source="/data/clip.mp4"))
    assert "pilot (1000:1000)" in output and "linux/arm64" in output
    seen = json.loads(run("skopeo", "inspect", "--override-arch", "arm64", f"oci-archive:{out}"))
    assert (seen["Architecture"], seen["Os"], len(seen["Layers"])) == ("arm64", "linux", 2)
    config = json.loads(run("skopeo", "inspect", "--config", "--override-arch", "arm64", f"oci-archive:{out}"))
    assert config["config"]["Entrypoint"][:2] == ["/opt/edgeprune/agent/bin/edgeprune", "run"]
    assert config["config"]["User"] == "pilot" and config["created"] == "2026-11-22T23:40:00Z"
    copied = f"{tmp_path}/copied"
    run("skopeo", "copy", "--override-arch", "arm64", f"oci-archive:{out}", f"oci:{copied}:it")
    run("umoci", "unpack", "--image", f"{copied}:it", f"{tmp_path}/unpacked")
    inside = tmp_path / "unpacked/rootfs"
    releases = Releases(inside / "opt/edgeprune")
    assert releases.open(releases.current()).sha256 == bundle.sha256 and releases.current().state == "trial"
    assert {path.lstat()[4:6] for path in (inside / "opt/edgeprune").rglob("*")} == {(1000, 1000)}
    assert (inside / "opt/edgeprune/agent/bin/edgeprune").stat().st_mode & 0o777 == 0o755
    assert (inside / "opt/edgeprune/agent/lib/helper/__init__.py").read_bytes() == b"A = 1\n"
    assert (inside / "usr/bin/python3.10").read_bytes() == drone_root.program("3.10.12")
    assert len(list((inside / "etc/edgeprune/trusted").glob("*.pub"))) == 1
    assert not list(inside.rglob("edgeprune.service"))


def test_the_same_bundle_on_the_same_base_gives_the_same_bytes(tmp_path, bundle, base, fake_registry):
    pack(bundle, base, tmp_path / "a.tar", DeploySettings())
    with tarfile.open(tmp_path / "base.tar", "w") as archive:
        archive.add(base, arcname=".")
    pack(bundle, tmp_path / "base.tar", tmp_path / "b.tar", DeploySettings())
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_every_digest_matches_and_the_base_is_unchanged(tmp_path, bundle, base):
    pack(bundle, base, tmp_path / "a.tar")
    files, config, manifest = opened(tmp_path / "a.tar")
    for name, content in files.items():
        if name.startswith("blobs/"):
            assert hashlib.sha256(content).hexdigest() == name.rpartition("/")[2]
    first, last = manifest["layers"]
    assert files[f"blobs/sha256/{first['digest'][7:]}"] == (base / f"blobs/sha256/{first['digest'][7:]}").read_bytes()
    assert config["rootfs"]["diff_ids"][1] == last["digest"] and last["mediaType"] == LAYER
    assert config["config"] == {"Cmd": ["/bin/sh"], "Env": ["A=1"]} and len(config["history"]) == 1
    with tarfile.open(fileobj=io.BytesIO(files[f"blobs/sha256/{last['digest'][7:]}"])) as layer:
        names = layer.getnames()
        assert names == sorted(names) and {m.mtime for m in layer} == {1795390800}
        content = layer.extractfile(f"opt/edgeprune/releases/{bundle.sha256[:16]}/bundle.epb").read()
    assert content == bundle.path.read_bytes()


def test_arm64_is_chosen_from_a_nested_index(tmp_path, bundle):
    made = Base(tmp_path / "base")
    made.layer(SYSTEM)
    right, wrong = made.image(), made.image("amd64")
    inner = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [wrong, right]}
    pack(bundle, made.index(made.blob(inner, INDEX)), tmp_path / "a.tar")
    files, config, _ = opened(tmp_path / "a.tar")
    assert config["architecture"] == "arm64" and f"blobs/sha256/{wrong['digest'][7:]}" not in files
    with pytest.raises(InputError, match="no linux/arm64 image with an OCI manifest"):
        pack(bundle, made.index(wrong), tmp_path / "b.tar")
    with pytest.raises(InputError, match="several linux/arm64 images"):
        pack(bundle, made.index(right, made.image(author="x")), tmp_path / "b.tar")
    del wrong["platform"]
    with pytest.raises(InputError, match="found linux/amd64, expected linux/arm64"):
        pack(bundle, made.index(wrong), tmp_path / "b.tar")
    assert not (tmp_path / "b.tar").exists()


def test_upper_layers_hide_lower_ones_and_links_stay_inside(tmp_path, bundle):
    made = Base(tmp_path / "base")
    made.layer({**SYSTEM, "opt/old": b"x", "gone/a": b"a", "gone/b/c": b"c", "kept/.keep": b""}, packed=False)
    made.layer({"opt": ("link", "/data/../../srv"), "gone/.wh..wh..opq": b"", "gone/new": b"n", "kept/.wh..keep": b""})
    made.layer({"hard": ("hard", "etc/passwd"), "usr/bin/.wh.nothing": b"", "./dot/": None})
    manifest = made.image()
    layout = made.index(manifest)
    pack(bundle, layout, tmp_path / "a.tar")
    files, config, packed = opened(tmp_path / "a.tar")
    names = listed(files, packed)
    assert f"srv/edgeprune/releases/{bundle.sha256[:16]}/bundle.epb" in names and "opt" not in names
    with oci._Layout(layout) as opened_layout, oci.Layers(opened_layout, oci._choose(opened_layout), config | {
        "rootfs": {"diff_ids": made.ids}
    }) as root:  # fmt: skip
        assert root.listing("/gone") == ["new"] and root.listing("/kept") == [] and root.listing("/dot") == []
        assert root.read("/hard", 10_000) == drone_root.PASSWD.encode() and root.lstat("/opt/old") is None


def test_a_second_bundle_on_the_first_container_hides_removed_files(tmp_path, base):
    bundles = [drone_root.bundle(tmp_path / f"b{n}.epb", counter=n) for n in range(4)]
    for number, bundle in enumerate(bundles):
        out = tmp_path / f"{number}.tar"
        pack(bundle, base, out, replace(BARE, keep=2))
        base = out
    files, config, manifest = opened(base)
    assert len(manifest["layers"]) == 5 == len(config["rootfs"]["diff_ids"])
    names = listed(files, manifest)
    assert f"opt/edgeprune/releases/.wh.{bundles[1].sha256[:16]}" in names
    assert sum(".wh." in name for name in names) == 1


def damaged(path):
    path.write_bytes(path.read_bytes()[:-1] + b"?")


@pytest.mark.parametrize(
    "change, error, message",
    [
        (lambda f: (f / "oci-layout").unlink(), InputError, "not a readable OCI image layout"),
        (lambda f: shutil.rmtree(f / "blobs"), InputError, "blobs/sha256/.* is missing"),
        (lambda f: [damaged(p) for p in (f / "blobs/sha256").iterdir()], SignatureError, "damaged"),
        (lambda f: (f / "index.json").write_text("[]"), InputError, "not a JSON object"),
        (lambda f: (f / "index.json").write_text('{"manifests": 3}'), InputError, "malformed index"),
    ],
)
def test_an_invalid_or_damaged_base_is_refused(tmp_path, bundle, base, change, error, message):
    change(base)
    with pytest.raises(error, match=message) as caught:
        pack(bundle, base, tmp_path / "a.tar")
    assert "\n" not in str(caught.value) and not (tmp_path / "a.tar").exists()


@pytest.mark.parametrize("digest", ["sha256:../../../../etc/passwd", "md5:00", 7, None])
def test_a_digest_is_never_used_as_a_path(tmp_path, bundle, digest):
    made = Base(tmp_path / "base")
    with pytest.raises(InputError, match="expected a SHA-256"):
        pack(bundle, made.index({"mediaType": MANIFEST, "digest": digest, "size": 3}), tmp_path / "a.tar")


@pytest.mark.parametrize("name", ["../x", "a/../../x"])
def test_a_layer_with_a_path_outside_of_the_image_is_refused(tmp_path, bundle, name):
    made = Base(tmp_path / "base")
    made.layer({**SYSTEM, name: b"x"})
    with pytest.raises(InputError, match="path outside the image"):
        pack(bundle, made.index(made.image()), tmp_path / "a.tar")


def test_mismatching_or_unsupported_layers_are_refused(tmp_path, bundle):
    made = Base(tmp_path / "base")
    made.layer(SYSTEM)
    made.ids = [f"sha256:{'0' * 64}"]
    with pytest.raises(SignatureError, match="layer 1: wrong hash"):
        pack(bundle, made.index(made.image()), tmp_path / "a.tar")
    made.ids = []
    with pytest.raises(InputError, match="the config lists 0 diff_ids for 1 layers"):
        pack(bundle, made.index(made.image()), tmp_path / "a.tar")
    made.ids, made.layers = [f"sha256:{'0' * 64}"], [made.blob(b"x", f"{LAYER}+zstd")]
    with pytest.raises(InputError, match=r"zstd.*--dest-compress-format gzip"):
        pack(bundle, made.index(made.image()), tmp_path / "a.tar")
    made.layers = [made.blob(gzip.compress(b"x" * 5000)[:-9], f"{LAYER}+gzip")]
    with pytest.raises(InputError, match="cannot be unpacked"):
        pack(bundle, made.index(made.image()), tmp_path / "a.tar")


def test_a_user_missing_in_the_base_is_refused(tmp_path, bundle):
    made = Base(tmp_path / "base")
    made.layer(SYSTEM)
    with pytest.raises(InputError, match="unknown user ghost"):
        pack(bundle, made.index(made.image(user="ghost")), tmp_path / "a.tar")


def test_the_command_writes_the_container_and_prints_its_content(tmp_path, bundle, base, capsys):
    words = ["pack", str(bundle.path), "--base", str(base), "--out", str(tmp_path / "a.tar"), "--no-agent"]
    assert cli.main(words) == 0
    assert "release " in capsys.readouterr().err and (tmp_path / "a.tar").exists()
    assert cli.main([*words[:3], str(tmp_path / "nothing"), *words[4:]]) == 2
    assert "not a readable OCI image layout" in capsys.readouterr().err


def layered(folder, *layers, packed=False):
    made = Base(folder)
    for entries in layers:
        made.layer(entries, packed=packed)
    return made.index(made.image())


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"a/.wh.": b""}, r"invalid whiteout file \.wh\."),
        ({"/".join("x" * 3000): b""}, r"nested too deeply \(expected at most 100 folders"),
        ({"a/../../b": b""}, "path outside the image"),
    ],
)
def test_names_that_no_container_has_are_refused(tmp_path, bundle, entries, says):
    with pytest.raises(InputError, match=says):
        pack(bundle, layered(tmp_path / "base", SYSTEM, entries), tmp_path / "a.tar")
    assert not (tmp_path / "a.tar").exists()


def test_a_layer_that_unpacks_without_end_is_refused_early(tmp_path, bundle, monkeypatch):
    monkeypatch.setattr(oci, "_FREE_BYTES", 1 << 20)
    with pytest.raises(InputError, match=r"layer 1: too large when decompressed"):
        pack(bundle, layered(tmp_path / "base", {"zeros": bytes(50 << 20)}, packed=True), tmp_path / "a.tar")


def test_gzip_of_many_small_members_takes_no_time(tmp_path, bundle):
    """Each member copied the rest of the piece: a megabyte took five seconds."""
    made = Base(tmp_path / "base").layer(SYSTEM)
    small = gzip.compress(b"", 9)
    made.layers[0] = made.blob(small * 200_000, f"{LAYER}+gzip")
    made.ids[0] = f"sha256:{hashlib.sha256(b'').hexdigest()}"
    began = time.monotonic()
    with pytest.raises(InputError):
        pack(bundle, made.index(made.image()), tmp_path / "a.tar")
    assert time.monotonic() - began < 5


def test_a_disk_that_is_full_is_one_line(tmp_path, bundle, base, monkeypatch):
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(oci.tempfile, "TemporaryFile", Full)
    with pytest.raises(InputError, match=r"layer 1 cannot be unpacked into this folder \(no space left"):
        pack(bundle, base, tmp_path / "a.tar")
    assert not (tmp_path / "a.tar").exists()


def test_indexes_of_indexes_end(tmp_path, bundle):
    made = Base(tmp_path / "base").layer(SYSTEM)
    inner = made.blob({"schemaVersion": 2, "manifests": []}, INDEX)
    for _ in range(3):
        inner = made.blob({"schemaVersion": 2, "manifests": [inner] * 100}, INDEX)
    with pytest.raises(InputError, match="malformed index"):
        pack(bundle, made.index(inner), tmp_path / "a.tar")


def test_an_archive_that_is_compressed_is_refused(tmp_path, bundle, base):
    with tarfile.open(tmp_path / "base.tar.gz", "w:gz") as archive:
        archive.add(base, arcname=".")
    with pytest.raises(InputError, match=r"expected a folder or an uncompressed tar archive"):
        pack(bundle, tmp_path / "base.tar.gz", tmp_path / "a.tar")


@fuzz.counts(200, 20_000)
@pytest.mark.parametrize("part", ["layer", "config", "manifest", "index"])
def test_any_layout_is_packed_or_refused_in_one_line(tmp_path, bundle, part, count):
    """The digests of all mutants fit: a random change would never get past them."""
    made = Base(tmp_path / "base").layer(
        {**SYSTEM, "a/.wh.b": b"", "hard": ("hard", "usr/bin/python3.10")}, packed=False
    )
    image = made.image()
    made.index(image)
    paths = {name: made.folder / f"blobs/sha256/{digest[7:]}" for name, digest in (
        ("manifest", image["digest"]), ("layer", made.layers[0]["digest"]),
        ("config", json.loads((made.folder / f"blobs/sha256/{image['digest'][7:]}").read_text())["config"]["digest"]),
    )}  # fmt: skip
    good = (made.folder / "index.json" if part == "index" else paths[part]).read_bytes()

    def attempt(mutant):
        if part == "index":
            (made.folder / "index.json").write_bytes(mutant)
        elif part == "manifest":
            made.index(made.blob(mutant, MANIFEST))
        else:
            if part == "layer":
                made.layers, made.ids = [made.blob(mutant, LAYER)], [f"sha256:{hashlib.sha256(mutant).hexdigest()}"]
                made.index(made.image())
            else:
                config = made.blob(mutant, "application/vnd.oci.image.config.v1+json")
                manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "layers": made.layers, "config": config}
                made.index(made.blob(manifest, MANIFEST))
        pack(bundle, made.folder, tmp_path / "a.tar")

    mutants = fuzz.of_bytes(good, count) if part == "layer" else fuzz.of_json(json.loads(good), count)
    result = fuzz.run(attempt, mutants, refusals=(EdgepruneError,))
    assert result["accepted"] and result["refused"]
