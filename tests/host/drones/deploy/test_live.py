"""live: `edgeprune deploy` over real SSH to a "drone" that is this machine. Its agent is real, except for a FAKE
benchmark that takes no time and fails on request."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import PurePosixPath

import pytest
from edgeprune_device import cli, strict_json
from edgeprune_device.errors import InputError, SignatureError
from edgeprune_device.releases import Releases
from edgeprune_device.trust import keys
from edgeprune_device.trust.bundle import Bundle
from edgeprune_device.vision.evaluation import EvaluationSet
from fakes import models
from nacl.signing import SigningKey

from edgeprune.drones import ssh
from edgeprune.drones.deploy import DeploySettings, live, transfer

from .... import fuzz
from ...loopback import Drone

pytestmark = pytest.mark.needs("ssh", "sshd")
AGENT = """#!{python}
import os, sys, time
from pathlib import Path
from edgeprune_device import cli
from edgeprune_device.installation import measure as measuring
from edgeprune_device.errors import GateError

def measure(releases, bundle, folder, options):
    home = Path(os.environ["HOME"])
    with open(home / "measured", "a") as log:
        print(bundle.sha256, file=log)
    while (home / "slow").exists():
        time.sleep(0.05)
    if (home / "bad").exists():
        raise GateError("bench: mAP50-95 lost 0.2 against the host")
    return measuring.Measured("fp32", "ort", "0" * 64, {{"map50_95": 1.0, "host_map50_95": 1.0, "delta": 0.0}})

measuring.measure = measure
sys.exit(cli.main())
"""


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drone")
    (folder / "bin").mkdir()
    drone = Drone(folder / "board", f"{folder}/bin:/usr/bin:/bin")
    drone.agent = folder / "bin/edgeprune"
    drone.agent.write_text(AGENT.format(python=sys.executable))
    drone.agent.chmod(0o755)
    yield drone
    drone.close()


@pytest.fixture
def drone(board, monkeypatch, tmp_path):
    """A drone without releases, which trusts the host's key."""
    monkeypatch.setenv("EDGEPRUNE_SSH", f"ssh -F {board.config}")
    monkeypatch.setenv("EDGEPRUNE_HOME", str(tmp_path / "host"))
    shutil.rmtree(board.home)
    trusted = board.home / ".config/edgeprune/trusted"
    trusted.mkdir(parents=True)
    (trusted / "host.pub").write_text(bytes(keys.load_or_create().verify_key).hex() + "\n")
    board.proxy.budgets, board.proxy.silent, board.proxy.connections = [None], False, 0
    board.proxy.carried = board.proxy.sent = 0
    board.configure()
    board.known(board.folder / "ssh/host.pub")
    board.root = board.home / "opt"
    return board


@pytest.fixture
def make(tmp_path):
    """make(name, counter=…, int8=seed) -> a signed bundle of 1.3 MB with an INT8 file of 0.5 MB."""

    def make(name="demo", counter=1, int8=1, key=None, fp32_bytes=800_000):
        manifest = {
            "name": name, "created": "2026-11-24T12:00:00Z", "edgeprune_version": "0.1.0", "target": "cpu",
            "classes": ["x"], "imgsz": [64, 64], "letterbox": {"pad": 114, "stride": 32},
            "nms": {"conf": 0.25, "iou": 0.7, "max_det": 300}, "output": "raw", "engines": {}, "lineage": {},
            "models": {"fp32": {"payload": "model.fp32.onnx"}, "int8": {"payload": "model.int8.onnx"}},
            "evaluation": {"payload": "evaluation.zip", "pictures": 0, "boxes": 0}, "counter": counter,
        }  # fmt: skip
        payloads = {
            "model.fp32.onnx": models.unreadable(fp32_bytes, 0), "model.int8.onnx": models.unreadable(500_000, int8),
            "evaluation.zip": EvaluationSet.pack([]),
        }  # fmt: skip
        return Bundle.write(tmp_path / f"{name}.epb", manifest, payloads, key or keys.load_or_create())

    return make


