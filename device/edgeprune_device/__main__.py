"""`python -m edgeprune_device` is the `edgeprune` command."""

import os  # already loaded, like sys, so neither is searched in the current folder
import sys

if sys.path and sys.path[0] in ("", os.getcwd()):
    del sys.path[0]  # `-m` puts the current folder first; the command `edgeprune` never searches it

from edgeprune_device.cli import main

sys.exit(main())
