import pytest
from edgeprune_device.errors import GateError
from edgeprune_device.installation import install
from edgeprune_device.installation.options import InstallOptions

from .installing import QUICK, quiet


def test_release_that_is_not_healthy_is_rolled_back(releases, make, unmeasured, service):
    good = install.install(releases, make(1), QUICK, quiet)
    service.sick = {2}
    with pytest.raises(GateError, match=rf"rolled back, because seen with 2; {good.identity} \(tiny\) is in use"):
        install.install(releases, make(2), QUICK, quiet)
    assert releases.current() == good and list(releases.counters.values()) == [1] and service.restarts == 3
    assert [r.state for r in releases.all()] == ["bad", "good"] and releases.all()[0].reason == "seen with 2"
    service.sick = ()
    assert install.install(releases, make(2), QUICK, quiet).state == "good"  # a user may try it again


def test_first_release_that_is_not_healthy_leaves_nothing_in_use(releases, make, unmeasured, service):
    service.sick = {1}
    with pytest.raises(GateError, match="no release is in use"):
        install.install(releases, make(1), QUICK, quiet)
    assert releases.current() is None


def test_damaged_former_release_is_not_a_fallback(releases, make, unmeasured, service):
    options = InstallOptions(keep=3, health_s=0.1)
    first, second = (install.install(releases, make(n), options, quiet) for n in (1, 2))
    (releases.folder(second) / "bundle.epb").write_bytes(b"rotten")
    service.sick = {3}
    with pytest.raises(GateError, match=first.identity):
        install.install(releases, make(3), options, quiet)
    assert releases.current() == first
