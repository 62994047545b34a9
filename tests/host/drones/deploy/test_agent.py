"""agent: wheels for the image's Python are unpacked like pip does, and nothing outside of the agent's folder."""

import hashlib
import os
import zipfile
from pathlib import PurePosixPath

import pytest
from edgeprune_device.errors import InputError

from edgeprune.drones import wheels
from edgeprune.drones.deploy import DeploySettings, agent
from edgeprune.drones.deploy.rootfs import RootFolder

from ... import drone_root
from .roots import deploy


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPRUNE_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize("version", ["3.8.10", "3.10.12", "3.12.3"])
def test_wheels_match_the_images_python_glibc_and_packages(tmp_path, version, fake_registry):
    root = drone_root.tree(tmp_path / "root", version)
    content = agent.files(RootFolder(root), DeploySettings(), lambda text: None)
    python, extras = fake_registry[0]
    assert (python.version, python.machine, python.glibc) == (version, "aarch64", (2, 35))
    assert python.packages == {"numpy": "1.21.5", "tensorrt": "10.3.0"} and extras == ()
    script = content["bin/edgeprune"].decode()
    assert f"exec /usr/bin/python{version.rpartition('.')[0]} -c 'import sys; sys.path" in script
    assert "PYTHONPATH=/opt/edgeprune/agent/lib" in script
    assert content["lib/helper/__init__.py"] == b"A = 1\n" and "lib/edgeprune_device/trust/keys.py" in content


def test_without_tensorrt_the_agent_includes_onnx_runtime(root, fake_registry):
    os.rename(root / "usr/lib/python3.10/dist-packages/tensorrt", root / "gone")
    messages = []
    agent.files(RootFolder(root), DeploySettings(), messages.append)
    assert fake_registry[0][1] == ("ort",) and "ONNX Runtime" in messages[-1]


def test_the_python_with_tensorrt_is_chosen(root, fake_registry):
    (root / "usr/bin/python3.12").write_bytes(drone_root.program("3.12.1"))
    (root / "usr/bin/python3").unlink()
    (root / "usr/bin/python3").symlink_to("/usr/bin/python3.12")
    assert agent.learn(RootFolder(root))[1] == "/usr/bin/python3.10"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda root: (root / "usr/bin/python3.10").write_bytes(drone_root.program("3.10.1", drone_root.X86_64)),
         "found x86_64, expected aarch64"),
        (lambda root: (root / "usr/bin/python3.10").write_bytes(b"#!/bin/sh\n"), "found an unknown processor"),
        (lambda root: (root / "usr/bin/python3.10").unlink(), "no /usr/bin/python3"),
        (lambda root: os.rename(root / "usr/bin/python3.10", root / "usr/bin/python3.6"), "no Python"),
        (lambda root: (root / "usr/lib/aarch64-linux-gnu/libc.so.6").write_bytes(b"musl"), "version of glibc unknown"),
    ],
)  # fmt: skip
def test_an_image_that_cannot_run_the_agent_is_refused(root, tmp_path, fake_registry, change, message):
    change(root)
    with pytest.raises(InputError, match=message):
        deploy(drone_root.bundle(tmp_path / "tiny.epb"), root, DeploySettings())
    assert not (root / "opt").exists()


def test_missing_wheels_error_names_the_option_without_the_agent(root, tmp_path, monkeypatch):
    def fetch(python, extras):
        raise InputError("no wheels for Python 3.10.12 on aarch64: no connection")

    monkeypatch.setattr(wheels, "fetch", fetch)
    with pytest.raises(InputError, match=r"\(no wheels for Python 3.10.12 .*\); give no_agent"):
        deploy(drone_root.bundle(tmp_path / "tiny.epb"), root, DeploySettings())


