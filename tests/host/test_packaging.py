"""The wheels are complete, small, have one version, and work outside the checkout."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheels")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT / "device"), str(ROOT)],
        check=True,
    )
    host, device = sorted(folder.iterdir())
    assert host.name.startswith("edgeprune-") and device.name.startswith("edgeprune_device-")
    return host, device


def test_both_wheels_have_one_version():
    files = ("pyproject.toml", "device/pyproject.toml")
    versions = {re.search(r'^version = "(.+)"$', (ROOT / f).read_text(), re.M)[1] for f in files}
    assert len(versions) == 1
    version = versions.pop()
    assert f'"edgeprune-device=={version}"' in (ROOT / "pyproject.toml").read_text()
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_wheels_are_complete_and_small(wheels):
    host, device = (set(zipfile.ZipFile(w).namelist()) for w in wheels)
    criterion = "edgeprune/pruning/criteria/energy.py"
    assert {"edgeprune/demo/yolov8n-scenes.pt", criterion, "edgeprune/commands/build.py"} <= host
    oriented = zipfile.ZipFile(wheels[0]).getinfo("edgeprune/demo/yolov8n-obb-scenes.pt")
    assert oriented.file_size <= 3_000_000 and "edgeprune/demo/yolov8n-obb-scenes.yaml" in host
    assert {"edgeprune/comparison/page/style.css", "edgeprune/comparison/page/comfort.js", "edgeprune/py.typed"} <= host
    assert {"edgeprune_device/targets/jetson-orin.json", "edgeprune_device/schema/manifest.json"} <= device
    assert not [n for n in host | device if "test" in n.lower()]
    assert wheels[1].stat().st_size <= 1_000_000


def test_the_wheels_work_outside_the_checkout(wheels, tmp_path):
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-compile", "--target", str(site)]
    subprocess.run([*install, *map(str, wheels)], check=True)
    code = (
        "import edgeprune, edgeprune_device, sys\n"
        "from edgeprune_device import cli\n"
        "assert edgeprune.__file__.startswith(sys.argv[1]), edgeprune.__file__\n"
        "sys.exit(cli.main(['targets']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(site)], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "jetson-orin" in done.stdout


def test_the_readme_has_the_main_and_the_test_command():
    readme = (ROOT / "README.md").read_text()
    commands = dict(re.findall(r"^```sh (\w+)\n(.*?)^```$", readme, re.M | re.S))
    assert "edgeprune build --ratio 0.2 --target jetson-orin" in commands["main"]
    assert commands["tests"].strip().endswith("pytest")
    assert "sh tests" in (ROOT / ".ci" / "run").read_text()


def test_the_readme_lists_every_command():
    from edgeprune_device import cli

    readme = (ROOT / "README.md").read_text()
    for command in cli.commands():
        assert f"edgeprune {command}" in readme, command
