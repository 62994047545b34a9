"""setup: `edgeprune setup` over real SSH to a "drone" that is this machine with a separate home and Python."""

import glob
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from edgeprune_device import cli
from edgeprune_device.errors import InputError, SignatureError
from edgeprune_device.trust import keys
from nacl.signing import SigningKey

from edgeprune.drones import setup, wheels
from edgeprune.drones.ssh import Link, RemoteError

from ..loopback import Drone
from ..wheelhouse import make_wheel

pytestmark = pytest.mark.needs("ssh", "sshd")
OLD = next(iter(glob.glob(os.path.expanduser("~/.pyenv/versions/3.8.*/bin"))), None)


@pytest.fixture(scope="module")
def pythons(tmp_path_factory):
    """A folder with the drone's "python3", which is 3.8 if this machine has it."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "python3").symlink_to(f"{OLD}/python3.8" if OLD else sys.executable)
    return folder


@pytest.fixture
def drone(tmp_path, pythons, monkeypatch):
    board = Drone(tmp_path / "drone", f"{pythons}:/usr/bin:/bin")
    monkeypatch.setenv("EDGEPRUNE_SSH", f"ssh -F {board.config}")
    monkeypatch.setenv("EDGEPRUNE_HOME", str(tmp_path / "host"))
    monkeypatch.setenv("EDGEPRUNE_REPORTS", str(tmp_path / "reports"))
    yield board
    board.close()


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """Put the wheels for that drone into the cache; skip if pip's registry does not answer."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "pycparser", "-d"]
    done = subprocess.run([*command, str(tmp_path_factory.mktemp("asked"))], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the package registry does not answer: {done.stderr.strip()[-200:]}")


@pytest.fixture
def steady(monkeypatch, tmp_path):
    """Build the device package's wheel once, because the checkout may change while the test runs."""
    wheel = wheels.device_wheel(tmp_path)
    monkeypatch.setattr(wheels, "device_wheel", lambda folder: wheel)


def edgeprune(capfd, *args):
    code = cli.main(list(args))
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    return code, out, err


def test_setup_installs_the_agent_over_a_breaking_link_and_a_second_run_sends_nothing(
    drone, registry, steady, capfd, pythons
):
    # Break within the first wheels: the number of further wheels depends on the drone's Python.
    drone.proxy.budgets = [600_000, 900_000, None]
    code, out, err = edgeprune(capfd, "setup", "drone")
    assert code == 0, err
    assert err.count("trying again") == 2 and "sending" in err
    fingerprint = re.search(r"^report key  (SHA256:\S+), enrolled here as drone$", out, re.M)[1]
    public = (drone.home / ".config/edgeprune/keys/report.pub").read_text().strip()
    assert keys.enrolled() == {fingerprint: ("drone", keys.public(public, "test"))}
    assert stat.S_IMODE((drone.home / ".config/edgeprune/keys/report.key").stat().st_mode) == 0o600
    (trusted,) = (drone.home / ".config/edgeprune/trusted").iterdir()
    assert keys.read_public(trusted) == keys.load_or_create().verify_key
    # The agent works there under its short name and in its own Python.
    done = drone.ssh(".local/bin/edgeprune info --json")
    info = json.loads(done.stdout)
    assert keys.fingerprint(keys.load_or_create().verify_key) in info["trusted_keys"]
    if OLD:
        assert info["machine"]["python"].startswith("3.8.")
    agent = drone.home / ".local/share/edgeprune/agent"
    assert "include-system-site-packages = true" in (agent / "pyvenv.cfg").read_text()
    assert re.search(r"^ok +numpy", out, re.M) and re.search(r"^missing +inference", out, re.M)
    assert "a part that it needs is missing on the drone" in err
    # A second run sends and changes nothing.
    first, carried = os.readlink(agent), drone.proxy.carried
    started = time.monotonic()
    code, out, err = edgeprune(capfd, "setup", "drone")
    assert code == 0 and "sending" not in err and "known here as drone" in out
    assert os.readlink(agent) == first and drone.proxy.carried - carried < 500_000
    assert time.monotonic() - started < 30
    assert [p.name for p in agent.parent.glob("agent-*")] == [first]


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Empty wheels in place of the real ones, to test their handling."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    fetched = tmp_path / "fetched"
    pip = next(iter(glob.glob(str(Path(os.__file__).parent / "ensurepip/_bundled/pip-*.whl"))), None)
    if pip is None:
        pytest.skip("this Python has no ensurepip")

    def use(content):
        """Make the agent a package whose modules consist of `content`."""
        shutil.rmtree(fetched, ignore_errors=True)
        fetched.mkdir()
        modules = {
            "numpy/__init__.py": "", "PIL/__init__.py": "", "PIL/Image.py": "", "nacl/__init__.py": "",
            "nacl/signing.py": "", "edgeprune_device/__init__.py": "", "edgeprune_device/reports/report.py": content,
            "edgeprune_device/cli.py": FAKE_CLI,
        }  # fmt: skip
        wheel = make_wheel(fetched, "agent-1.0")
        with wheels.zipfile.ZipFile(wheel, "a") as opened:
            for name, text in modules.items():
                opened.writestr(name, text)
            opened.writestr(
                "agent-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            opened.writestr(
                "agent-1.0.dist-info/entry_points.txt", "[console_scripts]\nedgeprune = edgeprune_device.cli:main\n"
            )
            opened.writestr("agent-1.0.dist-info/RECORD", "")
        monkeypatch.setattr(wheels, "device_wheel", lambda folder: wheel)
        monkeypatch.setattr(wheels, "fetch", lambda python, wanted: (Path(pip), []))

    return use


FAKE_CLI = """
import os, sys
def main():
    if sys.argv[1:] == ["keys", "export", "--report"]:
        print(open(os.path.expanduser("~/fake.pub")).read().strip())
    elif sys.argv[1] == "doctor":
        print("ok  all\\x1b[2J")
"""


@pytest.fixture
def key(drone):
    """The report key that the fake agent prints."""
    made = SigningKey.generate().verify_key
    (drone.home / "fake.pub").write_text(bytes(made).hex())
    return made


def test_a_failed_installation_keeps_the_former_agent(drone, tiny, key, capfd):
    tiny("")
    code, out, _ = edgeprune(capfd, "setup", "drone")
    assert code == 0 and "ok  all?[2J" in out
    agent = drone.home / ".local/share/edgeprune/agent"
    former = os.readlink(agent)
    tiny("raise ImportError('broken build')")
    code, _, err = edgeprune(capfd, "setup", "drone")
    assert code == 2 and "and the former agent is unchanged: ImportError: broken build" in err
    assert os.readlink(agent) == former and [p.name for p in agent.parent.glob("agent-*")] == [former]
    assert drone.ssh(".local/bin/edgeprune doctor").returncode == 0
    for content in ("a = 1", "a = 2"):
        tiny(content)
        assert edgeprune(capfd, "setup", "drone")[0] == 0
    kept = {p.name for p in agent.parent.glob("agent-*")}
    assert os.readlink(agent) in kept and len(kept) == 2 and former not in kept  # the new agent and the previous one


def test_an_incomplete_agent_is_installed_again(drone, tiny, key, capfd):
    tiny("")
    edgeprune(capfd, "setup", "drone")
    agent = drone.home / ".local/share/edgeprune/agent"
    (agent / "complete").unlink()
    (agent / "bin/edgeprune").write_text("half")
    assert edgeprune(capfd, "setup", "drone")[0] == 0
    assert drone.ssh(".local/bin/edgeprune doctor").returncode == 0


def test_two_simultaneous_setups_install_one_agent(drone, tiny, key):
    tiny("")
    results = []

    def work():
        with Link("drone") as link:
            results.append(setup.install(link, "drone"))

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert len(results) == 2 and results[0].path == results[1].path
    assert len(list((drone.home / ".local/share/edgeprune").glob("agent-*"))) == 1


def test_another_command_of_the_same_name_is_not_replaced(drone, tiny, key, capfd):
    tiny("")
    (drone.home / ".local/bin").mkdir(parents=True)
    (drone.home / ".local/bin/edgeprune").write_text("mine")
    code, out, _ = edgeprune(capfd, "setup", "drone")
    assert code == 0 and "command     not linked" in out
    assert (drone.home / ".local/bin/edgeprune").read_text() == "mine"
    (drone.home / ".local/bin/edgeprune").unlink()
    (drone.home / ".local/bin/edgeprune").symlink_to("../share/pipx/venvs/edgeprune/bin/edgeprune")
    code, out, _ = edgeprune(capfd, "setup", "drone")
    assert code == 0 and "command     not linked" in out
    assert "pipx" in os.readlink(drone.home / ".local/bin/edgeprune")
    shutil.rmtree(drone.home / ".local/bin")
    (drone.home / ".local/bin").write_text("a folder that cannot be made")
    code, out, _ = edgeprune(capfd, "setup", "drone")
    assert code == 0 and "command     not linked" in out and ".local/share/edgeprune/agent/bin/edgeprune" in out


def test_a_changed_report_key_is_refused_without_re_enrol(drone, tiny, key, capfd):
    tiny("")
    other = SigningKey.generate().verify_key
    keys.enrol("drone", other)
    code, _, err = edgeprune(capfd, "setup", "drone")
    assert code == 1 and keys.fingerprint(other) in err and keys.fingerprint(key) in err and "--re-enrol" in err
    assert list(keys.enrolled()) == [keys.fingerprint(other)]
    code, _, _ = edgeprune(capfd, "setup", "drone", "--name", "drone-2")
    assert code == 0 and keys.enrolled()[keys.fingerprint(key)] == ("drone-2", key)
    code, _, _ = edgeprune(capfd, "setup", "drone", "--re-enrol")
    assert code == 0 and keys.fingerprint(other) not in keys.enrolled()


def test_a_changed_key_is_refused_before_anything_is_sent(drone, tiny, key):
    folder = drone.home / ".config/edgeprune/keys"
    folder.mkdir(parents=True)
    (folder / "report.pub").write_text(bytes(key).hex() + "\n")
    keys.enrol("drone", SigningKey.generate().verify_key)
    tiny("")
    with Link("drone") as link, pytest.raises(SignatureError, match="--re-enrol"):
        setup.install(link, "drone")
    assert not (drone.home / ".local").exists()


def test_a_host_never_replaces_another_hosts_key(drone, tiny, key):
    tiny("")
    folder = drone.home / ".config/edgeprune/trusted"
    folder.mkdir(parents=True)
    theirs = bytes(SigningKey.generate().verify_key).hex() + "\n"
    with Link("drone") as link:
        name = Path(setup.install(link, "drone").trusted_as).name
        (folder / name).write_text(theirs)
        for _ in range(2):
            second = setup.install(link, "drone")
            assert second.trusted_as.endswith(f"-{bytes(keys.load_or_create().verify_key).hex()[:8]}.pub")
    assert (folder / name).read_text() == theirs and len(list(folder.iterdir())) == 2


def test_other_users_cannot_add_keys_under_any_umask(drone, tiny, key, capfd, monkeypatch):
    tiny("")
    monkeypatch.setattr(setup, "_TRUST", f"umask 0\n{setup._TRUST}")
    before = os.umask(0)
    try:
        assert edgeprune(capfd, "setup", "drone")[0] == 0
    finally:
        os.umask(before)
    for folder in (keys.home() / "devices", drone.home / ".config/edgeprune/trusted"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o755
        assert all(stat.S_IMODE(path.stat().st_mode) == 0o644 for path in folder.iterdir())
    made = [path for path in (*drone.home.rglob("*"), *keys.home().rglob("*")) if not path.is_symlink()]
    assert len(made) > 10 and not [path for path in made if stat.S_IMODE(path.stat().st_mode) & 0o022]


def test_missing_space_is_reported_before_anything_is_sent(drone, tiny, key, monkeypatch):
    tiny("")
    monkeypatch.setattr(setup, "_SPARE_BYTES", 1 << 60)
    with Link("drone") as link, pytest.raises(InputError, match=r"MB free, the agent needs about .* MB\)"):
        setup.install(link, "drone")
    assert not (drone.home / ".local").exists()


@pytest.mark.parametrize(
    "answer", ["", "[]", "no JSON", '{"public": "../../x"}', '{"public": 3}', '{"public": "' + "g" * 64 + '"}']
)
def test_the_agents_answers_are_checked(drone, answer):
    fake = drone.home / "edgeprune"
    fake.write_text(f"#!/bin/sh\nprintf %s '{answer}'\n")
    fake.chmod(0o755)
    with Link("drone") as link, pytest.raises(InputError, match=r"^drone: .*(not a public key|not valid JSON)"):
        setup._report_key(link, str(fake))


def test_an_unwritable_folder_is_one_line(drone, tiny, key):
    tiny("")
    (drone.home / ".local").write_text("a file")
    with Link("drone") as link, pytest.raises(RemoteError, match=r"^drone: mkdir: .*Not a directory"):
        setup.install(link, "drone")


GOOD = {
    "python": "3.8.10", "implementation": "CPython", "executable": "/usr/bin/python3", "bits": 64,
    "machine": "aarch64", "libc": "glibc 2.31", "venv": True,
    "packages": {"numpy": "1.17.4", "PIL": None, "tensorrt": "8.5.2.2"}, "home": "/home/pilot",
    "free_bytes": 123, "l4t": "# R35 (release), REVISION: 4.1, GCID: 1, BOARD: t186ref", "report_key": None,
}  # fmt: skip


def probe(**change):
    return setup.parse_probe(json.dumps({**GOOD, **change}).encode(), "drone")


def test_a_board_describes_itself():
    board, why = probe(report_key="0" * 64)
    assert why is None and board.python == wheels.Python(
        "3.8.10", "aarch64", (2, 31), {"numpy": "1.17.4", "tensorrt": "8.5.2.2"}
    )
    assert bytes(board.report_key) == bytes(32) and board.l4t == "35.4.1"
    assert "JetPack 5.1.2 (L4T 35.4.1)" in board.described() and "numpy 1.17.4" in board.described()


def test_a_boards_answer_does_not_move_the_cursor():
    board, _ = probe(executable="/usr/bin/\x9b2Jpython3", packages={"\x1b]0;x\x07": "1.0"})
    assert board.described().isprintable()


@pytest.mark.parametrize(
    "change, why",
    [
        ({"python": "3.6.9"}, "too old"),
        ({"libc": None}, "not a 64-bit CPython with glibc"),
        ({"bits": 32}, "not a 64-bit CPython"),
        ({"implementation": "PyPy"}, "not a 64-bit CPython"),
        ({"venv": False}, "no module venv"),
    ],
)
def test_an_unsuitable_python_is_refused_with_the_reason(change, why):
    assert why in probe(**change)[1]


@pytest.mark.parametrize(
    "change",
    [
        {"python": "3.8.10; rm -rf /"}, {"python": 3}, {"python": None}, {"executable": "python3"},
        {"executable": "/usr/bin/python3\nx"}, {"home": ""}, {"home": "relative"}, {"free_bytes": "many"},
        {"free_bytes": True}, {"free_bytes": -1}, {"machine": "aarch64/../.."}, {"packages": []},
        {"packages": {"x" * 9999: "1"}}, {"report_key": "zz"},
    ],
)  # fmt: skip
def test_malformed_answers_are_refused(change):
    with pytest.raises(InputError, match=r"^drone: ") as caught:
        probe(**change)
    assert "\n" not in str(caught.value)


def test_invalid_versions_are_ignored():
    assert probe(packages={"numpy": "1.0\x1b", "x" * 99: "1", "PIL": 3})[0].python.packages == {"x" * 40: "1"}


def test_a_drone_without_python_is_one_line(drone, tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "_PYTHONS", "exit 0")
    with Link("drone") as link, pytest.raises(InputError, match=r"no python3\); install Python 3\.8 or newer"):
        setup.learn(link)


def test_invalid_use_is_one_line(capfd):
    for args, words in (
        (["drone", "--retries", "-1"], "--retries"),
        (["drone", "--retries", "x"], "expected a whole number, at least 0"),
        (["-oProxyCommand=x"], "unrecognized|required"),
        (["a b"], "not a drone"),
    ):
        code, out, err = edgeprune(capfd, "setup", *args)
        assert code == 2 and out == "" and err.count("\n") == 1 and re.search(words, err), err
