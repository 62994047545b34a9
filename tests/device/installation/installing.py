"""Helpers of the installation tests: options, a fake service, and the leftovers of a killed installation."""

from edgeprune_device.installation import measure, restart
from edgeprune_device.installation.options import InstallOptions

QUICK = InstallOptions(keep=2, health_s=0.1)
MEASURED = measure.Measured("fp32", "ort", "0" * 64, {"map50_95": 1.0, "host_map50_95": 1.0, "delta": 0.0})


class Watched(restart.Service):
    """A FAKE service, which reports every release whose counter is in `sick` as not healthy."""

    description = "a fake service"
    restarts = 0

    def __init__(self, sick=()):
        self.sick = sick

    def restart(self):
        self.restarts += 1

    def watch(self, release, health_s, say):
        return release.counter not in self.sick, f"seen with {release.counter}"


def quiet(step, text):
    pass


def leftovers(releases):
    """The files that only a killed installation leaves."""
    return [path for path in (releases.root / "releases").iterdir() if path.name[0] == "."] + [
        *releases.root.glob(".current.*"),
        *(releases.root / "incoming").iterdir(),
    ]
