"""Tests of `edgeprune unpack`, and of all commands that open a bundle: a malicious bundle leaves no file."""

import json
import os
import stat
from pathlib import Path

import pytest
from edgeprune_device import cli
from edgeprune_device.commands.unpack import unpack
from edgeprune_device.errors import InputError, SignatureError
from edgeprune_device.trust import bundle as bundle_module
from edgeprune_device.trust import keys
from edgeprune_device.trust.bundle import Bundle
from edgeprune_device.vision.evaluation import EvaluationSet
from fakes import hostile
from fakes.hostile import KEY


@pytest.fixture(autouse=True)
def there(tmp_path, monkeypatch, home):
    """The folder in which the commands run. The key is trusted, and the files outside are watched."""
    keys.trust("host", KEY.verify_key)
    keys.load_or_create("report")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("as it was")
    folder = tmp_path / "there"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def edgeprune(capsys, *args):
    code = cli.main(list(map(str, args)))
    out, err = capsys.readouterr()
    assert "Traceback" not in err and "bug" not in err
    return code, out, err


def tree(folder):
    """{path: kind, mode, and content or target} of everything below the folder."""
    entries = {}
    for path in sorted(Path(folder).rglob("*")):
        mode = path.lstat().st_mode
        content = os.readlink(str(path)) if stat.S_ISLNK(mode) else path.read_bytes() if stat.S_ISREG(mode) else None
        entries[str(path.relative_to(folder))] = (stat.S_IFMT(mode), stat.S_IMODE(mode), content)
    return entries


def test_unpack_writes_the_payloads_byte_for_byte_and_the_manifest(capsys, bundle, there, tiny_onnx):
    code, out, err = edgeprune(capsys, "unpack", bundle.path)
    assert code == 0 and err == "" and out == f"tiny: 2 files and manifest.json, signed by {bundle.key_fingerprint}\n"
    assert sorted(os.listdir(".")) == ["tiny"]
    assert sorted(os.listdir("tiny")) == ["evaluation.zip", "manifest.json", "model.fp32.onnx"]
    assert Path("tiny/model.fp32.onnx").read_bytes() == tiny_onnx
    assert json.loads(Path("tiny/manifest.json").read_text()) == bundle.manifest.to_json()
    assert [stat.S_IMODE(os.stat("tiny/" + n).st_mode) for n in ("", "model.fp32.onnx")] == [0o755, 0o644]
    before = tree(there)
    code, _, err = edgeprune(capsys, "unpack", bundle.path)
    assert code == 2 and "not empty" in err and err.count("\n") == 1 and tree(there) == before


def test_unpack_accepts_an_empty_folder_and_finds_the_only_bundle(capsys, bundle, there):
    os.rename(str(bundle.path), "tiny.epb")
    os.mkdir("here")
    assert edgeprune(capsys, "unpack", "--out", "here")[0] == 0
    assert len(os.listdir("here")) == 3


def test_untrusted_bundle_needs_the_option_and_is_marked(capsys, bundle, home):
    (home / "keys" / "host.key").unlink()
    code, _, err = edgeprune(capsys, "unpack", bundle.path)
    assert code == 1 and "not trusted on this machine" in err and not os.path.exists("tiny")
    code, out, _ = edgeprune(capsys, "unpack", bundle.path, "--allow-untrusted")
    assert code == 0 and "NOT TRUSTED" in out and os.path.exists("tiny")


def test_bundle_of_a_revoked_key_is_always_refused(capsys, bundle, home):
    keys.renew()
    keys.revoke(bundle.key_fingerprint)
    for args in ([], ["--allow-untrusted"]):
        for command in ("unpack", "info", "bench", "engine"):
            code, out, err = edgeprune(capsys, command, bundle.path, *args)
            assert code == 1 and "is revoked here" in err and out == "" and not os.path.exists("tiny")


def links(there, outside):
    """Prepare obstacles at the destination: {name of the folder: what is there}."""
    (there / "to-folder").symlink_to(outside)
    (there / "to-file").symlink_to(outside / "precious")
    (there / "to-nothing").symlink_to(outside / "new")
    (there / "file").write_text("a file")
    for name, target in (("inside", "precious"), ("dangling", "new")):
        (there / name).mkdir()
        (there / name / "model.fp32.onnx").symlink_to(outside / target)
    (there / "manifest").mkdir()
    (there / "manifest" / "manifest.json").symlink_to(outside / "precious")
    os.mkfifo(str(there / "pipe"))
    return ["to-folder", "to-file", "to-nothing", "file", "inside", "dangling", "manifest", "pipe"]


def test_links_prepared_at_the_destination_are_not_followed(capsys, bundle, there, tmp_path):
    names = links(there, tmp_path / "outside")
    watched = tree(tmp_path)
    for name in names:
        code, out, err = edgeprune(capsys, "unpack", bundle.path, "--out", name)
        assert code == 2 and out == "" and err.count("\n") == 1 and name in err, name
        assert tree(tmp_path) == watched


