"""Make an agent from wheels that lie here, beside the former one, and put it in its place when it works, or not at all.

Arguments: the base folder, the agent's name, the file name of pip's wheel, those of the wheels to install.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys


def main(base, name, pip, *wheels):
    os.makedirs(base, exist_ok=True)
    agent, folder = os.path.join(base, name), os.path.join(base, "wheels")
    with open(os.path.join(base, ".lock"), "w") as lock:
        # A former try may still be at work, behind a link that broke: wait, and find its work done.
        fcntl.flock(lock, fcntl.LOCK_EX)
        complete = os.path.join(agent, "complete")
        if not os.path.exists(complete):
            make(agent, os.path.join(folder, pip), [os.path.join(folder, wheel) for wheel in wheels])
            os.sync()
            with open(complete, "w"):
                pass
            os.sync()
        former = take_its_place(base, name)
        tidy(base, {name, former}, {pip} | set(wheels))
        command = link_command(agent_link=os.path.join(base, "agent"))
        os.sync()
    print(json.dumps({"agent": agent, "command": command}))


def make(agent, pip, wheels):
    """The virtual environment, with the wheels in it, proven to start."""
    shutil.rmtree(agent, ignore_errors=True)
    python = os.path.join(agent, "bin", "python")
    # Without pip, which needs Debian's python3-venv: pip runs from its own wheel. The system's packages stay visible:
    # TensorRT's bindings, and the numpy that they were built for, are Debian packages.
    # Exactly these wheels, whatever else this user has: what they need was worked out on the host.
    options = ("-q", "--isolated", "--disable-pip-version-check", "--no-cache-dir", "--no-index", "--no-deps")
    steps = (
        [sys.executable, "-m", "venv", "--without-pip", "--system-site-packages", agent],
        [python, os.path.join(pip, "pip"), "install", *options, "--ignore-installed", *wheels],
        [python, "-c", "import numpy, PIL.Image, nacl.signing, edgeprune_device.reports.report"],
        [os.path.join(agent, "bin", "edgeprune"), "--version"],
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "PYTHON"))}
    for step in steps:
        # Python looks for modules in the current folder; nobody but root puts one into this.
        done = subprocess.run(step, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, cwd="/")
        if done.returncode:
            shutil.rmtree(agent, ignore_errors=True)
            lines = done.stdout.decode("utf-8", "replace").strip().splitlines() or ["no reason was given"]
            told = [line for line in lines if line.startswith("ERROR: ") and line != "ERROR: Exception:"]
            sys.exit("the agent could not be installed, the former one stays: " + (told or lines)[-1])


def take_its_place(base, name):
    """Let `agent` name it, in one step. The name of the former one."""
    link, beside = os.path.join(base, "agent"), os.path.join(base, ".agent.new")
    former = os.path.basename(os.readlink(link)) if os.path.islink(link) else None
    if former == name:
        return former
    if os.path.lexists(beside):
        os.unlink(beside)
    os.symlink(name, beside)
    os.replace(beside, link)
    return former


def tidy(base, agents, wheels):
    """Keep this agent and the former one, which may be at work now, and the wheels of this one."""
    for entry in os.listdir(base):
        if entry.startswith("agent-") and entry not in agents:
            shutil.rmtree(os.path.join(base, entry), ignore_errors=True)
    folder = os.path.join(base, "wheels")
    for entry in os.listdir(folder) if os.path.isdir(folder) else ():
        if entry not in wheels:
            os.unlink(os.path.join(folder, entry))


def link_command(agent_link):
    """~/.local/bin/edgeprune, unless something else has that name, such as pipx's link: its path, or None."""
    folder = os.path.join(os.path.expanduser("~"), ".local", "bin")
    command = os.path.join(folder, "edgeprune")
    target = os.path.join(agent_link, "bin", "edgeprune")
    try:
        os.makedirs(folder, exist_ok=True)
        if not os.path.lexists(command):
            os.symlink(target, command)
        return command if os.readlink(command) == target else None
    except OSError:  # no link, or somebody else's folder: the agent works without
        return None


main(*sys.argv[1:])
