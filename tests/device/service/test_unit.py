"""The unit's text, checked by the real systemd-analyze if systemd is installed. The unit is not started."""

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
def test_systemd_verifies_the_unit(tmp_path, source, output):
    path = checked(made(source, output), tmp_path)
    done = subprocess.run(["systemd-analyze", "verify", str(path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert (done.returncode, done.stdout.decode()) == (0, "")


@needs_systemd
@pytest.mark.parametrize("source, most", [("/dev/video0", 1.5), ("csi", 1.7), (SOURCES[3], 1.9)])
def test_systemd_rates_the_unit_as_hardened(tmp_path, source, most):
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(checked(made(source), tmp_path))]
    done = subprocess.run(command, capture_output=True, check=False)
    if b"unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze is too old for --offline")
    score = re.search(r"exposure level for edgeprune.service: ([\d.]+) OK", done.stdout.decode())
    assert score and float(score[1]) <= most, done.stdout.decode()[-300:]


@pytest.mark.parametrize("word", ["a b", 'a"b', "a'b", "a\\b", "a$b", "a%b", "${HOME}", "a;b", "ä ö"])
def test_any_word_reaches_the_command_unchanged(word):
    (command,) = value(made(f"/data/{word}"), "ExecStart")
    # systemd parses a line into words and quotes as a shell does, then %% and $$ (systemd.service(5)).
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
def test_service_writes_only_to_its_own_folders(output, folders):
    assert value(made(output=output), "ReadWritePaths") == [" ".join([*folders, KEYS])]


def test_camera_of_a_jetson_is_reached_through_tmp():
    assert value(made("csi"), "PrivateTmp") == ["no"]
    assert value(made("csi"), "ReadWritePaths") == [f"/opt/edgeprune /tmp {KEYS}"]
    assert value(made(), "PrivateTmp") == ["yes"]
    assert value(made(output="unix:/tmp/d.sock"), "PrivateTmp") == ["no"]


def test_only_a_pipeline_may_use_the_network():
    assert "AF_INET" in value(made(SOURCES[3]), "RestrictAddressFamilies")[0] and not value(
        made(SOURCES[3]), "IPAddressDeny"
    )
    assert "AF_INET" not in value(made(), "RestrictAddressFamilies")[0] and value(made(), "IPAddressDeny") == ["any"]


def test_settings_that_would_deny_the_gpu_are_absent():
    text = made()
    for name in ("PrivateDevices", "DevicePolicy", "DeviceAllow", "ProtectClock", "MemoryDenyWriteExecute"):
        assert not value(text, name)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"user": "a b"}, "invalid user name .expected at most 31 letters"),
        ({"user": "root\nExecStart=/bin/sh"}, "invalid user name"),
        ({"root": "opt"}, "absolute"),
        ({"executable": "edgeprune"}, "absolute"),
        ({"output": "lines.jsonl"}, "absolute"),
        ({"output": "unix:d.sock"}, "absolute"),
        ({"source": "a\nExecStartPre=/bin/sh"}, "^source: non-printable character"),
        ({"source": ""}, "^source: empty"),
        ({"source": "flights/7"}, "absolute"),
    ],
)
def test_values_not_allowed_in_a_unit_are_refused(changes, words):
    with pytest.raises(InputError, match=words):
        made(**changes)


def test_unit_command_prints_the_unit(capsys, home):
    assert cli.main(["unit", "--source", "/dev/video0", "--root", "/data/edgeprune", "--user", "pilot"]) == 0
    text = capsys.readouterr().out
    assert value(text, "User") == ["pilot"] and value(text, "Environment") == [f"EDGEPRUNE_HOME={home}"]
    assert " run --root /data/edgeprune --source /dev/video0 --output -" in value(text, "ExecStart")[0]
    assert value(text, "ExecStart")[0].startswith("/")
    assert cli.main(["unit", "--source", "/dev/video0", "--output", "here"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_service_uses_the_trusted_and_revoked_keys_of_the_machine(monkeypatch, tmp_path):
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


def test_service_has_an_empty_working_folder():
    """With systemd's default, /, a library's relative path could reach every file."""
    text = made()
    assert value(text, "WorkingDirectory") == ["/run/edgeprune/work"]
    assert value(text, "RuntimeDirectory") == ["edgeprune edgeprune/work"]
