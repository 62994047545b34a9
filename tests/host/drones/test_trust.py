"""Whose bundles run on a drone, from the host's side: its counter, and what becomes of a key that is lost or stolen."""

import json
import re
import time

import onnx
import pytest
from edgeprune_device import cli
from edgeprune_device.errors import InputError
from edgeprune_device.trust import keys
from edgeprune_device.trust.bundle import Bundle
from edgeprune_device.vision.evaluation import EvaluationSet
from onnx import TensorProto, helper

from edgeprune.workflow import pack


@pytest.fixture
def model(tmp_path):
    """An ONNX file that `pack` can read the opset of, and whose output is a detector's of one class."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 5, 84]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", value[:1], value[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), str(tmp_path / "m.onnx"))
    return tmp_path / "m.onnx"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """be("laptop"): from now on this process is that machine's user."""

    def be(name):
        monkeypatch.setenv("EDGEPRUNE_HOME", str(tmp_path / name))
        return tmp_path / name

    be("laptop")
    return be


def packed(path, model):
    return pack.pack(
        path, name="small", target="cpu", names=["x"], imgsz=64, models={"fp32": {}},
        files={"fp32": model}, engines={}, plans={}, evaluation=EvaluationSet.pack([]),
        described={"pictures": 0, "boxes": 0}, lineage={},
    )  # fmt: skip


def edgeprune(capsys, *args):
    code = cli.main(list(map(str, args)))
    out, err = capsys.readouterr()
    return code, out, err


def test_each_bundle_counts_higher_and_info_shows_it(capsys, tmp_path, model, machine, monkeypatch):
    before = int(time.time())
    first = packed(tmp_path / "a.epb", model)
    assert before <= first.manifest.counter <= time.time()
    monkeypatch.setattr(time, "time", lambda: 0.0)  # the clock went back
    second = packed(tmp_path / "a.epb", model)
    assert second.manifest.counter == first.manifest.counter + 1
    code, out, _ = edgeprune(capsys, "info", tmp_path / "a.epb")
    assert code == 0 and re.search(rf"^  counter +{second.manifest.counter}$", out, re.M)
    code, out, _ = edgeprune(capsys, "info", tmp_path / "a.epb", "--json")
    assert json.loads(out)["manifest"]["counter"] == second.manifest.counter


def test_a_bundle_that_could_not_be_written_costs_only_its_counter(tmp_path, model, machine):
    first = packed(tmp_path / "a.epb", model).manifest.counter
    with pytest.raises(InputError, match="cannot be written"):
        packed(tmp_path / "nowhere" / "a.epb", model)
    assert packed(tmp_path / "b.epb", model).manifest.counter >= first + 2


def test_a_stolen_key_is_replaced_without_losing_a_drone(capsys, tmp_path, model, machine):
    """What docs/deploying.md says: make, trust on the drone, a bundle of the new key, revoke on both."""
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
    assert new.key_fingerprint != old.key_fingerprint and new.manifest.counter > old.manifest.counter
    assert edgeprune(capsys, "keys", "export", tmp_path / "laptop-2.pub")[0] == 0
    machine("drone")
    code, _, err = edgeprune(capsys, "info", new.path)
    assert code == 1 and "not trusted here" in err
    assert edgeprune(capsys, "keys", "trust", tmp_path / "laptop-2.pub")[0] == 0
    assert [edgeprune(capsys, "info", bundle.path)[0] for bundle in (new, old)] == [0, 0]
    for name in ("drone", "laptop"):
        machine(name)
        assert edgeprune(capsys, "keys", "revoke", old.key_fingerprint)[0] == 0
        assert edgeprune(capsys, "info", new.path)[0] == 0
        for allowed in ([], ["--allow-untrusted"]):
            code, out, err = edgeprune(capsys, "info", old.path, *allowed)
            assert code == 1 and out == "" and "was revoked here" in err

    # The thief signs on, with the highest counter there is.
    home = machine("thief")
    (home / "keys").mkdir(parents=True)
    (home / "keys" / "host.key").write_bytes(stolen)
    (home / "keys" / "host.counter").write_text("9007199254740000\n")
    evil = packed(tmp_path / "evil.epb", model)
    assert evil.manifest.counter == 9007199254740001 and Bundle.open(evil.path).trusted
    machine("drone")
    code, _, err = edgeprune(capsys, "info", evil.path, "--allow-untrusted")
    assert code == 1 and "was revoked here" in err
    # And a drone that never knew that key is told of a fingerprint.
    machine("another drone")
    assert edgeprune(capsys, "keys", "revoke", old.key_fingerprint)[0] == 0
    assert edgeprune(capsys, "info", evil.path, "--allow-untrusted")[0] == 1


def test_a_lost_host_key_needs_a_new_one_on_the_drone_and_nothing_else(capsys, tmp_path, model, machine):
    packed(tmp_path / "old.epb", model)
    (machine("laptop") / "keys" / "host.key").unlink()
    assert edgeprune(capsys, "info", tmp_path / "old.epb")[0] == 1  # nor does the host itself know it any more
    new = packed(tmp_path / "new.epb", model)
    (key,) = keys.own().values()
    machine("drone")
    keys.trust("laptop", key)
    assert edgeprune(capsys, "info", new.path)[0] == 0
