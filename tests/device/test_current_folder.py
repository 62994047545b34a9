"""Tests that no command runs a module of the folder in which it is called."""

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


def test_table_contains_every_command():
    ours = {name for name, point in cli.commands().items() if point.value.startswith("edgeprune_device.")}
    assert ours <= {words.split()[0] for words in CALLS}


@pytest.mark.skipif(not SCRIPT.exists(), reason="edgeprune-device is not installed, so the command is missing")
@pytest.mark.parametrize("words", CALLS)
def test_command_runs_no_module_of_the_current_folder(traps, bundle, tmp_path, words):
    pytest.importorskip("onnxruntime")
    places = {"bundle": bundle.path, "root": tmp_path / "root", "out": tmp_path / "out"}
    command = [str(SCRIPT), *(word.format(**places) for word in words.split())]
    # A worker that runs a trap would be restarted for ever, so a timeout ends it.
    done = subprocess.run(command, cwd=str(traps.path), stdin=subprocess.DEVNULL, capture_output=True, timeout=180)
    assert traps.marks() == []
    assert CALLS[words] in (None, done.returncode) and done.returncode in (0, 1, 2), done.stderr.decode()


def test_child_process_sees_its_arguments_and_the_package_but_not_the_current_folder(traps):
    code = "import argparse, json, edgeprune_device, sys; print(json.dumps([sys.argv[1:], edgeprune_device.__file__]))"
    for mortal in (False, True):
        command = interpreter.command(code, "a", "", "-b", mortal=mortal, flags=["-S"])
        printed = subprocess.run(command, cwd=str(traps.path), stdout=subprocess.PIPE, check=True).stdout.decode()
        assert printed.startswith('[["a", "", "-b"], ') and "edgeprune_device/__init__.py" in printed
    help_text = subprocess.run(
        interpreter.module("json.tool", "--help"), cwd=str(traps.path), stdout=subprocess.PIPE, check=True
    ).stdout
    assert b"usage: " in help_text and traps.marks() == []


def test_traps_work_with_plain_m_and_c(tmp_path):
    """The tests above rely on the behaviour of plain `-m` and `-c`."""
    traps = Traps(tmp_path, ["argparse"])
    for words in (["-m", "pip"], ["-c", "import numpy, argparse"]):
        subprocess.run([sys.executable, *words], cwd=str(traps.path), stderr=subprocess.DEVNULL, check=False)
    assert {"pip.__main__", "numpy.__init__", "argparse"} <= set(traps.marks())


def test_dash_m_searches_the_current_folder_only_for_the_package(tmp_path):
    """`python -m` finds the package in the current folder, which can be removed only afterwards."""
    traps = Traps(tmp_path, ["argparse", "ctypes", "json", "platform"])
    shutil.rmtree(str(traps.path / "edgeprune_device"))
    done = subprocess.run([sys.executable, "-m", "edgeprune_device", "info"], cwd=str(traps.path))
    assert done.returncode == 0 and traps.marks() == []
