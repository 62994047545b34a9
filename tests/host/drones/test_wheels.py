"""wheels: built from the installed package, and fetched for another machine."""

import base64
import csv
import hashlib
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from edgeprune_device.errors import InputError
from edgeprune_device.trust import keys
from packaging.requirements import Requirement

from edgeprune.drones import wheels
from edgeprune.drones.wheels import Python

from ..wheelhouse import make_wheel

XAVIER = Python("3.8.10", "aarch64", (2, 31), {"numpy": "1.17.4", "tensorrt": "8.5.2.2"})  # JetPack 5
ORIN = Python("3.10.12", "aarch64", (2, 35), {"numpy": "1.21.5", "tensorrt": "10.3.0"})  # JetPack 6


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """Skip if pip's registry does not answer."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "pycparser", "-d"]
    done = subprocess.run([*command, str(tmp_path_factory.mktemp("asked"))], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the package registry does not answer: {done.stderr.strip()[-200:]}")


def test_the_device_wheel_holds_the_installed_package_and_is_reproducible(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    first, second = wheels.device_wheel(tmp_path / "a"), wheels.device_wheel(tmp_path / "b")
    assert first.read_bytes() == second.read_bytes() and first.stat().st_size < 1_000_000
    opened = zipfile.ZipFile(first)
    assert opened.testzip() is None
    assert opened.read("edgeprune_device/trust/keys.py").decode() == Path(keys.__file__).read_text()
    names = opened.namelist()
    assert {"edgeprune_device/schema/report.json", "edgeprune_device/targets/cpu.json"} <= set(names)
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]
    info = next(name for name in names if name.endswith("/RECORD"))
    rows = list(csv.reader(io.StringIO(opened.read(info).decode())))
    assert sorted(row[0] for row in rows) == sorted(names)
    for name, digest, size in rows:
        data = opened.read(name)
        right = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        assert name == info or (digest == f"sha256={right}" and int(size) == len(data))


def test_pip_installs_the_device_wheel_and_the_command_works(tmp_path):
    wheel = wheels.device_wheel(tmp_path)
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", str(site), str(wheel)],
        check=True,
    )
    done = subprocess.run(
        [sys.executable, "-c", "import edgeprune_device, sys; print(edgeprune_device.__file__)\n"
         "from edgeprune_device import cli; sys.exit(cli.main(['targets']))"],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)},
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.startswith(str(site)) and "jetson-orin" in done.stdout, done.stderr
    assert (site / "bin" / "edgeprune").exists()


def test_the_platforms_match_the_drones_c_library():
    assert wheels.platforms(XAVIER)[0] == "manylinux_2_31_aarch64"
    assert wheels.platforms(XAVIER)[-2:] == ["manylinux_2_17_aarch64", "manylinux2014_aarch64"]
    assert "manylinux_2_34_aarch64" not in wheels.platforms(XAVIER)
    assert wheels.platforms(Python("3.12.3", "x86_64", (2, 39)))[-1] == "manylinux1_x86_64"


@pytest.mark.parametrize("machine, glibc", [("armv7l", (2, 31)), ("aarch64", (2, 12)), ("aarch64", (0, 0))])
def test_a_machine_without_wheels_is_refused(machine, glibc):
    with pytest.raises(InputError, match=f"no wheels exist for this machine .found {machine}"):
        wheels.platforms(Python("3.8.10", machine, glibc))


def test_installed_packages_of_a_board_are_kept():
    assert XAVIER.has(Requirement("numpy>=1.17")) and not XAVIER.has(Requirement("numpy>=1.21"))
    assert not XAVIER.has(Requirement("Pillow>=8")) and not XAVIER.has(Requirement("unknown"))
    assert Python("3.8.10", "aarch64", (2, 31), {"PIL": "9.0.1"}).has(Requirement("pillow>=8"))
    assert not Python("3.8.10", "aarch64", (2, 31), {"numpy": "rubbish"}).has(Requirement("numpy"))


def test_markers_are_evaluated_for_the_drone():
    old = Requirement("a; python_version < '3.9' and platform_machine == 'aarch64'")
    assert XAVIER.applies(old) and not ORIN.applies(old)
    assert not XAVIER.applies(Requirement("a; sys_platform == 'win32'"))
    extra = Requirement("a; extra == 'ort'")
    assert XAVIER.applies(extra, "ort") and not XAVIER.applies(extra) and not XAVIER.applies(extra, "cuda")


def test_the_requirements_of_the_device_package():
    names = {requirement.name.lower() for requirement in wheels.requirements(ORIN, [])}
    assert names == {"numpy", "pillow", "pynacl"}
    assert {r.name.lower() for r in wheels.requirements(ORIN, ["ort"])} == {*names, "onnxruntime"}
    assert {"ort", "cuda", "pycuda", "opencv"} <= set(wheels.extras())
    with pytest.raises(InputError, match=r"with: unknown extra \(found 'trt', expected .*ort"):
        wheels.requirements(ORIN, ["trt"])


def test_the_closure_returns_used_wheels_and_missing_requirements(tmp_path):
    a = make_wheel(tmp_path, "a-1.0", "b>=2", "numpy>=1.17", "gone; python_version < '3.9'", "more; extra == 'x'")
    b = make_wheel(tmp_path, "b-2.1", "a")  # a circle
    make_wheel(tmp_path, "unused-1.0")
    used, lacking = wheels.closure(XAVIER, [Requirement("a")], tmp_path)
    assert used == {a, b} and [r.name for r in lacking] == ["gone"]
    assert wheels.closure(ORIN, [Requirement("a")], tmp_path) == ({a, b}, [])
    _, lacking = wheels.closure(ORIN, [Requirement("a[x]"), Requirement("b>=3")], tmp_path)
    assert sorted(r.name for r in lacking) == ["b", "more"]


def test_an_orin_gets_the_missing_wheels_and_then_from_the_cache(registry, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pip, paths = wheels.fetch(ORIN)
    names = {path.name.split("-")[0] for path in paths}
    assert pip.name.startswith("pip-") and names == {"pillow", "pynacl", "cffi", "pycparser"}
    assert all("aarch64" in path.name or path.name.endswith("none-any.whl") for path in paths)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    assert wheels.fetch(ORIN) == (pip, paths)
    paths[0].write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"no wheels for Python 3\.10\.12 on aarch64, glibc 2\.35: "):
        wheels.fetch(ORIN)
    assert sorted(path.name for path in (tmp_path / "edgeprune/wheels").iterdir()) == [pip.parent.name]


def test_a_board_with_old_tensorrt_gets_no_new_numpy(registry, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    _, paths = wheels.fetch(XAVIER, ["ort"])
    names = {path.name.split("-")[0]: path.name.split("-")[1] for path in paths}
    assert names["numpy"].startswith("1.2") and tuple(map(int, names["numpy"].split("."))) < (1, 24)
    assert names["onnxruntime"] == "1.19.2" and "coloredlogs" in names


def test_a_package_without_a_wheel_for_the_board_is_one_line(registry, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"no wheels for Python.*pycuda") as caught:
        wheels.fetch(ORIN, ["pycuda"])
    assert "\n" not in str(caught.value)
