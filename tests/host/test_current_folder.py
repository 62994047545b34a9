"""The host's commands and the agent of an image run no module from the current folder. tests/device covers the commands
of a drone and `doctor`."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from edgeprune_device import cli, interpreter
from edgeprune_device.agent import COMMAND
from edgeprune_device.interpreter import START

from edgeprune.drones import bootstrap, wheels
from edgeprune.drones.deploy import agent

from .small import dataset, network, save

sys.path.append(str(Path(__file__).parents[1] / "device"))
from fakes.traps import Traps

SCRIPT = Path(sysconfig.get_path("scripts")) / "edgeprune"


@pytest.fixture(scope="module")
def traps(tmp_path_factory):
    return Traps(tmp_path_factory.mktemp("current"))


def called(traps, command, **environment):
    done = subprocess.run(
        [str(word) for word in command], cwd=traps.path, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip
    assert traps.marks() == [], " ".join(map(str, command))
    return done


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """The agent of an image, beside the image's numpy and other packages."""
    folder = tmp_path_factory.mktemp("image")
    for name, content in agent.unpack([wheels.device_wheel(folder)]).items():
        (folder / "lib" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "lib" / name).write_bytes(content)
    script = folder / "edgeprune"
    script.write_text(agent._SCRIPT.format(start=START, lib=folder / "lib", python=sys.executable))
    script.chmod(0o755)
    return script


def test_the_agent_of_an_image_runs_no_trap(traps, image):
    for words in ("--version", "info", "keys", "targets", "releases {0}", "bench {0}", "install {0}", "run {0}"):
        done = called(traps, [image, *words.format("/nothing").split()])
        assert done.returncode in (0, 2) and "Traceback" not in done.stderr, done.stderr
    assert "usage: edgeprune bench" in called(traps, [image, "bench", "--help"]).stdout


def test_help_of_every_command_runs_no_trap(traps):
    reply = called(traps, [SCRIPT, "--help"])  # loads the modules of all commands
    assert reply.returncode == 0 and "cannot be loaded" not in reply.stdout
    for words in ("build --ratio 2", "setup", "deploy", "collect", "pack", "reports", "build --target none"):
        done = called(traps, [SCRIPT, *words.split()])
        assert done.returncode in (0, 2) and "Traceback" not in done.stderr


def test_the_download_of_wheels_runs_no_trap(traps, tmp_path):
    code = "from edgeprune.drones import wheels; wheels.fetch(wheels.Python('3.10.12', 'aarch64', (2, 35), {}), [])"
    offline = {"PIP_INDEX_URL": "http://127.0.0.1:9", "PIP_RETRIES": "0", "XDG_CACHE_HOME": str(tmp_path)}
    done = called(traps, interpreter.command(code), **offline)
    assert "InputError: no wheels for Python 3.10.12 on aarch64" in done.stderr


def test_scripts_for_a_drone_run_no_trap(traps, tmp_path):
    done = called(traps, [sys.executable, "-c", bootstrap.source("probe")], HOME=str(tmp_path))
    assert done.stdout.startswith('{"python": "')
    text = subprocess.run(
        [sys.executable, "-", tmp_path / "base", COMMAND, "agent-1", "no-pip.whl"], input=bootstrap.source("install"),
        text=True, cwd=traps.path, capture_output=True, env={**os.environ, "HOME": str(tmp_path)},
    ).stderr  # fmt: skip
    assert "the agent could not be installed" in text and traps.marks() == []


def test_the_launch_on_several_gpus_runs_no_trap(traps, monkeypatch):
    from edgeprune.training import trainer

    theirs = [sys.executable, "-m", "json.tool", "--help"]
    monkeypatch.setattr(trainer, "generate_ddp_command", lambda instance: (theirs, "file"))
    command, file = trainer._launch(None)
    assert file == "file" and "usage:" in called(traps, command).stdout


@pytest.fixture
def inputs(tmp_path):
    save(network(width=0.125), tmp_path / "best.pt")
    dataset(tmp_path / "data")
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        "prune --weights {0}/best.pt --ratio 0.2",
        pytest.param("finetune --weights {0}/best.pt --data {0}/data/data.yaml --epochs 1 --workers 2",
                     marks=pytest.mark.slow),
        pytest.param("build --weights {0}/best.pt --data {0}/data/data.yaml --ratio 0.2 --target cpu --epochs 1 "
                     "--max-drop 1 --out {0}/out", marks=pytest.mark.slow),
        pytest.param("analyze --weights {0}/best.pt --data {0}/data/data.yaml", marks=pytest.mark.slow),
        pytest.param("compare {0}/best.pt {0}/best.pt --data {0}/data/data.yaml --rounds 2", marks=pytest.mark.slow),
    ],
    ids=lambda words: words.split()[0],
)  # fmt: skip
def test_whole_jobs_run_no_trap(traps, inputs, words):
    done = called(traps, [SCRIPT, *words.format(inputs).split()])
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_command_is_covered():
    hosts = {name for name, point in cli.commands().items() if point.value.startswith("edgeprune.")}
    text = Path(__file__).read_text()
    assert all(name in text for name in hosts - {"export"})  # build includes the work of export