@pytest.fixture
def edgeprune(capfd):
    def run(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return run


def deploy(edgeprune, bundle, drone, *arguments):
    return edgeprune("deploy", bundle.path, f"drone:{drone.root}", "--health", "0.1", *arguments)


def in_use(drone):
    """(the current release, its bundle verified)."""
    releases = Releases(drone.root)
    current = releases.current()
    bundle = Bundle.open(releases.folder(current) / "bundle.epb")
    assert bundle.sha256 == current.bundle_sha256
    return current


# --- destinations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, target, root",
    [
        ("drone", "drone", "/opt/edgeprune"),
        ("pilot@drone:2222", "pilot@drone:2222", "/opt/edgeprune"),
        ("pilot@drone:/data/x", "pilot@drone", "/data/x"),
        ("pilot@drone:2222:/data/x/", "pilot@drone:2222", "/data/x"),
        ("pilot@[fe80::1%eth0]:22:/data", "pilot@[fe80::1%eth0]:22", "/data"),
    ],
)
def test_a_destination_is_a_drone_with_an_optional_folder(text, target, root):
    assert live.where(text) == live.Where(target, PurePosixPath(root))


@pytest.mark.parametrize("text", ["drone:/", "drone://", "drone:/a/../b", "drone:x", "-x:/a", "drone:/a\x1b", "a b"])
def test_invalid_destinations_are_refused(text):
    with pytest.raises(InputError):
        live.where(text)


def test_every_destination_is_checked_before_the_first_is_changed(drone, make, edgeprune):
    bundle = make()
    code, _, err = edgeprune("deploy", bundle.path, f"drone:{drone.root}", "drone:x:y")
    assert code == 2 and "not a drone" in err and drone.proxy.connections == 0
    code, _, err = edgeprune("deploy", bundle.path, f"drone:{drone.root}", "./no/such.img")
    assert code == 2 and "no such folder or image" in err and drone.proxy.connections == 0


@pytest.mark.parametrize(
    "options, words",
    [
        (["--keep", "1"], "expected a whole number, at least 2"),
        (["--output", "-"], "--output: needs --source"),
        (["--source", "a", "--unit", "b"], "one of the two"),
        (["--root", "relative"], "absolute"),
        (["--root", "/"], "absolute"),
        (["--health", "-1"], "above 0"),
        (["--limit", "0"], "above 0"),
        (["--max-drop", "nan"], "expected a number in [0, 1]"),
    ],
)
def test_invalid_use_is_one_line(make, edgeprune, options, words):
    code, _, err = edgeprune("deploy", make().path, "nobody", *options)
    assert code == 2 and words in err and err.count("\n") == 1


@pytest.mark.parametrize("option", [["--partition", "APP"], ["--no-agent"]])
def test_options_for_images_are_refused_for_a_drone(drone, make, edgeprune, option):
    code, _, err = edgeprune("deploy", make().path, f"drone:{drone.root}", *option)
    assert (
        code == 2
        and f"{option[0]}: applies only to destinations of type" in err
        and err.count("\n") == 1
        and drone.proxy.connections == 0
    )


@pytest.mark.parametrize(
    "option",
    [["--unit", "x"], ["--health", "5"], ["--limit", "60"], ["--max-drop", "0.1"], ["--partition", "APP"]],
)
def test_options_for_drones_or_images_are_refused_for_a_folder(tmp_path, make, edgeprune, option):
    for name in ("etc", "usr"):
        (tmp_path / "rootfs" / name).mkdir(parents=True)
    code, _, err = edgeprune("deploy", make().path, tmp_path / "rootfs", "--no-agent", *option)
    assert (
        code == 2
        and f"{option[0]}: applies only to destinations of type" in err
        and not (tmp_path / "rootfs/opt").exists()
    )


def test_a_destination_given_twice_is_refused(drone, make, edgeprune):
    code, _, err = edgeprune("deploy", make().path, *[f"drone:{drone.root}"] * 2)
    assert code == 2 and "duplicate destination" in err and drone.proxy.connections == 0


def test_a_missing_precision_is_refused_before_anything_is_sent(drone, make, edgeprune):
    code, _, err = edgeprune("deploy", make().path, f"drone:{drone.root}", "--precision", "fp16")
    assert code == 2 and "no fp16 model in this bundle" in err and drone.proxy.connections == 0


def test_a_device_is_refused_with_advice(make, edgeprune):
    code, _, err = edgeprune("deploy", make().path, "/dev/null")
    assert code == 2 and "not a file; deploy to an image file, then write the image to the card" in err


