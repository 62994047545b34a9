"""`python -m edgeprune_device` is the `edgeprune` command."""

import sys

from edgeprune_device.cli import main

sys.exit(main())
