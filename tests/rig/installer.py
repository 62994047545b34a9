"""The first process of a complete machine: installs one bundle after another, endlessly, and prints what it found and
did. The benchmark is replaced by a FAKE measurement, because the disk is under test."""

import sys
from pathlib import Path

from edgeprune_device.errors import EdgepruneError
from edgeprune_device.installation import install, measure
from edgeprune_device.installation.options import InstallOptions
from edgeprune_device.releases import Releases

measured = measure.Measured("fp32", "none", "0" * 64, None)
measure.measure = lambda *_: measured

releases = Releases("/srv/edgeprune")
bundles = sorted(Path("/opt/bundles").glob("*.epb"))
try:
    release = releases.current()
    if release is not None:
        releases.open(release)
    print(f"found {release.counter if release else 0} {max(releases.counters.values(), default=0)}", flush=True)
    while True:
        following = (release.counter if release else 0) + 1
        release = install.install(releases, bundles[following - 1], InstallOptions(), lambda *_: None)
        print(f"installed {release.counter} {release.state}", flush=True)
except EdgepruneError as error:
    print(f"BROKEN {error}", flush=True)
    sys.stdin.read()
