"""Every command where something is in its way: read-only folders, a loose or a tight umask, a full disk, LC_ALL=C.

A command succeeds, or ends with one line and leaves nothing half-written. No file is more open than the umask allows,
and no key is open to others, whatever the umask. A deployment has its planned modes, whatever the umask.
"""

import io
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from edgeprune_device.trust import keys
from edgeprune_device.trust.bundle import Bundle
from edgeprune_device.vision.evaluation import EvaluationSet
from PIL import Image

from . import drone_root, forked
from .oci_layout import SYSTEM, Base
from .small import dataset, save, short

sys.path.append(str(Path(__file__).parents[1] / "device"))
from fakes import models

#: Linux's name spaces let root make a folder read-only, or small, for one process.
ROOT = os.geteuid() == 0
BUILD = ("build", "--ratio", "0.2", "--target", "cpu", "--weights", "bést 1.pt", "--data", "data", "--imgsz", "64",
         "--epochs", "1", "--allow-poor-baseline", "--max-drop", "1", "--pictures", "0", "--out", "run")  # fmt: skip
COMMANDS = {
    "prune": ("prune", "--weights", "bést 1.pt", "--ratio", "0.2"),
    "export": ("export", "--weights", "bést 1.pt", "--precision", "fp32", "--imgsz", "64"),
    "unpack": ("unpack", "tiny.epb"),
    "keys": ("keys",),
    "doctor": ("doctor",),
    "targets": ("targets",),
    "info": ("info",),
    "reports": ("reports",),
    "spool": ("spool",),
    "pack": ("pack", "tiny.epb", "--base", "base", "--out", "tiny.tar", "--no-agent"),
    "deploy": ("deploy", "tiny.epb", "./root", "--no-agent"),
}
LONG = {
    "finetune": ("finetune", "--weights", "bést 1.pt", "--data", "data", "--epochs", "1", "--imgsz", "64"),
    "analyze": ("analyze", "--weights", "bést 1.pt", "--data", "data", "--imgsz", "64", "--json", "a.json"),
    "compare": ("compare", "bést 1.pt", "--imgsz", "64", "--rounds", "1", "--html", "page.html"),
    "build": BUILD,
    "install": ("install", "runs.epb", "--root", "opt"),
}
REFUSED = {("read-only", "doctor"), ("read-only", "install")}
#: The folders of deployments, whose modes are planned.
DEPLOYED = {"deploy": "root", "install": "opt"}
EVERY = [*COMMANDS, *(pytest.param(name, marks=pytest.mark.slow) for name in LONG)]

CALL = """
import ctypes, os, resource, signal, subprocess, sys
condition, *words = sys.argv[1:]
def enter():
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(0x20000) == 0
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
if condition == "read-only":
    if os.geteuid() == 0:
        enter()
        for folder in (os.environ["HOME"], os.path.realpath("data")):
            subprocess.run(["mount", "--bind", folder, folder], check=True)
            subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
    else:
        for folder in (os.environ["HOME"], os.path.realpath("data")):
            os.chmod(folder, 0o500)
elif condition == "full":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
elif condition.startswith("umask"):
    os.umask(int(condition[6:], 8))
from edgeprune_device import cli
sys.exit(cli.main(words))
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    save(short(), folder / "bést 1.pt")
    dataset(folder / "data", train=12, val=4)
    drone_root.bundle(folder / "tiny.epb")
    runs(folder / "runs.epb")
    drone_root.tree(folder / "root")
    base = Base(folder / "base").layer(SYSTEM)
    base.index(base.image())
    return folder


def runs(path):
    """A bundle whose model runs; it is larger than the full disk."""
    picture = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8)).save(picture, "PNG")
    pictures = EvaluationSet.pack([("a.png", picture.getvalue(), np.array([[0.0, 8, 8, 40, 40]]))])
    manifest = {
        **drone_root.MANIFEST, "counter": 5, "evaluation": {"payload": "evaluation.zip", "pictures": 1, "boxes": 1},
        "models": {"fp32": {**drone_root.MANIFEST["models"]["fp32"], "map50": 0.0, "map50_95": 0.0}},
    }  # fmt: skip
    payloads = {"model.fp32.onnx": models.detector(), "evaluation.zip": pictures}
    Bundle.write(path, manifest, payloads, keys.load_or_create())


@pytest.fixture
def here(inputs, tmp_path, monkeypatch):
    """A working folder with inputs, and a HOME of its own that holds this host's key."""
    folder = tmp_path / "here"
    shutil.copytree(inputs, folder, symlinks=True)
    for variable in ("EDGEPRUNE_SPOOL", "EDGEPRUNE_REPORTS", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(variable, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    shutil.copytree(os.environ["EDGEPRUNE_HOME"], home / "keys")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("EDGEPRUNE_HOME", str(home / "keys"))
    monkeypatch.chdir(folder)
    yield folder
    for path in (home, folder / "data"):
        path.chmod(0o700)


def files(*folders):
    return {p: p.stat().st_size for folder in folders for p in folder.rglob("*") if p.is_file()}


def log_or_lock(path):
    """Whether a failed installation leaves this file, too."""
    return path.parent.name == ".installations" or path.name in ("lock", ".state.lock")


def judged(done, what):
    """Success, or one line."""
    assert "Traceback" not in done.stderr and "report this bug" not in done.stderr, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("edgeprune: error:")]
    assert done.returncode in (0, 1, 2) and len(errors) == (done.returncode != 0), (what, done.returncode, done.stderr)
    return done.returncode == 0


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("condition", ["read-only", "full", "umask 0", "umask 077"])
def test_a_command_succeeds_or_ends_with_one_line(here, tmp_path, name, condition):
    words = {**COMMANDS, **LONG}[name]
    before = files(here, tmp_path / "home")
    done = forked.run(CALL, condition, *words, folder=tmp_path)
    well = judged(done, name)
    after = files(here, tmp_path / "home")
    new = after.keys() - before.keys()
    assert {p: after[p] for p in before} == before, "an input was changed"
    # `doctor` tells that HOME, where the spool is, cannot be written to; a first `install` makes its key there.
    assert well or condition == "full" or (condition, name) in REFUSED, done.stderr
    if not well and name != "build":  # a build keeps its finished stages
        assert not {p for p in new if not log_or_lock(p)}, f"half-written: {new}"
    planned = {p for p in here.glob(f"{DEPLOYED.get(name, 'none')}/**/*") if not p.is_symlink()}
    assert planned or name not in DEPLOYED or condition == "full"
    if condition == "umask 077":
        loose = [p for p in new - planned if p.stat().st_mode & 0o077]
        assert not loose, f"more open than the umask: {loose}"
    loose = [p for p in planned if p.stat().st_mode & 0o022]
    assert not loose, f"open to others: {loose}"
    for path in (tmp_path / "home/keys").rglob("*"):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o022, f"open to others: {path}"


@pytest.mark.parametrize(
    "name",
    [
        "targets", "doctor", "keys", "unpack", "pack", "deploy",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("prune", "install")),
    ],
)  # fmt: skip
def test_command_works_in_an_ascii_locale(here, name):
    environment = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "edgeprune", *{**COMMANDS, **LONG}[name]],
        env=environment,
        capture_output=True,
        encoding="ascii",
    )
    assert judged(done, name), done.stderr


def test_unknown_name_in_an_ascii_locale_is_one_line(here):
    environment = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "edgeprune", "unpack", "bést 2.epb"], env=environment, capture_output=True,
        encoding="ascii",
    )  # fmt: skip
    assert done.returncode == 2 and not judged(done, "unpack") and "no such file" in done.stderr
