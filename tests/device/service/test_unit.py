"""The unit's text, judged by the real systemd-analyze where systemd is installed; it was not started by it here."""

import re
import shlex
import subprocess
import sys

import pytest
from edgeprune_device import cli
from edgeprune_device.errors import InputError
from edgeprune_device.service import unit
from edgeprune_device.trust import keys
from nacl.signing import SigningKey

needs_systemd = pytest.mark.needs("systemd-analyze")
KEYS = "-/etc/edgeprune/keys"
SOURCES = ["/dev/video0", "csi", "/data/flights", 'rtspsrc location="rtsp://10.0.0.2/a%20b" ! decodebin']


def made(source="/dev/video0", output="unix:/run/edgeprune/detections.sock", **changes):
    fields = {"user": "daemon", "executable": sys.executable, "root": "/opt/edgeprune", "home": "/etc/edgeprune"}
    return unit.text(source=source, output=output, **{**fields, **changes})


def value(text, name):
    return re.findall(rf"^{name}=(.*)$", text, re.M)


def checked(text, tmp_path):
    path = tmp_path / "edgeprune.service"
    path.write_text(text)
    return path


@needs_systemd
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("output", ["-", "unix:/run/edgeprune/d.sock", "/var/log/drone/d.jsonl"])
def test_systemd_finds_nothing_wrong(tmp_path, source, output):
    path = checked(made(source, output), tmp_path)
    done = subprocess.run(["systemd-analyze", "verify", str(path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert (done.returncode, done.stdout.decode()) == (0, "")


@needs_systemd
@pytest.mark.parametrize("source, most", [("/dev/video0", 1.5), ("csi", 1.7), (SOURCES[3], 1.9)])
def test_systemd_calls_it_hardened(tmp_path, source, most):
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(checked(made(source), tmp_path))]
    done = subprocess.run(command, capture_output=True, check=False)
    if b"unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze is too old for --offline")
    score = re.search(r"exposure level for edgeprune.service: ([\d.]+) OK", done.stdout.decode())
    assert score and float(score[1]) <= most, done.stdout.decode()[-300:]


@pytest.mark.parametrize("word", ["a b", 'a"b', "a'b", "a\\b", "a$b", "a%b", "${HOME}", "a;b", "ä ö"])
def test_any_word_reaches_the_command_as_it_is(word):
    (command,) = value(made(f"/data/{word}"), "ExecStart")
    # What systemd does to a line: words and quotes as a shell, then %% and $$ (systemd.service(5)).
    words = [each.replace("%%", "%").replace("$$", "$") for each in shlex.split(command)]
    assert words[words.index("--source") + 1] == f"/data/{word}"


@pytest.mark.parametrize(
    "output, folders",
    [
        ("-", ["/opt/edgeprune"]),
        ("unix:/run/edgeprune/d.sock", ["/opt/edgeprune"]),
        ("/opt/edgeprune/d.jsonl", ["/opt/edgeprune"]),
        ("/dev/ttyS0", ["/opt/edgeprune"]),
        ("/data/logs/d.jsonl", ["/opt/edgeprune", "/data/logs"]),
        ("unix:/data/x/../d.sock", ["/opt/edgeprune", "/data"]),
    ],
)
def test_it_writes_to_its_own_folders_only(output, folders):
    assert value(made(output=output), "ReadWritePaths") == [" ".join([*folders, KEYS])]


def test_a_jetsons_own_camera_is_reached_through_tmp():
    assert value(made("csi"), "PrivateTmp") == ["no"]
    assert value(made("csi"), "ReadWritePaths") == [f"/opt/edgeprune /tmp {KEYS}"]
    assert value(made(), "PrivateTmp") == ["yes"]
    assert value(made(output="unix:/tmp/d.sock"), "PrivateTmp") == ["no"]


def test_only_a_pipeline_may_use_the_network():
    assert "AF_INET" in value(made(SOURCES[3]), "RestrictAddressFamilies")[0] and not value(
        made(SOURCES[3]), "IPAddressDeny"
    )
    assert "AF_INET" not in value(made(), "RestrictAddressFamilies")[0] and value(made(), "IPAddressDeny") == ["any"]


def test_what_would_take_the_gpu_away_is_not_there():
    text = made()
    for name in ("PrivateDevices", "DevicePolicy", "DeviceAllow", "ProtectClock", "MemoryDenyWriteExecute"):
        assert not value(text, name)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"user": "a b"}, "not a user's name"),
        ({"user": "root\nExecStart=/bin/sh"}, "not a user's name"),
        ({"root": "opt"}, "absolute"),
        ({"executable": "edgeprune"}, "absolute"),
        ({"output": "lines.jsonl"}, "absolute"),
        ({"output": "unix:d.sock"}, "absolute"),
        ({"source": "a\nExecStartPre=/bin/sh"}, "does not print"),
        ({"source": ""}, "empty"),
        ({"source": "flights/7"}, "absolute"),
    ],
)
def test_what_a_unit_cannot_say_is_refused(changes, words):
    with pytest.raises(InputError, match=words):
        made(**changes)


def test_the_command_prints_it(capsys, home):
    assert cli.main(["unit", "--source", "/dev/video0", "--root", "/data/edgeprune", "--user", "pilot"]) == 0
    text = capsys.readouterr().out
    assert value(text, "User") == ["pilot"] and value(text, "Environment") == [f"EDGEPRUNE_HOME={home}"]
    assert " run --root /data/edgeprune --source /dev/video0 --output -" in value(text, "ExecStart")[0]
    assert value(text, "ExecStart")[0].startswith("/")
    assert cli.main(["unit", "--source", "/dev/video0", "--output", "here"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_service_trusts_and_refuses_whom_the_whole_machine_does(monkeypatch, tmp_path):
    text = made(home=str(tmp_path / ".config/edgeprune"))
    name, _, path = value(text, "Environment")[0].partition("=")
    monkeypatch.delenv("EDGEPRUNE_HOME", raising=False)
    monkeypatch.setenv(name, path)
    monkeypatch.setattr(keys, "SYSTEM", tmp_path / "etc")
    (tmp_path / "etc/trusted").mkdir(parents=True)
    key = SigningKey.generate().verify_key
    (tmp_path / "etc/trusted/admin.pub").write_text(bytes(key).hex())
    assert keys.fingerprint(key) in keys.trusted() and keys.home() == tmp_path / ".config/edgeprune"
    assert value(made(home="/data/keys"), "Environment") == ["EDGEPRUNE_HOME=/data/keys"]
