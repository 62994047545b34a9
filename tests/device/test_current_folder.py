"""No command runs a module of the folder that it is called in, whatever lies there."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from edgeprune_device import cli, interpreter
from fakes.traps import Traps

SCRIPT = Path(sysconfig.get_path("scripts")) / "edgeprune"
QUICK = "--seconds 0.05 --warmup 0.05 --threads 1"
#: One real call of each command: {its words: the exit code}.
CALLS = {
    "--help": 0,
    "--version": 0,
    "bench {bundle} " + QUICK: 0,
    "bench {bundle} --runtime null --source videotestsrc " + QUICK: None,
    "doctor": None,
    "engine {bundle}": 2,
    "info --json": 0,
    "info {bundle}": 0,
    "install {bundle} --root {root}": 0,
    "keys": 0,
    "keys export --report": 0,
    "releases {root}": None,
    "rollback {root}": 2,
    "run {bundle} --runtime ort": 0,
    "spool": 0,
    "targets": 0,
    "unit --source /dev/video0 --root {root}": None,
    "unpack {bundle} --out {out}": 0,
}


@pytest.fixture(scope="module")
def traps(tmp_path_factory):
    return Traps(tmp_path_factory.mktemp("current"))


def test_every_command_is_called():
    ours = {name for name, point in cli.commands().items() if point.value.startswith("edgeprune_device.")}
    assert ours <= {words.split()[0] for words in CALLS}


@pytest.mark.skipif(not SCRIPT.exists(), reason="edgeprune-device is not installed: there is no command")
@pytest.mark.parametrize("words", CALLS)
def test_a_command_runs_nothing_of_the_current_folder(traps, bundle, tmp_path, words):
    pytest.importorskip("onnxruntime")
    places = {"bundle": bundle.path, "root": tmp_path / "root", "out": tmp_path / "out"}
    command = [str(SCRIPT), *(word.format(**places) for word in words.split())]
    # A worker that runs a trap instead of its work is started anew for ever: then this ends it.
    done = subprocess.run(command, cwd=str(traps.path), stdin=subprocess.DEVNULL, capture_output=True, timeout=180)
    assert traps.marks() == []
    assert CALLS[words] in (None, done.returncode) and done.returncode in (0, 1, 2), done.stderr.decode()


def test_a_process_of_ours_sees_its_arguments_and_this_package_and_not_the_current_folder(traps):
    code = "import argparse, json, edgeprune_device, sys; print(json.dumps([sys.argv[1:], edgeprune_device.__file__]))"
    for mortal in (False, True):
        command = interpreter.command(code, "a", "", "-b", mortal=mortal, flags=["-S"])
        said = subprocess.run(command, cwd=str(traps.path), stdout=subprocess.PIPE, check=True).stdout.decode()
        assert said.startswith('[["a", "", "-b"], ') and "edgeprune_device/__init__.py" in said
    told = subprocess.run(
        interpreter.module("json.tool", "--help"), cwd=str(traps.path), stdout=subprocess.PIPE, check=True
    ).stdout
    assert b"usage: " in told and traps.marks() == []


def test_the_traps_close(tmp_path):
    """As `-m` and `-c` would have it: what the tests above rest on."""
    traps = Traps(tmp_path, ["argparse"])
    for words in (["-m", "pip"], ["-c", "import numpy, argparse"]):
        subprocess.run([sys.executable, *words], cwd=str(traps.path), stderr=subprocess.DEVNULL, check=False)
    assert {"pip.__main__", "numpy.__init__", "argparse"} <= set(traps.marks())


def test_dash_m_looks_there_no_longer_than_python_itself_does(tmp_path):
    """`python -m` finds the package by the current folder: only from then on can it be left out."""
    traps = Traps(tmp_path, ["argparse", "ctypes", "json", "platform"])
    shutil.rmtree(str(traps.path / "edgeprune_device"))
    done = subprocess.run([sys.executable, "-m", "edgeprune_device", "info"], cwd=str(traps.path))
    assert done.returncode == 0 and traps.marks() == []