# --- refused before anything is sent --------------------------------------------------------------------------
SAID = {
    "schema_version": 2, "root": "/opt/edgeprune", "agent": "0.1.0", "problem": None, "free_bytes": 10**9,
    "counters": {}, "current": None, "releases": [], "held": ["0" * 64], "trusted": [], "revoked": [], "systemd": False,
    "root_user": True, "service": None,
}  # fmt: skip


def answer(**fields):
    return b"/a/edgeprune\npython3\n" + strict_json.pretty({**SAID, **fields}).encode()


def test_the_agents_answers_are_checked():
    there = live.parse_there(answer(held=["0" * 64, "x", 5], service="a\x1b[2Jb"), "drone")
    assert (there.agent, there.python, there.held) == ("/a/edgeprune", "python3", ("0" * 64,))
    assert "\x1b" not in there.service
    for fields, words in [
        ({"schema_version": 1}, "unsupported agent.*edgeprune setup drone"),
        ({"free_bytes": -1}, "free_bytes"),
        ({"free_bytes": True}, "free_bytes"),
        ({"counters": 5}, "counters"),
        ({"counters": {"a": "5"}}, "counters"),
        ({"held": None}, "held"),
        ({"systemd": 1}, "systemd"),
    ]:
        with pytest.raises(InputError, match=words):
            live.parse_there(answer(**fields), "drone")
    for text, words in [
        (b"hello\n", "drone"),
        (b"/a\nrm -rf\n{}", "drone"),
        (
            answer().replace(b"/a/edgeprune", b"x", 1),
            r"invalid path of the agent \(found 'x', expected an absolute path\)",
        ),
        (answer().replace(b"python3", b"p\xff", 1), r"invalid path of Python \(found 'p\\udcff', expected"),
    ]:
        with pytest.raises(InputError, match=words):
            live.parse_there(text, "drone")


@pytest.mark.parametrize(
    "fields, settings, words",
    [
        ({"problem": "/opt: read-only"}, {}, "no bundle can be installed: /opt: read-only"),
        ({}, {}, "not trusted on the drone; trust this host's key with edgeprune setup drone"),
        ({"counters": "of its key"}, {"allow_untrusted": True}, "release of its key.*expected at least 7.*allow_older"),
        ({}, {"allow_untrusted": True, "source": "camera:0"}, "systemd does not run on the drone"),
        (
            {"systemd": True, "root_user": False},
            {"allow_untrusted": True, "source": "x"},
            "sudo asks for a password on the drone",
        ),
    ],
)
def test_impossible_deployments_are_refused_with_a_remedy(make, fields, settings, words):
    bundle = make(counter=6)
    if "counters" in fields:
        fields = {"counters": {bundle.key_fingerprint: 7, "SHA256:of another": 1 << 53}}
    with pytest.raises((InputError, SignatureError), match=words):
        live.check(live.parse_there(answer(**fields), "drone"), bundle, "drone", DeploySettings(**settings))


def test_a_revoked_key_is_always_refused(make):
    bundle = make(counter=6)
    there = live.parse_there(answer(revoked=[bundle.key_fingerprint]), "drone")
    with pytest.raises(SignatureError, match="a key that is revoked on the drone"):
        live.check(there, bundle, "drone", DeploySettings(allow_untrusted=True, allow_older=True))


# --- any answer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["fields", "bytes"])
@fuzz.counts(500, 50_000)
def test_any_answer_of_the_agent_is_read_or_refused_in_one_line(make, part, count):
    """All that a deployment derives from the answer before it sends anything."""
    bundle = make(counter=6)
    good = {
        **SAID, "counters": {bundle.key_fingerprint: 5}, "trusted": [bundle.key_fingerprint], "systemd": True,
        "current": "demo 0123456789abcdef", "service": "edgeprune.service",
    }  # fmt: skip
    settings, root = DeploySettings(source="camera:0"), PurePosixPath("/opt/edgeprune")
    head = b"/a/edgeprune\n/a/python\n"

    def attempt(mutant):
        there = live.parse_there(head + mutant if part == "fields" else mutant, "drone")
        assert there.agent[0] == "/" and (there.python == "python3" or there.python[0] == "/")
        lines = [there.version, there.current or "", there.service or "", there.problem or ""]
        live.check(there, bundle, "drone", settings)
        wanted = transfer.pieces(bundle, there.held)
        live._check_room(there, bundle, wanted, "drone")
        live._say_what(bundle, there, wanted, wanted, "drone", lines.append)
        lines += [*live._steps(there, bundle, settings), *live._options(root, settings)]
        assert all(line.isprintable() and len(line) < 4000 for line in lines)

    text = json.dumps(good).encode()
    mutants = fuzz.of_json(good, count) if part == "fields" else fuzz.of_bytes(head + text, count)
    result = fuzz.run(attempt, mutants)
    assert result["accepted"] and result["refused"]


