import sys

from edgeprune_device.cli import main

sys.exit(main())
