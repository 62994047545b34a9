"""The paths of the agent on a drone, shared by the programs that install it and that look for it.

~/.local/share/edgeprune/    the agents that `edgeprune setup` installs: agent-VERSION-HASH/
    agent                    a link to the agent in use; an image has the same link in its root, /opt/edgeprune
        bin/edgeprune        the command
"""

from __future__ import annotations

__all__ = ["AGENT", "AGENTS", "COMMAND", "HOME_COMMAND", "PROGRAM"]

#: The folder of the agents, below a user's home.
AGENTS = ".local/share/edgeprune"
#: The link to the agent in use, below `AGENTS` or below the root of the releases.
AGENT = "agent"
#: The command, below an agent's own folder.
PROGRAM = "bin/edgeprune"
#: The command of the agent in use, below `AGENTS` or below the root of the releases.
COMMAND = f"{AGENT}/{PROGRAM}"
#: The command of the agent in use, below a user's home.
HOME_COMMAND = f"{AGENTS}/{COMMAND}"