@fuzz.counts(1000, 100_000)
def test_any_progress_of_the_agent_ends_in_a_release_or_in_one_line(make, count):
    bundle, to = make(counter=6), live.Where("drone", PurePosixPath("/opt/edgeprune"))
    there = live.parse_there(answer(), "drone")
    release = {"bundle_sha256": bundle.sha256, "name": "demo", "state": "trial", "precision": "fp32"}
    good = [
        {"step": "verify", "text": "demo"}, {"step": "measure", "text": "mAP50-95 12.3"},
        {"result": {"exit": 0, "error": None, "release": release, "current": bundle.sha256[:16]}},
    ]  # fmt: skip

    def attempt(mutant):
        def follow(*words, line, limit_s):
            for text in mutant.splitlines(keepends=True):
                line(text)

        said = []
        found = live._install(types.SimpleNamespace(follow=follow), bundle, there, to, DeploySettings(), said.append)
        assert isinstance(found, dict)
        assert all(line.isprintable() and len(line) < 2000 for line in said)

    lines = b"".join(json.dumps(line).encode() + b"\n" for line in good)
    bytes_, values = fuzz.of_bytes(lines, count), fuzz.of_json(good[2], count)
    result = fuzz.run(attempt, itertools.chain(bytes_, values))
    assert result["accepted"] and result["refused"]


def test_a_missing_agent_error_names_setup(drone, make, edgeprune):
    hidden = drone.agent.with_name("hidden")
    drone.agent.rename(hidden)
    try:
        code, _, err = deploy(edgeprune, make(), drone)
        assert code == 2 and "no edgeprune agent on the drone; install it with edgeprune setup drone" in err
        code, _, err = edgeprune("releases", f"drone:{drone.root}")
        assert code == 2 and "no edgeprune agent on the drone" in err
    finally:
        hidden.rename(drone.agent)


def test_an_old_agent_error_names_setup(drone, make, edgeprune):
    old = drone.home / ".local/share/edgeprune/agent/bin/edgeprune"
    old.parent.mkdir(parents=True)
    old.write_text("#!/bin/sh\necho \"edgeprune: error: unknown command '$1' (see edgeprune --help)\" >&2\nexit 2\n")
    old.chmod(0o755)
    code, _, err = deploy(edgeprune, make(), drone)
    assert code == 2 and "the agent is too old for this command; update it with edgeprune setup drone" in err


def test_nothing_is_sent_for_untrusted_or_old_bundles_or_a_full_drone(drone, make, edgeprune, monkeypatch):
    assert deploy(edgeprune, make(counter=9), drone)[0] == 0
    before = drone.proxy.sent
    code, _, err = deploy(edgeprune, make("old", counter=8), drone)
    assert code == 1 and "older than the newest confirmed release of its key on the drone" in err
    stranger = make("stranger", counter=10, key=SigningKey.generate())
    code, _, err = deploy(edgeprune, stranger, drone)
    assert code == 1 and "not trusted" in err
    code, _, err = deploy(edgeprune, stranger, drone, "--allow-untrusted", "--dry-run")
    assert code == 0 and "NOT trusted here" in err
    monkeypatch.setattr(live, "_SPARE_BYTES", 1 << 60)
    code, _, err = deploy(edgeprune, make("next", counter=11), drone)
    assert code == 2 and "MB needed); free some" in err
    assert drone.proxy.sent - before < 60_000 and not list((drone.root / "incoming").iterdir())


def test_an_unwritable_folder_is_refused_before_anything_is_sent(drone, make, edgeprune):
    """A file has the folder's name, because root, who may run this test, can write to every folder."""
    drone.root.write_text("")
    code, _, err = deploy(edgeprune, make(), drone)
    assert code == 2 and "no bundle can be installed" in err and "not a folder" in err
    assert drone.proxy.sent < 50_000


# --- installation ----------------------------------------------------------------------------------------------------


