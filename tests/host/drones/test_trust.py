"""Trust in bundles from the host's side: the counter, and lost or stolen keys."""

import json
import re
import time

import numpy as np
import onnx
import pytest
from edgeprune_device import cli
from edgeprune_device.errors import InputError
from edgeprune_device.trust import keys
from edgeprune_device.trust.bundle import Bundle
from edgeprune_device.vision.evaluation import EvaluationSet
from onnx import TensorProto, helper, numpy_helper

from edgeprune.workflow import pack


@pytest.fixture
def model(tmp_path):
    """An ONNX file with an opset that `pack` can read and the output of a detector with one class."""
    image, output = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("images", [1, 3, 10, 14]), ("output0", [1, 5, 84]))
    )
    shape = numpy_helper.from_array(np.array([1, 5, 84]), "shape")
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["images", "shape"], ["output0"])], "g", [image], [output], [shape]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), str(tmp_path / "m.onnx"))
    return tmp_path / "m.onnx"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """be("laptop"): this process acts as that machine's user from now on."""

    def be(name):
        monkeypatch.setenv("EDGEPRUNE_HOME", str(tmp_path / name))
        return tmp_path / name

    be("laptop")
    return be


def packed(path, model):
    return pack.pack(
        path,
        pack.Contents(
            name="small",
            target="cpu",
            task="detect",
            names=["x"],
            imgsz=64,
            models={"fp32": {}},
            files={"fp32": model},
            engines={},
            plans={},
            evaluation=EvaluationSet.pack([]),
            described={"pictures": 0, "boxes": 0},
            lineage={},
        ),
    )


def edgeprune(capsys, *args):
    code = cli.main(list(map(str, args)))
    out, err = capsys.readouterr()
    return code, out, err


def test_each_bundle_has_a_higher_counter_and_info_shows_it(capsys, tmp_path, model, machine, monkeypatch):
    before = int(time.time())
    first = packed(tmp_path / "a.epb", model)
    assert before <= first.manifest.counter <= time.time()
    monkeypatch.setattr(time, "time", lambda: 0.0)  # the clock was set back
    second = packed(tmp_path / "a.epb", model)
    assert second.manifest.counter == first.manifest.counter + 1
    code, out, _ = edgeprune(capsys, "info", tmp_path / "a.epb")
    assert code == 0 and re.search(rf"^  counter +{second.manifest.counter}$", out, re.M)
    code, out, _ = edgeprune(capsys, "info", tmp_path / "a.epb", "--json")
    assert json.loads(out)["manifest"]["counter"] == second.manifest.counter


def test_an_unwritable_bundle_uses_up_only_its_counter(tmp_path, model, machine):
    first = packed(tmp_path / "a.epb", model).manifest.counter
    with pytest.raises(InputError, match="cannot be written"):
        packed(tmp_path / "nowhere" / "a.epb", model)
    assert packed(tmp_path / "b.epb", model).manifest.counter >= first + 2


def test_a_stolen_key_is_replaced_without_losing_a_drone(capsys, tmp_path, model, machine):
    """The steps of docs/deploying.md: make a key, trust it on the drone, sign a bundle with it, revoke the old key."""
    thief = machine("laptop")
    old = packed(tmp_path / "old.epb", model)
    assert edgeprune(capsys, "keys", "export", tmp_path / "laptop.pub")[0] == 0
    machine("drone")
    assert edgeprune(capsys, "keys", "trust", tmp_path / "laptop.pub")[0] == 0
    assert edgeprune(capsys, "info", old.path)[0] == 0

    stolen = (thief / "keys" / "host.key").read_bytes()
    machine("laptop")
    code, out, _ = edgeprune(capsys, "keys", "make")
    assert code == 0 and f"edgeprune keys revoke {old.key_fingerprint}" in out
    new = packed(tmp_path / "new.epb", model)
    assert new.key_fingerprint != old.key_fingerprint and new.manifest.counter >= old.manifest.counter
    assert edgeprune(capsys, "keys", "export", tmp_path / "laptop-2.pub")[0] == 0
    machine("drone")
    code, _, err = edgeprune(capsys, "info", new.path)
    assert code == 1 and "not trusted on this machine" in err
    assert edgeprune(capsys, "keys", "trust", tmp_path / "laptop-2.pub")[0] == 0
    assert [edgeprune(capsys, "info", bundle.path)[0] for bundle in (new, old)] == [0, 0]
    for name in ("drone", "laptop"):
        machine(name)
        assert edgeprune(capsys, "keys", "revoke", old.key_fingerprint)[0] == 0
        assert edgeprune(capsys, "info", new.path)[0] == 0
        for allowed in ([], ["--allow-untrusted"]):
            code, out, err = edgeprune(capsys, "info", old.path, *allowed)
            assert code == 1 and out == "" and "is revoked here" in err

    # The thief still signs bundles, with the highest possible counter.
    home = machine("thief")
    (home / "keys").mkdir(parents=True)
    (home / "keys" / "host.key").write_bytes(stolen)
    (home / "keys" / "host.key").chmod(0o600)
    (home / "keys" / "host.counter").write_text("9007199254740000\n")
    evil = packed(tmp_path / "evil.epb", model)
    assert evil.manifest.counter == 9007199254740001 and Bundle.open(evil.path).trusted
    machine("drone")
    code, _, err = edgeprune(capsys, "info", evil.path, "--allow-untrusted")
    assert code == 1 and "is revoked here" in err
    # A drone that never knew the key revokes it by its fingerprint.
    machine("another drone")
    assert edgeprune(capsys, "keys", "revoke", old.key_fingerprint)[0] == 0
    assert edgeprune(capsys, "info", evil.path, "--allow-untrusted")[0] == 1


def test_a_lost_host_key_only_needs_a_new_key_on_the_drone(capsys, tmp_path, model, machine):
    packed(tmp_path / "old.epb", model)
    (machine("laptop") / "keys" / "host.key").unlink()
    assert edgeprune(capsys, "info", tmp_path / "old.epb")[0] == 1  # the host no longer knows the old key either
    new = packed(tmp_path / "new.epb", model)
    (key,) = keys.own().values()
    machine("drone")
    keys.trust("laptop", key)
    assert edgeprune(capsys, "info", new.path)[0] == 0