def test_a_new_agent_replaces_the_former_one(root, tmp_path, fake_registry, monkeypatch):
    bundle = drone_root.bundle(tmp_path / "tiny.epb")
    deploy(bundle, root, DeploySettings())
    former = os.readlink(root / "opt/edgeprune/agent")
    monkeypatch.setattr(wheels, "fetch", lambda *a: (None, [drone_root.wheel(tmp_path, files={"b.py": b"B = 2"})]))
    deploy(bundle, root, DeploySettings())
    now = os.readlink(root / "opt/edgeprune/agent")
    assert now != former and sorted(p.name for p in (root / "opt/edgeprune").glob("agent*")) == sorted(["agent", now])
    assert (root / "opt/edgeprune/agent/lib/b.py").read_bytes() == b"B = 2"
    (root / "usr/local/bin/edgeprune").unlink()
    (root / "usr/local/bin/edgeprune").write_text("somebody else's")
    deploy(bundle, root, DeploySettings())
    assert (root / "usr/local/bin/edgeprune").read_text() == "somebody else's"


HOSTILE = ["../x.py", "/etc/x.py", "a/../../x.py", "a\\..\\x.py", "./x.py", "a//x.py", "a\nb.py", "x" * 600]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_wheel_writes_nothing(tmp_path, name):
    with pytest.raises(InputError, match="not a path inside the wheel"):
        agent.unpack([drone_root.wheel(tmp_path, files={name: b"x"})])


def test_a_wheel_with_a_link_a_duplicate_or_a_false_size_is_refused(tmp_path):
    path = tmp_path / "a-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as opened:
        info = zipfile.ZipInfo("link")
        info.external_attr = 0o120777 << 16
        opened.writestr(info, "/etc/passwd")
    with pytest.raises(InputError, match="not a plain file"):
        agent.unpack([path])
    first, second = (drone_root.wheel(tmp_path, f"{n}-1", {"same.py": b"x"}) for n in "ab")
    with pytest.raises(InputError, match="present in two wheels"):
        agent.unpack([first, second])
    a, b = drone_root.wheel(tmp_path, "c-1", {"m": b"x"}), drone_root.wheel(tmp_path, "d-1", {"m/n.py": b"x"})
    with pytest.raises(InputError, match="a file in one, a folder in another"):
        agent.unpack([a, b])
    (tmp_path / "no.whl").write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(InputError, match="the wheel cannot be unpacked"):
        agent.unpack([tmp_path / "no.whl"])
    raw = bytearray(drone_root.wheel(tmp_path, "e-1", {"m.py": b"x" * 100}).read_bytes())
    at = raw.index(b"PK\x01\x02")
    raw[at + 24 : at + 28] = (50).to_bytes(4, "little")  # the size, in the directory at the end
    (tmp_path / "lies.whl").write_bytes(raw)
    with pytest.raises(InputError, match="the wheel cannot be unpacked"):
        agent.unpack([tmp_path / "lies.whl"])


def test_a_wheel_with_too_many_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(agent, "_MAX_FILES", 3)
    with pytest.raises(InputError, match="the wheel is too large"):
        agent.unpack([drone_root.wheel(tmp_path, files={f"{n}.py": b"" for n in range(4)})])


def test_data_folders_of_a_wheel_are_placed_like_pip_does(tmp_path):
    files = {"a-1.data/purelib/p.py": b"p", "a-1.data/scripts/run": b"s", "a-1.data/data/share/x": b"d", "m.py": b"m"}
    assert agent.unpack([drone_root.wheel(tmp_path, files=files)]) == {"p.py": b"p", "m.py": b"m"}


def test_the_agent_is_placed_below_the_root_in_the_settings(root, tmp_path, fake_registry):
    bundle = drone_root.bundle(tmp_path / "tiny.epb")
    deploy(bundle, root, DeploySettings(root=PurePosixPath("/srv/it's here")))
    base = root / "srv/it's here"
    assert hashlib.sha256((base / "current/bundle.epb").read_bytes()).hexdigest() == bundle.sha256
    assert "'/srv/it'\\''s here/agent/lib'" in (base / "agent/bin/edgeprune").read_text()