def test_a_second_bundle_sends_only_its_changed_parts(drone, make, edgeprune):
    first = make(counter=1)
    code, out, err = deploy(edgeprune, first, drone, "--json")
    assert code == 0, err
    outcome = json.loads(out)
    assert outcome["done"][f"drone:{drone.root}"]["identity"] == first.sha256[:16] and outcome["failed"] == []
    assert in_use(drone).bundle_sha256 == first.sha256
    assert drone.proxy.connections > 1
    assert not list((drone.root / "incoming").iterdir())
    before = drone.proxy.sent
    second = make(counter=2, int8=2)
    code, _, err = deploy(edgeprune, second, drone)
    assert code == 0, err
    assert in_use(drone).bundle_sha256 == second.sha256
    size = second.payloads["model.int8.onnx"].size_bytes
    there = second.manifest.size_bytes - size
    assert (
        f"of {second.envelope_bytes + second.manifest.size_bytes} to send, {there} are already in releases on the drone"
        in err
    )
    assert drone.proxy.sent - before < 1.10 * size, "see tests/rig/test_deploy.py for the same on a real link"
    # A repetition sends nothing and changes nothing.
    before = drone.proxy.sent
    code, _, err = deploy(edgeprune, second, drone)
    assert code == 0 and "already in use" in err and drone.proxy.sent - before < 40_000
    assert (drone.home / "measured").read_text().split() == [first.sha256, second.sha256]


def test_releases_and_rollback_work_from_the_host(drone, make, edgeprune):
    where = f"drone:{drone.root}"
    for counter in (1, 2):
        assert deploy(edgeprune, make(counter=counter, int8=counter), drone)[0] == 0
    first, second = (make(counter=counter, int8=counter).sha256[:16] for counter in (1, 2))
    code, out, _ = edgeprune("releases", where)
    assert code == 0 and re.search(rf"^\* +{second}", out, re.M) and first in out
    code, out, _ = edgeprune("releases", where, "--json")
    assert code == 0 and json.loads(out)["current"] == second
    code, out, err = edgeprune("rollback", where)
    assert code == 0 and first in out, err
    assert in_use(drone).identity == first
    code, _, err = edgeprune("rollback", where)
    assert code == 2 and "no good release to return to" in err and err.count("edgeprune: error: ") == 1


def test_a_dry_run_prints_the_size_and_changes_nothing(drone, make, edgeprune):
    bundle = make()
    code, _, err = deploy(edgeprune, bundle, drone, "--dry-run")
    assert code == 0 and not drone.root.exists()
    whole = bundle.envelope_bytes + bundle.manifest.size_bytes
    assert f"{whole} bytes of {whole} to send" in err
    for step in ("verify signature", "measure", f"switch from no release to {bundle.sha256[:16]}", "restart", "keep 3"):
        assert step in err
    assert deploy(edgeprune, bundle, drone)[0] == 0
    before = sorted(drone.root.rglob("*"))
    code, _, err = deploy(edgeprune, make(counter=2, int8=2), drone, "--dry-run")
    assert code == 0 and f"switch from {bundle.sha256[:16]}" in err and sorted(drone.root.rglob("*")) == before


def test_a_failed_gate_leaves_the_former_release_in_use(drone, make, edgeprune):
    first = make(counter=1)
    assert deploy(edgeprune, first, drone)[0] == 0
    (drone.home / "bad").touch()
    code, _, err = deploy(edgeprune, make(counter=2, int8=2), drone)
    assert code == 1 and "drone: bench: mAP50-95 lost 0.2" in err and err.count("edgeprune: error: ") == 1
    assert in_use(drone).bundle_sha256 == first.sha256
    # The drone still has the pieces, so the second attempt sends almost nothing.
    (drone.home / "bad").unlink()
    before = drone.proxy.sent
    code, _, err = deploy(edgeprune, make(counter=2, int8=2), drone)
    assert code == 0 and "arrived before" in err and drone.proxy.sent - before < 60_000


def test_the_first_failing_drone_ends_the_command(drone, make, edgeprune):
    places = [f"drone:{drone.home}/{name}" for name in ("a", "b", "c")]
    (drone.home / "b").write_text("")
    code, out, err = edgeprune("deploy", make().path, *places, "--health", "0.1", "--json")
    assert code == 2
    assert f"done: {places[0]}; failed: {places[1]}; not tried: {places[2]}" in err
    outcome = json.loads(out)
    assert [*outcome["done"]] == places[:1] and (outcome["failed"], outcome["not_tried"]) == (places[1:2], places[2:])
    assert (drone.home / "a/current").exists() and not (drone.home / "c").exists()


