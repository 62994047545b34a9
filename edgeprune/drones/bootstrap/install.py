# This Python may be 3.6.
# ruff: noqa: UP006, UP035, UP045
"""Make an agent from wheels in this folder, beside the former one, and switch to it only if it works.

Arguments: the base folder; the path of the command below it, link/program (`edgeprune_device.agent.COMMAND`); the
agent's name; the file name of pip's wheel; the file names of the wheels to install.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from typing import Optional, Sequence, Set


def main(base: str, command: str, name: str, pip: str, *wheels: str) -> None:
    link, program = command.split("/", 1)
    os.makedirs(base, exist_ok=True)
    agent, folder = os.path.join(base, name), os.path.join(base, "wheels")
    with open(os.path.join(base, ".lock"), "w") as lock:
        # An earlier attempt may still run behind a broken link: wait for it and use its result.
        fcntl.flock(lock, fcntl.LOCK_EX)
        complete = os.path.join(agent, "complete")
        if not os.path.exists(complete):
            make(agent, program, os.path.join(folder, pip), [os.path.join(folder, wheel) for wheel in wheels])
            os.sync()
            with open(complete, "w"):
                pass
            os.sync()
        former = take_its_place(base, link, name)
        tidy(base, {name, former}, {pip} | set(wheels))
        linked = link_command(os.path.join(base, command))
        os.sync()
    print(json.dumps({"agent": agent, "command": linked}))


def make(agent: str, program: str, pip: str, wheels: Sequence[str]) -> None:
    """Make the virtual environment with the wheels in it, and start it once."""
    shutil.rmtree(agent, ignore_errors=True)
    python = os.path.join(agent, "bin", "python")
    # Without pip, which needs Debian's python3-venv: pip runs from its own wheel. The system's packages stay visible:
    # TensorRT's bindings, and the numpy that they were built for, are Debian packages.
    # Only these wheels, regardless of the user's other packages: the host has resolved their dependencies.
    options = ("-q", "--isolated", "--disable-pip-version-check", "--no-cache-dir", "--no-index", "--no-deps")
    steps = (
        [sys.executable, "-m", "venv", "--without-pip", "--system-site-packages", agent],
        [python, os.path.join(pip, "pip"), "install", *options, "--ignore-installed", *wheels],
        [python, "-c", "import numpy, PIL.Image, nacl.signing, edgeprune_device.reports.report"],
        [os.path.join(agent, program), "--version"],
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "PYTHON"))}
    for step in steps:
        # Python looks for modules in the current folder, and only root can put one into /.
        done = subprocess.run(step, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, cwd="/")
        if done.returncode:
            shutil.rmtree(agent, ignore_errors=True)
            lines = done.stdout.decode("utf-8", "replace").strip().splitlines() or ["no message"]
            errors = [line for line in lines if line.startswith("ERROR: ") and line != "ERROR: Exception:"]
            sys.exit("the agent could not be installed, and the former agent is unchanged: " + (errors or lines)[-1])


def take_its_place(base: str, link: str, name: str) -> Optional[str]:
    """Point the link to the agent `name` atomically; return the name of the former agent."""
    path, beside = os.path.join(base, link), os.path.join(base, "." + link + ".new")
    former = os.path.basename(os.readlink(path)) if os.path.islink(path) else None
    if former == name:
        return former
    if os.path.lexists(beside):
        os.unlink(beside)
    os.symlink(name, beside)
    os.replace(beside, path)
    return former


def tidy(base: str, agents: Set[Optional[str]], wheels: Set[str]) -> None:
    """Remove all but this agent, the former one, which may be running, and the wheels of this one."""
    for entry in os.listdir(base):
        if entry.startswith("agent-") and entry not in agents:
            shutil.rmtree(os.path.join(base, entry), ignore_errors=True)
    folder = os.path.join(base, "wheels")
    for entry in os.listdir(folder) if os.path.isdir(folder) else []:
        if entry not in wheels:
            os.unlink(os.path.join(folder, entry))


def link_command(target: str) -> Optional[str]:
    """Link ~/.local/bin/edgeprune to the agent's command, unless something else has that name, such as pipx's link.

    Returns:
        The path of the link, or None.
    """
    folder = os.path.join(os.path.expanduser("~"), ".local", "bin")
    command = os.path.join(folder, "edgeprune")
    try:
        os.makedirs(folder, exist_ok=True)
        if not os.path.lexists(command):
            os.symlink(target, command)
        return command if os.readlink(command) == target else None
    except OSError:  # no link, or another user's folder: the agent works without it
        return None


main(*sys.argv[1:])
