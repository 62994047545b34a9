"""Commands for separate Python processes that do not search modules in the current folder.

Python puts that folder first: as "" for `-c`, by its path for `-m`. `-P` is new in Python 3.11, and `-I` would also
ignore PYTHONPATH and packages that the user installed without root. So the first statement removes the folder before
any module is imported; `sys` is part of the interpreter and is in no folder.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import List, Sequence

__all__ = ["START", "command", "module"]

#: The first statement of any code for `python -c`, and of a script for `python -`.
START = "import sys; sys.path[:] = [folder for folder in sys.path if folder]\n"
# The folder of a caller that runs from a checkout. It comes last, after installed packages.
_OURS = "sys.path.append(sys.argv.pop(1))\n"
# PR_SET_PDEATHSIG, SIGKILL: the kernel kills the process when its parent ends for any reason.
_MORTAL = (
    "import ctypes, os\nctypes.CDLL(None).prctl(1, 9, 0, 0, 0)\nos.getppid() == int(sys.argv.pop(1)) or os._exit(1)\n"
)


def command(code: str, *arguments: str, flags: Sequence[str] = (), mortal: bool = False) -> List[str]:
    """The command that runs `code` in a new process of this Python.

    Args:
        code: The code.
        arguments: Arguments for sys.argv[1:].
        flags: Flags of Python, e.g. "-S".
        mortal: Kill the new process when the thread that starts it ends.
    """
    before = [str(Path(__file__).resolve().parents[1]), *([str(os.getpid())] if mortal else [])]
    return [sys.executable, *flags, "-c", f"{START}{_OURS}{_MORTAL if mortal else ''}{code}", *before, *arguments]


def module(name: str, *arguments: str) -> List[str]:
    """The command that runs a module as `python -m` does, without the current folder in the search path."""
    return command(f"import runpy; runpy.run_module({name!r}, run_name='__main__', alter_sys=True)", *arguments)