# --- broken links -------------------------------------------------------------------------------------------------


def test_a_broken_transfer_loses_one_piece_per_connection(drone, make, edgeprune, monkeypatch):
    bundle = make(fp32_bytes=5_000_000)
    drone.proxy.budgets = [None, 300_000, 400_000, 500_000, 200_000, 600_000, None]
    code, _, err = deploy(edgeprune, bundle, drone)
    assert code == 0, err
    assert in_use(drone).bundle_sha256 == bundle.sha256
    assert drone.proxy.sent < 5_500_000 + 5 * 3 * 65536 + 300_000


def test_the_transfer_continues_after_the_first_connection_broke(drone, make, edgeprune):
    bundle = make(fp32_bytes=5_000_000)
    drone.proxy.budgets = [900_000, 300_000, 300_000, 300_000, 300_000, 300_000, None]
    code, _, err = deploy(edgeprune, bundle, drone)
    assert code == 0, err
    assert in_use(drone).bundle_sha256 == bundle.sha256


def test_a_login_with_a_password_uses_one_connection(drone, make, edgeprune, tmp_path, monkeypatch):
    """The key has a passphrase, and ssh asks for it once."""
    key = tmp_path / "locked"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(key)], check=True)
    authorized = drone.folder / "ssh/authorized"
    former = authorized.read_text()
    authorized.write_text(key.with_suffix(".pub").read_text())
    ask = tmp_path / "ask"
    ask.write_text(f"#!/bin/sh\necho asked >>{tmp_path}/log\necho secret\n")
    ask.chmod(0o700)
    monkeypatch.setenv("SSH_ASKPASS", str(ask))
    monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "force")
    drone.configure(IdentityFile=str(key), BatchMode="no")
    try:
        bundle = make(fp32_bytes=5_000_000)
        code, _, err = deploy(edgeprune, bundle, drone)
    finally:
        authorized.write_text(former)
    assert code == 0, err
    assert (tmp_path / "log").read_text() == "asked\n"
    assert in_use(drone).bundle_sha256 == bundle.sha256


