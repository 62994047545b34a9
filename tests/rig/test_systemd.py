"""`edgeprune deploy` writes a release, the agent and the unit to a root file system. It boots with the real systemd,
and the release runs, is replaced, is rolled back, and survives a kill -9 and a power cut.

The CPU is emulated, so measured times are meaningless.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from edgeprune_device import cli
from edgeprune_device.trust.bundle import Bundle
from edgeprune_device.vision.evaluation import EvaluationSet

from . import bundle as bundles
from . import rootfs
from .machine import Machine

_SCENARIO = """[Unit]
After=multi-user.target
[Service]
ExecStart=/data/scenario.sh
"""
#: A FAKE program of the user that fails with one release.
_MINE = """[Service]
ExecStart=/bin/sh -c 'test "$(readlink /opt/edgeprune/current)" != releases/{bad} && exec sleep infinity'
"""


def another(bundle, name):
    """The same content under another name, built later."""
    from edgeprune_device.trust import keys

    manifest = bundle.manifest.to_json()
    del manifest["payloads"]
    manifest.update(name=name, counter=keys.next_counter())
    payloads = {payload: bundle.read(payload) for payload in bundle.payloads}
    return Bundle.write(bundle.path.with_name(f"{name}.epb"), manifest, payloads, keys.load_or_create())


@pytest.fixture
def machine(emulated, tmp_path, monkeypatch):
    if not shutil.which("qemu-system-aarch64") or not shutil.which("cpio"):
        pytest.skip("needs the Debian packages qemu-system-arm, cpio")
    monkeypatch.setenv("EDGEPRUNE_HOME", str(tmp_path / "host"))
    try:
        base = rootfs.get("bookworm", systemd=True)
    except rootfs.MirrorSilent as silent:
        pytest.skip(str(silent))
    tree = tmp_path / "rootfs"
    subprocess.run(["cp", "-a", str(base), str(tree)], check=True)  # including its device files, which cannot be read
    (tmp_path / "bundles").mkdir()
    one = Bundle.open(bundles.make(tmp_path / "bundles", "one"))
    two, three = another(one, "two"), another(one, "three")
    data = tree / "data"
    (data / "pictures").mkdir(parents=True)
    (picture, *_) = EvaluationSet.read(one.read("evaluation.zip"))
    for number in range(5000):  # so many that they do not run out
        (data / "pictures" / f"{number:04}.jpg").write_bytes(picture.data)
    for path in (two.path, three.path, Path(__file__).with_name("scenario.sh")):
        shutil.copy(path, data)
    (data / "scenario.sh").chmod(0o755)
    units = tree / "etc/systemd/system"
    (units / "scenario.service").write_text(_SCENARIO)
    (units / "mine.service").write_text(_MINE.format(bad=three.sha256[:16]))
    monkeypatch.setenv("XDG_CACHE_HOME", str(rootfs.cache()))
    assert cli.main(["deploy", str(one.path), str(tree), "--source", "/data/pictures", "--output", "/dev/null"]) == 0
    wants = units / "multi-user.target.wants"
    assert (wants / "edgeprune.service").is_symlink()
    (wants / "scenario.service").symlink_to("../scenario.service")
    machine = Machine(tmp_path, tree, "/lib/systemd/systemd", [])
    machine.ids = {bundle.manifest.name: f"releases/{bundle.sha256[:16]}" for bundle in (one, two, three)}
    yield machine
    machine.close()


@pytest.mark.slow
def test_release_in_an_image_runs_under_systemd_is_replaced_and_rolled_back(machine):
    machine.start()
    output = machine.console(900, b"step end", 1).decode(errors="replace")
    output += machine.cut_power().decode(errors="replace")
    steps = dict(re.findall(r"step (\w+) ([^\r\n]*)", output))
    one, two = machine.ids["one"], machine.ids["two"]
    assert steps.pop("said") == (
        f"edgeprune: error: {machine.ids['three'].partition('/')[2]} (three): rolled back, because unit mine.service "
        f"is failed (result exit-code, 0 restarts); {two.partition('/')[2]} (two) is in use"
    ), output[-3000:]
    assert steps == {
        "image": f"active good {one}",
        "two": f"0 active good {two}",
        "runs": two.partition("/")[2],
        "three": f"1 good {two}",
        "supervisor": f"active {two}",
        "worker": f"1 {two}",
    }, output[-3000:]
    machine.start()  # after the power cut, the scenario finds release two in use and good
    output = machine.console(300, b"step image", 1) + machine.console(2)
    assert f"step image active good {two}".encode() in output or f"step image activating good {two}".encode() in output