def test_link_created_during_unpacking_is_not_followed(bundle, tmp_path):
    (tmp_path / "new").symlink_to(tmp_path / "outside" / "precious")
    with pytest.raises(InputError, match="new: cannot be created"):
        bundle.extract("model.fp32.onnx", tmp_path / "new")
    assert (tmp_path / "outside" / "precious").read_text() == "as it was"


def test_file_created_at_the_destination_in_the_meantime_is_kept(bundle, there, monkeypatch):
    real = Bundle.extract

    def extract(self, name, path):
        real(self, name, path)
        if not os.path.lexists("out"):
            os.symlink("../outside", "out")

    monkeypatch.setattr(Bundle, "extract", extract)
    with pytest.raises(InputError, match="out: already exists"):
        unpack(bundle, Path("out"))
    assert os.readlink("out") == "../outside" and os.listdir("../outside") == ["precious"]
    assert os.listdir(".") == ["out"]


def test_bundle_changed_between_check_and_copy_leaves_nothing(bundle, there):
    data = bytearray(bundle.path.read_bytes())
    data[-1] ^= 1
    bundle.path.write_bytes(data)
    with pytest.raises(SignatureError, match=r"evaluation\.zip: does not match"):
        unpack(bundle, Path("out"))
    assert os.listdir(".") == []
    os.truncate(str(bundle.path), 300)
    with pytest.raises(SignatureError, match="does not match"):
        bundle.extract("model.fp32.onnx", "a")
    assert os.listdir(".") == []


def test_full_disk_leaves_nothing(capsys, bundle, there, monkeypatch):
    def full(chunks, out):
        yield next(iter(chunks))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle_module, "_copied", full)
    code, _, err = edgeprune(capsys, "unpack", bundle.path)
    assert code == 2 and "no space left" in err and err.count("\n") == 1 and os.listdir(".") == []


def test_missing_parent_folder_is_an_error(capsys, bundle, there):
    code, _, err = edgeprune(capsys, "unpack", bundle.path, "--out", "a/b")
    assert code == 2 and "a/b: cannot be created (no such file" in err and os.listdir(".") == []


@pytest.mark.parametrize("name", ["manifest.json", "MANIFEST.json"])
def test_payload_named_like_the_manifest_is_refused(capsys, tmp_path, there, name):
    path = hostile.seal(tmp_path / "a.epb", hostile.manifest([hostile.entry(name)]), b"x")
    code, _, err = edgeprune(capsys, "unpack", path)
    assert code == 2 and "the name of unpack's own file, manifest.json" in err and os.listdir(".") == []


@pytest.mark.parametrize("what", hostile.MANIFESTS)
def test_no_command_writes_anything_for_a_malicious_signed_bundle(capsys, tmp_path, there, what):
    path = hostile.seal(tmp_path / "a.epb", *hostile.MANIFESTS[what])
    before = tree(tmp_path)
    for args in (["unpack", path], ["unpack", path, "--out", "release"], ["info", path], ["bench", path, "--no-spool"],
                 ["engine", path]):  # fmt: skip
        code, out, err = edgeprune(capsys, *args, *([] if args[0] == "info" else ["--allow-untrusted"]))
        assert code in (1, 2) and out == "" and err.count("\n") == 1 and len(err) < 700
        assert err.startswith(f"edgeprune: error: {path}: ")
    assert tree(tmp_path) == before
    assert not os.path.lexists("/evil") and not os.path.lexists("/tmp/evil")


@pytest.mark.parametrize("what", hostile.ZIPS)
def test_hostile_evaluation_set_is_one_line_and_unpacks_as_a_file(capsys, tmp_path, there, manifest, tiny_onnx, what):
    data = hostile.ZIPS[what]
    payloads = {"model.fp32.onnx": tiny_onnx, "evaluation.zip": data}
    path = Bundle.write(tmp_path / "a.epb", manifest, payloads, KEY).path
    before = tree(tmp_path)
    code, out, err = edgeprune(capsys, "bench", path, "--runtime", "null", "--no-spool", "--seconds", "0.05")
    assert code in (1, 2) and out == "" and err.splitlines()[-1].startswith(f"edgeprune: error: {path}: evaluation.zip")
    assert tree(tmp_path) == before
    code, _, _ = edgeprune(capsys, "unpack", path, "--out", "release")
    assert code == 0 and Path("release/evaluation.zip").read_bytes() == data
    assert sorted(os.listdir("release")) == ["evaluation.zip", "manifest.json", "model.fp32.onnx"]
    new = set(tree(tmp_path)) - set(before)
    assert all(name.startswith("there/release") for name in new)


def test_valid_variant_of_the_hostile_bundles_is_accepted(
    capsys, tmp_path, there, manifest, tiny_onnx, labelled_pictures
):
    payloads = {"model.fp32.onnx": tiny_onnx, "evaluation.zip": EvaluationSet.pack(labelled_pictures)}
    path = Bundle.write(tmp_path / "a.epb", manifest, payloads, KEY).path
    for args in (
        ["bench", path, "--runtime", "null", "--no-spool", "--seconds", "0.05"],
        ["unpack", path],
        ["info", path],
    ):
        assert edgeprune(capsys, *args)[0] == 0
    assert Path("tiny/evaluation.zip").read_bytes() == payloads["evaluation.zip"]