def start(bundle, drone, *arguments):
    """Start the command as the leader of a process group, because Ctrl-C at a terminal reaches the whole group."""
    argv = [sys.executable, "-m", "edgeprune", "deploy", str(bundle.path), f"drone:{drone.root}", "--health", "0.1"]
    return subprocess.Popen([*argv, *arguments], stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait(what, seconds=30):
    deadline = time.monotonic() + seconds
    while not (answer := what()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return answer


@pytest.mark.usefixtures("own_signals")
def test_the_same_command_continues_after_ctrl_c_during_the_transfer(drone, make, edgeprune):
    bundle = make(fp32_bytes=20_000_000)
    drone.proxy.slow = True
    process = start(bundle, drone)
    incoming = drone.root / "incoming" / bundle.sha256
    wait(lambda: len(list(incoming.glob("*.?????"))) > 40)
    os.killpg(process.pid, signal.SIGINT)
    err = process.communicate(timeout=20)[1]
    drone.proxy.slow = False
    assert process.returncode == 130, err
    assert "nothing was changed on the drone, and the same command continues" in err and "Traceback" not in err
    assert not (drone.root / "current").exists()
    wait(lambda: drone.proxy.connections_open() == 0)  # the bytes under way have arrived or are lost
    arrived = sum(path.stat().st_size for path in incoming.iterdir() if not path.name.endswith(".part"))
    before = drone.proxy.sent
    code, _, err = deploy(edgeprune, bundle, drone)
    assert code == 0, err
    assert int(re.search(r"(\d+) arrived before", err)[1]) >= arrived - 65536
    assert drone.proxy.sent - before < 1.05 * (20_500_000 - arrived) + 200_000
    assert in_use(drone).bundle_sha256 == bundle.sha256


def test_a_broken_link_does_not_stop_the_drones_measurement(drone, make):
    bundle = make()
    (drone.home / "slow").touch()
    process = start(bundle, drone)
    wait(lambda: (drone.home / "measured").exists())
    drone.proxy.hang_up()
    wait(lambda: drone.proxy.connections_open() > 0)
    (drone.home / "slow").unlink()
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 0, err
    assert "trying again" in err and err.count(" verify ") == 1  # repeated lines are not printed again
    assert (drone.home / "measured").read_text().split() == [bundle.sha256]
    assert in_use(drone).state == "good"


@pytest.mark.usefixtures("own_signals")
def test_ctrl_c_does_not_stop_the_installation_and_the_same_command_follows_it(drone, make, edgeprune):
    bundle = make()
    (drone.home / "slow").touch()
    process = start(bundle, drone)
    wait(lambda: (drone.home / "measured").exists())
    os.killpg(process.pid, signal.SIGINT)
    err = process.communicate(timeout=20)[1]
    assert process.returncode == 130 and "the installation continues on the drone" in err, err
    other = make("other", counter=2, int8=2)
    code, _, err = deploy(edgeprune, other, drone)
    assert code == 2 and "another installation is in progress" in err
    threading.Timer(1, (drone.home / "slow").unlink).start()
    code, _, err = deploy(edgeprune, bundle, drone)
    assert code == 0, err
    assert in_use(drone).bundle_sha256 == bundle.sha256
    assert (drone.home / "measured").read_text().split() == [bundle.sha256]


def test_pieces_damaged_by_a_power_cut_are_sent_again(drone, make, edgeprune):
    bundle = make(fp32_bytes=5_000_000)
    drone.proxy.slow = True
    process = start(bundle, drone)
    incoming = drone.root / "incoming" / bundle.sha256
    wait(lambda: len(list(incoming.glob("*.?????"))) > 20)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=20)
    drone.proxy.slow = False
    time.sleep(0.5)
    names = sorted(path for path in incoming.iterdir() if re.fullmatch(r"\w{64}\.\d{5}", path.name))
    names[0].write_bytes(b"")
    names[1].write_bytes(b"\0" * names[1].stat().st_size)
    code, _, err = deploy(edgeprune, bundle, drone)
    assert code == 0, err
    assert in_use(drone).bundle_sha256 == bundle.sha256


def test_pieces_damaged_by_the_card_are_sent_again(drone, make, edgeprune, monkeypatch):
    bundle, real, spoilt = make(), transfer.send, []

    def send(*arguments):
        real(*arguments)
        if not spoilt:
            spoilt.append(sorted((drone.root / "incoming" / bundle.sha256).glob(f"{'?' * 64}.00002"))[0])
            spoilt[0].write_bytes(b"\0" * spoilt[0].stat().st_size)

    monkeypatch.setattr(transfer, "send", send)
    code, _, err = deploy(edgeprune, bundle, drone)
    assert code == 0, err
    assert "pieces were damaged on the drone; sending them again" in err and spoilt
    assert in_use(drone).bundle_sha256 == bundle.sha256


def test_a_full_drone_is_reported_and_the_deployment_continues_with_space(drone, make, edgeprune, monkeypatch):
    drone.root.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(drone.root)], stderr=subprocess.DEVNULL
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        bundle = make(fp32_bytes=5_000_000)
        code, _, err = deploy(edgeprune, bundle, drone)
        assert code == 2 and "MB needed); free some" in err and drone.proxy.sent < 60_000
        monkeypatch.setattr(live, "_check_room", lambda *_: None)  # the disk fills up during the transfer
        code, _, err = deploy(edgeprune, bundle, drone)
        assert code == 2 and "the drone's disk is full" in err and "run the same command again" in err
        assert not (drone.root / "current").exists()
        subprocess.run(["mount", "-o", "remount,size=100m", str(drone.root)], check=True)
        before = drone.proxy.sent
        code, _, err = deploy(edgeprune, bundle, drone)
        assert code == 0, err
        assert drone.proxy.sent - before < 4_500_000
        assert in_use(drone).bundle_sha256 == bundle.sha256
    finally:
        subprocess.run(["umount", "-l", str(drone.root)], check=True)


def test_an_answer_to_another_piece_is_refused(drone, make, monkeypatch):
    monkeypatch.setattr(transfer, "_SCRIPT", "head -c 10 >/dev/null; echo something; cat >/dev/null")
    bundle = make()
    with ssh.Link("drone") as link, pytest.raises(InputError, match="found 'something', expected"):
        transfer.send(link, bundle.path, transfer.pieces(bundle, ()), "python3", "/nowhere")
