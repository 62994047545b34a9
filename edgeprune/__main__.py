"""`python -m edgeprune` is the `edgeprune` command."""

import os  # already loaded, as sys is: Python does not search the current folder for either
import sys

if sys.path and sys.path[0] in ("", os.getcwd()):
    del sys.path[0]  # `-m` puts the current folder first; the command `edgeprune` does not

from edgeprune_device.cli import main

sys.exit(main())
