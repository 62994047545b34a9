"""`python -m edgeprune_device` is the `edgeprune` command."""

import os  # loaded already, like sys: neither is looked for in the current folder
import sys

if sys.path and sys.path[0] in ("", os.getcwd()):
    del sys.path[0]  # `-m` puts the current folder first; `edgeprune`, the command, never looks there

from edgeprune_device.cli import main

sys.exit(main())
