"""Tests that the agent's paths are constants of one module, which can be imported without numpy."""

import subprocess
from pathlib import Path

import edgeprune_device
from edgeprune_device import agent, interpreter

ROOT = Path(__file__).parents[2]


def test_paths_of_an_installed_agent():
    assert agent.HOME_COMMAND == ".local/share/edgeprune/agent/bin/edgeprune"
    assert agent.COMMAND == "agent/bin/edgeprune"


def test_import_loads_no_other_package():
    code = "import sys; from edgeprune_device import agent; sys.exit('numpy' in sys.modules)"
    folder = Path(edgeprune_device.__file__).parents[1]
    assert subprocess.run(interpreter.command(code), cwd=folder, timeout=60).returncode == 0


def test_no_other_module_contains_the_paths():
    paths = [*(ROOT / "edgeprune").rglob("*.py"), *(ROOT / "device/edgeprune_device").rglob("*.py")]
    spelled = [
        path.name
        for path in paths
        if any(word in path.read_text() for word in ("share/edgeprune/agent", agent.COMMAND))
    ]
    assert spelled == []
